"""Texts name a command that works where the reader is."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import orchestrator
from orchestrator.program import COMMAND, MODULE, program_of

PACKAGE = Path(orchestrator.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize(
    ("started", "beside", "named"),
    [
        ("venv/bin/orchestrator", True, COMMAND),
        ("/home/user/.local/bin/orchestrator", False, COMMAND),
        ("orchestrator/__main__.py", True, COMMAND),
        ("orchestrator/__main__.py", False, MODULE),
        ("orchestrator/main.py", False, MODULE),
        ("-c", False, MODULE),
    ],
)
def test_the_program_is_named_as_it_can_be_started(
    tmp_path: Path, started: str, beside: bool, named: str
) -> None:
    if beside:
        (tmp_path / COMMAND).touch()
    assert program_of([started, "relay"], str(tmp_path / "python")) == named


def texts_of(file: Path) -> Iterator[str]:
    """Yield the texts in a file that are no docstrings."""
    tree = ast.parse(file.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
        ):
            yield node.value


# Names of sessions, and examples: the parser puts the right name into those.
NO_ADVICE = re.compile(r"orchestrator (?:consumer|relay|migrate|doctor|demo|gauges|standby)")
EXAMPLES = {"parser.py", "operator_arguments.py"}


def test_every_advice_names_the_program_as_it_was_started() -> None:
    advice = re.compile(r"(?<![/\w])orchestrator [a-z]+")
    found = {
        f"{file.name}: {text}"
        for file in FILES
        if file.name not in EXAMPLES
        for text in texts_of(file)
        if advice.search(text) and not NO_ADVICE.fullmatch(text)
    }
    assert found == set()


@pytest.mark.parametrize("directory", [PACKAGE.parent, PACKAGE], ids=["checkout", "package"])
@pytest.mark.parametrize("module", ["orchestrator", "orchestrator.main"])
def test_it_starts_in_a_checkout_and_inside_of_its_package(directory: Path, module: str) -> None:
    # -S: without the installed package, as after `pip install -r requirements.txt`.
    packages = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    command = [sys.executable, "-S", "-m", module, "--help"]
    done = subprocess.run(
        command, cwd=directory, env={"PYTHONPATH": packages}, capture_output=True, text=True, check=True
    )
    assert "usage:" in done.stdout
