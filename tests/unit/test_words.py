"""One word for one thing: the words of docs/glossary.md, in code, documents and the names of tests."""

import argparse
import ast
import io
import logging
import re
import tokenize
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import psycopg
import pytest

import outbox
from orchestrator.cli.parser import new_parser
from orchestrator.consumer import offsets, partitions, session
from orchestrator.consumer.offsets import PartitionRefusal
from orchestrator.contract.messages import InvalidReason
from orchestrator.kafka import topics
from orchestrator.observability.health import Health
from orchestrator.observability.metrics import ConsumerMetrics, RelayMetrics, new_registry
from orchestrator.operations import parked_rows
from orchestrator.operations.dead_letters import handling, orders
from orchestrator.operations.dead_letters.letters import LetterState
from orchestrator.operations.repair import lane, partition
from orchestrator.operations.repair.partition import MANUAL
from orchestrator.operations.status.lanes import LaneCondition
from outbox import LaneState, OutboxError, Outcome, admin

ROOT = Path(__file__).parent.parent.parent

# Words for which the field has a better one. In any case, and in names with `_` as a space.
WORDS = {
    # the glossary's last column
    r"settle[sd]?|settling": "acknowledge",
    r"verdicts?": "outcome",
    r"tenures?": "relay session",
    r"carriers?": "transactional lane",
    r"incarnations?": "server run",
    r"progress (topic|group)(?<!(?-i:PROGRESS_TOPIC))": "marker topic, marker group",  # still read
    r"octets?(?!-|_length)": "bytes",
    r"set(s|ting)? aside": "park",
    r"(made|make|making|makes) (again|anew)|anew": "recreate",
    r"faded": "stale",
    r"in the air|under way|in hand": "in flight, current",
    r"shuts? out|shutting out": "fence",
    r"lets? go|letting go": "release",
    r"low.water marks?": "claim watermark",
    r"bad (input|commands?|records?)": "invalid command",
    r"rests until|resting|is at rest|lane rests": "back off",
    r"oncall": "operations",
    r"patience|patient(ly)?": "time-out, retry, back off",
    r"persist(s|ed|ing)?(?!-)": "retry, store",
    r"high.water mark": "high watermark",
    # who
    r"a person|persons|people|humans?": "operator",
    r"somebody|someone|nobody|everybody|whoever|whomever": "operator, process, session, another ...",
    r"strangers?": "foreign, unknown",
    r"rights": "permissions",
    r"a right": "a permission",
    r"blamed?": "report",
    # how
    r"of now": "current",
    r"of before": "earlier, previous",
    r"for ever": "without end, endlessly",
    r"in vain": "without effect",
    r"counts? not|knows? not|does it not": "does not ...",
    r"is to|are to": "must, will",
    r"what looks": "read-only",
    r"told of": "reported",
    r"hitherto|thereof|lest|whence|albeit|forthwith": "an everyday word",
}
GAP = r"(?:[\s_]|#|--|\|)+"  # between two words: the next line of a comment, a name's underscore
PATTERN = {
    re.compile(rf"(?<![^\W_])(?:{words.replace(' ', GAP)})(?![^\W_])", re.IGNORECASE): better
    for words, better in WORDS.items()
}

DOCUMENTS = ["*.md", "*/README.md", "docs/**/*", "deploy/**/*", "schema/**/*"]
BUILD = ["Makefile", "Dockerfile", "pyproject.toml", ".ci/run", ".github/**/*.yml"]
CODE = ["orchestrator/**/*.py", "outbox/**/*.py", "testkit/**/*.py", "bench/**/*.py"]
SCHEMA = ["schema/*.sql", "outbox/schema/*.sql"]
TESTS = ["tests/**/*.py"]

EXEMPT = {
    "docs/glossary.md": "lists the words",
    "CHANGELOG.md": "lists the old names",
    "tests/unit/test_words.py": "lists the words",
    "outbox/schema/009_words.sql": "renames the old names",
}
FROZEN = 8  # a migration that may have been applied cannot be changed: its checksum is compared


def name_of(path: Path) -> str:
    """Return a file's path in the repository."""
    return str(path.relative_to(ROOT))


