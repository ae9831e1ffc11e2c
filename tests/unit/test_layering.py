"""Imports only point down, the library is used through its fronts alone, and DDL lives in schema/."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import bench
import orchestrator
import outbox
import outbox.admin
import testkit

ROOT = Path(orchestrator.__file__).parent.parent
PACKAGES = [Path(package.__path__[0]) for package in (orchestrator, outbox)]
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for package in PACKAGES
    for file in sorted(package.rglob("*.py"))
}

# The floors of the service, from the top down: what stands in one imports only from those below it.
FLOORS = [
    ["main"],
    ["__main__"],
    ["cli"],
    ["operations"],
    ["consumer", "relay"],
    ["runtime"],
    ["observability"],
    ["kafka", "embedded"],
    ["contract", "config"],
    ["errors", "program", "orchestrator"],
]
FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}


def imports_of(file: Path) -> set[str]:
    """Return our modules that a file imports, by full name, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES.keys()) or {node.module or ""}
    return found & MODULES.keys()


IMPORTS = {module: imports_of(file) - {module} for module, file in MODULES.items()}


def part_of(module: str) -> str:
    """Return the package or module of the service's first level that a module stands in."""
    return module.split(".")[1] if module.startswith("orchestrator.") else ""


def test_a_module_has_a_docstring() -> None:
    texts = {name: file.read_text(encoding="utf-8") for name, file in MODULES.items()}
    assert [name for name, text in texts.items() if not ast.get_docstring(ast.parse(text))] == []


def test_the_library_never_imports_the_service() -> None:
    library = {name: seen for name, seen in IMPORTS.items() if name.split(".")[0] == "outbox"}
    assert library
    for module, imported in library.items():
        assert [name for name in imported if name.split(".")[0] == "orchestrator"] == [], module


def test_every_part_of_the_service_has_a_floor() -> None:
    parts = {part_of(module) for module in MODULES if module.startswith("orchestrator.")}
    assert parts == FLOOR.keys()


def test_imports_point_down() -> None:
    upwards = [
        f"{module} imports {imported}"
        for module, seen in IMPORTS.items()
        for imported in seen
        if (part := part_of(module)) and (other := part_of(imported))
        if part != other and FLOOR[other] <= FLOOR[part]
    ]
    assert upwards == []


# Knows no scenario, camera or worker: the half of the consumer that will move into the library.
GENERIC = {
    "orchestrator.config.environment",
    "orchestrator.config.kafka",
    "orchestrator.config.timings",
    "orchestrator.consumer.batch_writer",
    "orchestrator.consumer.client",
    "orchestrator.consumer.ends",
    "orchestrator.consumer.handled",
    "orchestrator.consumer.loop",
    "orchestrator.consumer.narrowing",
    "orchestrator.consumer.offsets",
    "orchestrator.consumer.parsed_batch",
    "orchestrator.consumer.partitions",
    "orchestrator.consumer.refusals",
    "orchestrator.consumer.session",
    "orchestrator.consumer.subscription",
    "orchestrator.consumer.unread",
    "orchestrator.contract.dead_letters",
    "orchestrator.contract.records",
    "orchestrator.kafka.continuations",
    "orchestrator.kafka.reader",
    "orchestrator.kafka.topics",
    "orchestrator.program",
}
SERVICE_WORDS = re.compile("scenario|camera|worker", re.IGNORECASE)


@pytest.mark.parametrize("module", sorted(GENERIC))
def test_the_generic_half_of_the_consumer_does_not_know_the_service(module: str) -> None:
    service = {name for name in IMPORTS[module] if name.startswith("orchestrator.")}
    assert service <= GENERIC
    assert not SERVICE_WORDS.findall(MODULES[module].read_text(encoding="utf-8"))


def test_no_imports_go_round_in_circles() -> None:
    seen: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in seen:
            for imported in IMPORTS[module]:
                visit(imported, (*path, module))
            seen.add(module)

    for module in MODULES:
        visit(module, ())


# ---- the library is closed ----------------------------------------------------------------------

# Listed though it is imported here by none: errors for another service to catch, types of results.
NOT_IMPORTED = {
    *("OutboxError", "RecordRejected", "RolledBack", "Stopped"),
    *("NoTransaction", "NotAwaited", "enqueue_async"),
    *("AcknowledgedRow", "BatchReset", "FaultyRow", "LaneSummary", "ParkedCount", "RowCount"),
    *("TransactionalIdTrial", "WaitingRow"),
}
FRONTS = {"outbox": set(outbox.__all__), "outbox.admin": set(outbox.admin.__all__)}
OUTSIDE = [
    file
    for package in (orchestrator, bench, testkit)
    for file in sorted(Path(package.__path__[0]).rglob("*.py"))
]


