"""Imports only point down, the library knows nothing of the service, and DDL lives in schema/."""

import ast
import re
from pathlib import Path

import pytest

import orchestrator
import outbox

ROOT = Path(orchestrator.__file__).parent.parent
PACKAGES = [Path(package.__path__[0]) for package in (orchestrator, outbox)]
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for package in PACKAGES
    for file in sorted(package.rglob("*.py"))
}

# From the top down; a module imports only from levels below its own. What is in no level is a leaf
# of the command line (demo, embedded, ...) or not there yet: nothing in a level may import it.
LEVELS = [
    ["orchestrator.main"],
    ["orchestrator.__main__"],
    ["orchestrator.cli"],
    ["orchestrator.oncall.dlq", "orchestrator.oncall.parked"],
    ["orchestrator.oncall.set_aside"],
    ["orchestrator.oncall.operators"],
    ["orchestrator.oncall.duty"],
    ["orchestrator.consumer", "orchestrator.relay", "orchestrator.supervisor"],
    ["orchestrator.oncall.doctor"],
    ["orchestrator.oncall.doctor_both"],
    [
        "orchestrator.oncall.doctor_postgres",
        "orchestrator.oncall.doctor_rights",
        "orchestrator.oncall.doctor_tables",
    ],
    ["orchestrator.oncall.doctor_kafka"],
    ["orchestrator.oncall.doctor_check"],
    ["orchestrator.ingest", "orchestrator.gauges", "orchestrator.process", "orchestrator.setup"],
    ["orchestrator.oncall.screens"],
    ["orchestrator.oncall.explain", "orchestrator.oncall.status"],
    ["orchestrator.oncall.mentions"],
    ["orchestrator.oncall.lives", "orchestrator.oncall.repair_partitions"],
    ["orchestrator.oncall.repair"],
    ["orchestrator.oncall.evidence"],
    ["orchestrator.oncall.audit", "orchestrator.oncall.dead_letters"],
    ["orchestrator.http", "orchestrator.workers", "orchestrator.offsets", "orchestrator.metrics"],
    [
        "orchestrator.oncall.origins",
        "orchestrator.oncall.repairs",
        "orchestrator.oncall.selection",
        "orchestrator.terminal",
    ],
    ["orchestrator.reading", "orchestrator.tracing"],
    ["orchestrator.migrations", "orchestrator.topics", "orchestrator.health", "orchestrator.submit"],
    ["orchestrator.messages", "orchestrator.settings", "orchestrator.logs", "orchestrator.errors"],
    ["orchestrator.healthcheck"],
    ["orchestrator.environment", "orchestrator.arguments", "orchestrator.refusals"],
    ["outbox"],
    ["outbox.relay", "outbox.repair", "outbox.parked"],
    ["outbox.tenure"],
    ["outbox.recovery"],
    ["outbox.ownership"],
    ["outbox.lane", "outbox.lanes"],
    ["outbox.low_water"],
    ["outbox.store", "outbox.publisher", "outbox.observer"],
    ["outbox.message", "outbox.arrays", "outbox.postgres", "outbox.patience", "outbox.pace"],
    ["outbox.errors", "outbox.crashpoints"],
]
LEVEL = {module: number for number, level in enumerate(LEVELS) for module in level}

# The package itself is how the service may see the library; inside it is the front, at the top.
EVERY_PACKAGE = {"orchestrator", "outbox"}


def imports_of(file: Path) -> set[str]:
    """Return our modules that a file imports at its top, by full name."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES.keys()) or {node.module or ""}
    return found & MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_a_docstring(module: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8")))


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("outbox")])
def test_the_library_never_imports_the_service(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):  # everywhere, inside functions too
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not [name for name in names if name.split(".")[0] == "orchestrator"]


@pytest.mark.parametrize("module", LEVEL)
def test_imports_point_down(module: str) -> None:
    for imported in imports_of(MODULES[module]) - EVERY_PACKAGE - {module}:
        assert imported in LEVEL, f"{module} imports {imported}, which has no level"
        assert LEVEL[imported] > LEVEL[module], f"{module} imports {imported}, which is not below it"


def test_no_process_needs_the_commands_for_operators() -> None:
    oncall = "orchestrator.oncall."
    users = {
        module
        for module, file in MODULES.items()
        if not module.startswith(oncall) and any(name.startswith(oncall) for name in imports_of(file))
    }
    assert users == {"orchestrator.cli", "orchestrator.demo"}


def test_the_levels_name_modules_that_exist() -> None:
    assert LEVEL.keys() <= MODULES.keys()


def test_every_module_of_the_library_has_a_level() -> None:
    assert {name for name in MODULES if name.startswith("outbox")} <= LEVEL.keys()


DDL = re.compile(
    r"\b(CREATE|ALTER|DROP|TRUNCATE)\s+(\w+\s+){0,3}?(TABLE|INDEX|TYPE|SCHEMA|SEQUENCE|VIEW|"
    r"FUNCTION|TRIGGER|ROLE|DATABASE|EXTENSION)\b"
)


# What may stand elsewhere, and why: the history of migrations must be there before the first one; a
# temporary table belongs to one session and is no part of the schema.
DDL_ELSEWHERE = re.compile(r"\s*CREATE (TEMP TABLE|TABLE IF NOT EXISTS schema_migrations)\b")


@pytest.mark.parametrize("module", MODULES)
def test_ddl_stands_in_schema_alone_but_for_what_is_no_part_of_it(module: str) -> None:
    strings = [
        node.value
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    for statement in [text for text in strings if DDL.search(text)]:
        assert DDL_ELSEWHERE.match(statement)
        assert len(DDL.findall(statement)) == 1
        assert "schema_migrations" not in statement or module == "orchestrator.migrations"