def files(*patterns: str) -> list[Path]:
    """Return the text files that the patterns match and that are not exempt."""
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(
        path
        for path in found
        if path.suffix != ".pyc"
        and name_of(path) not in EXEMPT
        and not (path.suffix == ".sql" and path.name[:3].isdigit() and int(path.name[:3]) <= FROZEN)
    )


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the text of a file in pieces that belong together, each with its first line."""
    if path.suffix != ".py":
        yield 1, path.read_text()
        return
    tests = path.is_relative_to(ROOT / "tests")
    comment: list[str] = []
    first = before = 0
    statement = True  # the next token begins a statement: a string there is a docstring
    name = False  # the next token is the name of a function or class
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        kind, line = tokenize.tok_name[token.type], token.start[0]
        if kind == "COMMENT":
            if line != before + 1:
                yield first, "\n".join(comment)
                comment, first = [], line
            comment, before = [*comment, token.string], line
        elif (kind == "STRING" and (statement or not tests)) or kind == "FSTRING_MIDDLE":
            if not (tests and kind == "FSTRING_MIDDLE"):
                yield line, token.string
        elif kind == "NAME" and (name or not tests):
            yield line, token.string
        if kind in {"NEWLINE", "INDENT", "DEDENT"}:
            statement = True
        elif kind not in {"COMMENT", "NL"}:
            statement = False
        name = kind == "NAME" and token.string in {"def", "class"}
    yield first, "\n".join(comment)


def findings(path: Path, root: Path = ROOT) -> Iterator[str]:
    """Yield what a file says in other words than the glossary's."""
    for first, text in prose(path):
        for pattern, better in PATTERN.items():
            for found in pattern.finditer(text):
                line = first + text.count("\n", 0, found.start())
                yield f"{path.relative_to(root)}:{line}: {found[0]!r}: say {better}"


@pytest.mark.parametrize("path", files(*CODE, *DOCUMENTS, *BUILD, *SCHEMA, *TESTS), ids=name_of)
def test_a_file_uses_the_words_of_the_glossary(path: Path) -> None:
    assert not list(findings(path))


def test_words_are_found_in_all_that_is_read(tmp_path: Path) -> None:
    """In comments, texts, names; over the end of a line."""
    file = tmp_path / "some.py"
    file.write_text(
        '"""It waits for a\nperson."""\n'
        "x = 1  # for\n"
        "# a person, not a personal one\n"
        "def settle_it(tenure):\n"
        '    return f"nobody {x}"\n'
    )
    assert sorted(finding.partition(": say")[0] for finding in findings(file, tmp_path)) == [
        "some.py:1: 'a\\nperson'",
        "some.py:4: 'a person'",
        "some.py:5: 'settle'",
        "some.py:5: 'tenure'",
        "some.py:6: 'nobody'",
    ]


# ---- the lists of the glossary ------------------------------------------------------------------

GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()
SECTIONS = dict(re.findall(r"^### (.*?)\n(.*?)(?=^#|\Z)", GLOSSARY, re.MULTILINE | re.DOTALL))


def listed(section: str) -> set[str]:
    """Return the names of a table's first column."""
    return set(re.findall(r"^\| `(.*?)` \|", SECTIONS[section], re.MULTILINE))


def test_it_lists_the_states_of_a_lane() -> None:
    assert listed("Lane states") == {state.value for state in LaneState}


def test_it_lists_what_the_status_says_of_a_lane() -> None:
    named = re.findall(r"`([a-z_]+)`", SECTIONS["Lane states"].partition("LaneCondition`:")[2])
    assert named == [condition.value for condition in LaneCondition]


def test_it_lists_the_reasons_of_repairs() -> None:
    named = set(re.findall(r"`([a-z_]+)`", SECTIONS["Refusals and repairs"].partition("partition ")[2]))
    assert named == {*(refusal.value for refusal in PartitionRefusal), MANUAL}


def test_it_lists_the_outcomes() -> None:
    assert listed("Outcomes of a recovery") == {outcome.value for outcome in Outcome}


def test_it_lists_the_reasons_of_dead_letters() -> None:
    named = set(re.findall(r"`([a-z_]+)`", SECTIONS["Reasons of dead letters"].partition(": ")[2]))
    assert named == {reason.value for reason in InvalidReason}


def test_it_lists_the_states_of_dead_letters() -> None:
    named = re.findall(r"`([a-z_]+)`", SECTIONS["States of dead letters"].partition(": ")[2])
    assert named == [state.value for state in LetterState]