def named_from_the_library(file: Path) -> set[tuple[str, str]]:
    """Return what a file imports from the library: module and name; of `import x`, no name."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    named = {
        (node.module or "", alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    named |= {
        (alias.name, "") for node in nodes if isinstance(node, ast.Import) for alias in node.names
    }
    return {(module, name) for module, name in named if module.split(".")[0] == "outbox"}


@pytest.mark.parametrize("front", FRONTS)
def test_a_front_has_all_that_it_lists(front: str) -> None:
    listed = {"outbox": outbox, "outbox.admin": outbox.admin}[front]
    assert [name for name in FRONTS[front] if not hasattr(listed, name)] == []


def test_the_library_is_imported_through_its_fronts_alone() -> None:
    inner = [
        f"{file.relative_to(ROOT)}: {module} {name}"
        for file in OUTSIDE
        for module, name in named_from_the_library(file)
        if name not in FRONTS.get(module, set())
    ]
    assert inner == []


def test_the_fronts_list_nothing_that_is_not_imported() -> None:
    used = {named for file in OUTSIDE for named in named_from_the_library(file)}
    listed = {(front, name) for front, names in FRONTS.items() for name in names}
    assert {name for _, name in listed - used} == NOT_IMPORTED


TABLES = re.compile(
    r"\b(outbox|outbox_lane|outbox_parked|outbox_deferred|outbox_identity)\b(?!\.lanes)"
)  # a setting
SQL = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|COPY|TRUNCATE|VACUUM|ANALYZE|LOCK|REVOKE|GRANT)\b")

# Who may name the tables, and why. (testkit and tests may, too: they plant faults.)
TABLES_ELSEWHERE = {
    "bench/load.py": "fills the tables as fast as the server can",
    "bench/components.py": "measures the bare insert",
    "bench/peers/": "tables of other outboxes; of ours, what a peer does instead of `enqueue`",
}


def statements(file: Path) -> Iterator[str]:
    """Yield the strings of a file that are SQL; an f-string as a whole; no docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documented = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts = [
            part.value.decode("utf-8", "replace") if isinstance(part.value, bytes) else part.value
            for part in parts
            if isinstance(part, ast.Constant) and isinstance(part.value, str | bytes)
        ]
        if id(node) not in documented and SQL.search(text := "".join(texts)):
            yield text


def test_the_tables_of_the_library_are_named_in_its_own_statements_alone() -> None:
    named = [
        f"{name}: {' '.join(statement.split())[:80]}"
        for file in OUTSIDE
        if not (name := str(file.relative_to(ROOT))).startswith(("testkit/", *TABLES_ELSEWHERE))
        for statement in statements(file)
        if TABLES.search(statement)
    ]
    assert named == []


# ---- DDL ----------------------------------------------------------------------------------------

DDL = re.compile(  # as a statement begins, and not in advice to an operator
    r"^\s*(CREATE|ALTER|DROP|TRUNCATE)\s+(\w+\s+){0,3}?(TABLE|INDEX|TYPE|SCHEMA|SEQUENCE|VIEW|"
    r"FUNCTION|TRIGGER|ROLE|DATABASE|EXTENSION)\b"
)


# What may stand elsewhere, and why: the history of migrations, and the schema that a setting names, are
# there before the first one; a temporary table belongs to one session and is no part of the schema.
DDL_ELSEWHERE = {
    r"\s*CREATE TEMP TABLE\b": None,
    r"\s*CREATE TABLE orchestrator_migrations\b": "orchestrator.runtime.history",
    r"ALTER TABLE schema_migrations RENAME\b": "orchestrator.runtime.history",
    r"CREATE SCHEMA \{\}$": "orchestrator.runtime.database",
}

# Statements that these do not run: they tell the owner of the platform's table what mends it.
ADVICE = {
    "orchestrator.contract.workers_faults",
    "orchestrator.contract.workers_table",
    "orchestrator.operations.doctor.workers_table",
}


@pytest.mark.parametrize("package", ["orchestrator", "outbox"])
def test_ddl_is_in_schema_only_except_for_temporary_tables(package: str) -> None:
    for module, file in MODULES.items():
        if module.split(".")[0] != package or module in ADVICE:
            continue
        strings = [
            node.value
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        for statement in [text for text in strings if DDL.search(text)]:
            allowed = [where for one, where in DDL_ELSEWHERE.items() if re.match(one, statement)]
            assert allowed in ([None], [module]), module
            assert statement.count(";") == 0, module
