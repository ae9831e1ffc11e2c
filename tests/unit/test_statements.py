"""Our SQL calls Postgres's own functions by their full names: in a schema of the search_path another
login may have planted one whose types fit better, and `pg_catalog` first does not help against that.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.runtime.database import other_server

ROOT = Path(__file__).parent.parent.parent
FILES = [
    *(ROOT / "orchestrator").rglob("*.py"),
    *(path for path in (ROOT / "outbox").rglob("*.py") if path.name != "__init__.py"),
]
STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|LOCK|CREATE|EXISTS|COPY)\b")
CALL = re.compile(r"(?<![.\w%\"])([a-z_0-9]+)\(")
# Words of the grammar, and functions for which no type fits better than that of each call of ours.
NOT_QUALIFIED = re.compile(
    "coalesce|nullif|greatest|least|extract|substring|max|min|bool_and|octet_length|isfinite"
    "|pg_terminate_backend"  # in an advice
)


def statements() -> Iterator[tuple[str, str]]:
    """Yield each text of the code that is, or begins, a statement, with its place."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Constant(value=str(text)) if STATEMENT.match(text):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def arguments(statement: str, start: int) -> str:
    """Return what is in the parentheses that open before `start`."""
    depth, end = 1, start
    while depth:
        depth += {"(": 1, ")": -1}.get(statement[end], 0)
        end += 1
    return statement[start : end - 1]


def unqualified(statement: str) -> Iterator[str]:
    """Yield the calls with arguments whose function the search_path decides.

    unnest of several arrays is the grammar's, too; it has no name in pg_catalog.
    """
    for call in CALL.finditer(statement):
        within = re.sub(r"\([^()]*\)", "", arguments(statement, call.end())).strip()
        several = call[1] == "unnest" and "," in within
        if within not in {"", "*"} and not several and not NOT_QUALIFIED.fullmatch(call[1]):
            yield call[0]


def test_each_function_is_called_by_its_full_name() -> None:
    found = {place: list(unqualified(statement)) for place, statement in statements()}
    assert len(found) > 150
    assert {place: calls for place, calls in found.items() if calls} == {}


# Postgres has these operators for two operands of the same type alone, and a number is an int4.
LOOSE = re.compile(
    r"(?<!::int)(?<!::text)(?<!::float8) (?:&|!?~|\^) "
    r"|\b(?:\w*oid|\w*relid|setrole|setdatabase) (?:=|<>) \d+\b(?!::oid)"
)


def test_no_operator_fits_better_than_that_of_postgres() -> None:
    found = {place: LOOSE.findall(statement) for place, statement in statements()}
    assert {place: loose for place, loose in found.items() if loose} == {}


@pytest.mark.parametrize(
    ("version", "other"),
    [
        ("PostgreSQL 18.0 (Debian 18.0-1) on x86_64", None),
        ("CockroachDB CCL v23.1.1 (x86_64)", "CockroachDB CCL v23.1.1 (x86_64)"),
        ("PostgreSQL 15.2-YB-2.25 on x86_64", "PostgreSQL 15.2-YB-2.25"),
        (
            "PostgreSQL 12.12 (Greenplum Database 7.1) on x86_64",
            "PostgreSQL 12.12 (Greenplum Database 7.1)",
        ),
    ],
)
def test_a_server_that_only_speaks_like_postgres_is_named(version: str, other: str | None) -> None:
    assert other_server(version) == other
