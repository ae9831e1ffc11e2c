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
    ["contract", "config", "errors"],
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


DDL = re.compile(
    r"\b(CREATE|ALTER|DROP|TRUNCATE)\s+(\w+\s+){0,3}?(TABLE|INDEX|TYPE|SCHEMA|SEQUENCE|VIEW|"
    r"FUNCTION|TRIGGER|ROLE|DATABASE|EXTENSION)\b"
)


# What may stand elsewhere, and why: the history of migrations must be there before the first one; a
# temporary table belongs to one session and is no part of the schema.
DDL_ELSEWHERE = re.compile(r"\s*CREATE (TEMP TABLE|TABLE IF NOT EXISTS schema_migrations)\b")


@pytest.mark.parametrize("package", ["orchestrator", "outbox"])
def test_ddl_is_in_schema_only_except_for_temporary_tables(package: str) -> None:
    for module, file in MODULES.items():
        if module.split(".")[0] != package:
            continue
        strings = [
            node.value
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        for statement in [text for text in strings if DDL.search(text)]:
            assert DDL_ELSEWHERE.match(statement), module
            assert len(DDL.findall(statement)) == 1, module
            own = module == "orchestrator.runtime.migrations"
            assert "schema_migrations" not in statement or own, module