def exported(process: str) -> set[str]:
    """Return the metrics of a process."""
    registry = new_registry(process)
    metrics = {"consumer": ConsumerMetrics, "relay": RelayMetrics}[process]
    metrics(registry, Health())
    return {family.name + "_total" * (family.type == "counter") for family in registry.collect()}


def test_it_lists_the_metrics() -> None:
    rows = re.findall(r"^\| (\w+) \| (`.*`) \|", SECTIONS["Metrics"], re.MULTILINE)
    named = {process: set(re.findall(r"`(.*?)`", names)) for process, names in rows}
    consumer, relay = exported("consumer"), exported("relay")
    assert named == {"both": consumer & relay, "consumer": consumer - relay, "relay": relay - consumer}


def logged() -> Iterator[tuple[str, set[str]]]:
    """Yield each event that the code logs, with the fields that are literals beside it."""
    for file in files("orchestrator/**/*.py", "outbox/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(ast.Attribute(ast.Name("log"), "log"), [_, ast.Name("event"), *_]):
                    module = import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
                    yield from ((event, set()) for _, event in module.EVENTS.values())
                case ast.Call(ast.Attribute(ast.Name("log"), _), [ast.Constant(str(event))], keywords):
                    given = [word.value for word in keywords if word.arg == "extra"]
                    keys = [key for one in given if isinstance(one, ast.Dict) for key in one.keys]
                    yield event, {str(key.value) for key in keys if isinstance(key, ast.Constant)}
                case ast.Call(ast.Attribute(ast.Name("log"), level)) if hasattr(logging, level):
                    raise AssertionError(f"{name_of(file)}:{node.lineno}: the event is no constant")


def test_it_lists_the_events_of_the_log_with_their_fields() -> None:
    listed_fields: dict[str, set[str]] = {}
    for events, fields in re.findall(r"^\| (`.*?`) \| (.*?) \|", SECTIONS["Log events"], re.MULTILINE):
        for event in re.findall(r"`(.*?)`", events):
            listed_fields[event] = set(re.findall(r"`(\w+)`", fields))
    found: dict[str, set[str]] = {}
    for event, fields in logged():
        found.setdefault(event, set()).update(fields)
    assert found.keys() == listed_fields.keys()
    for event, fields in found.items():
        assert fields <= listed_fields[event], event


def commands_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the commands of a parser, with those below them."""
    for action in parser._actions:
        for name, sub in (
            action.choices.items() if isinstance(action, argparse._SubParsersAction) else ()
        ):
            below = [f"{name} {command}" for command in commands_of(sub)]
            yield from below or [name]


def test_it_lists_the_commands() -> None:
    named = re.findall(r"`(.*?)`", SECTIONS["Commands"])
    assert sorted(named) == sorted(commands_of(new_parser()))


def below(error: type[Exception]) -> Iterator[str]:
    """Yield the names of all errors that are one."""
    for one in error.__subclasses__():
        yield from (one.__name__, *below(one))


def test_it_lists_the_errors_of_the_library() -> None:
    named = re.findall(r"`(\w+)`", SECTIONS["Errors of the library"])
    in_library = [name for name in below(OutboxError) if hasattr(outbox, name) or hasattr(admin, name)]
    assert sorted(named) == sorted(["OutboxError", *in_library])


# ---- the names of the model's table -------------------------------------------------------------

MODEL = ROOT / "docs" / "model"


def test_the_model_names_actions_and_code_that_exist() -> None:
    """In the tables that tie the specifications to the code."""
    rows = re.findall(r"^\| (`\w+`.*?) \| (.*) \|$", (MODEL / "README.md").read_text(), re.MULTILINE)
    specification = "\n".join(path.read_text() for path in MODEL.glob("*.tla"))
    for actions, code in rows:
        for action in re.findall(r"`(\w+)`", actions):
            assert re.search(rf"^{action}\b.*==", specification, re.MULTILINE), action
        for owner, name in re.findall(r"`(\w+)\.(\w+)`", code):
            assert hasattr(NAMESPACE[owner], name), f"{owner}.{name}"


MODULES = [
    *(import_module(f"outbox.{module.name}") for module in iter_modules(outbox.__path__)),
    *(offsets, partitions, session, topics, lane, partition, parked_rows, handling, orders),
]
NAMESPACE = (
    {module.__name__.rpartition(".")[2]: module for module in MODULES}
    | {name: value for module in MODULES for name, value in vars(module).items()}
    | {"psycopg": psycopg}
)
