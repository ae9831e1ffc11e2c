"""The table `workers` as it is found: the platform's own, adopted as it is if it has what is needed.

`setup` and each session of a process look at it before anything is written to it. What exactly once
needs and is not there is named, with the statement that mends it; what else differs does no harm.
"""

from collections.abc import Sequence
from typing import NamedTuple

from psycopg.rows import args_row

from orchestrator.contract.workers_faults import find_faults
from outbox import Connection, DatabaseNotReady, query, scalars


class WorkersRefused(DatabaseNotReady):
    """The table `workers` is not what exactly once needs, or not where our role finds it."""


def check_workers(conn: Connection) -> None:
    """Raise WorkersRefused unless our role finds a table that we may write to."""
    if not adopt_workers(conn):
        path = ", ".join(scalars(conn, str, SEARCH_PATH))
        raise WorkersRefused(
            f"there is no table workers in a schema of the search_path ({path}): restore it, or create"
            " it with schema/001_workers.sql"
        )


def adopt_workers(conn: Connection) -> bool:
    """Return whether there is a table; False: there is none, and one may be created.

    Raises WorkersRefused if it is not the right one, or not the only one.
    """
    visible = find_visible(conn)
    if visible and (faults := [*find_faults(conn, visible)]):
        raise WorkersRefused("; ".join(faults))
    return visible is not None


SEARCH_PATH = "SELECT pg_catalog.unnest(pg_catalog.current_schemas(false))"

# Another program may have a table of that name: the platform's has one of these columns.
FIND_TABLES = """
    SELECT pg_catalog.format('%%I.%%I', nspname, relname), pg_catalog.quote_ident(nspname),
           pg_catalog.quote_ident(current_user),
           pg_class.oid IS NOT DISTINCT FROM pg_catalog.to_regclass('workers')::oid,
           nspname = ANY (pg_catalog.current_schemas(false)),
           pg_catalog.has_schema_privilege(pg_namespace.oid, 'USAGE')
      FROM pg_class
      JOIN pg_namespace ON pg_namespace.oid = relnamespace
     WHERE relname = 'workers' AND relkind IN ('r', 'p', 'v', 'm', 'f')
       AND NOT pg_catalog.pg_is_other_temp_schema(relnamespace)
       AND (pg_class.oid = pg_catalog.to_regclass('workers')::oid
            OR EXISTS (SELECT FROM pg_attribute
                        WHERE attrelid = pg_class.oid AND NOT attisdropped
                          AND attname = ANY(%(columns)s)))
     ORDER BY 4 DESC, nspname
"""
PLATFORM_COLUMNS = ["worker_id", "scenario_uuid"]


class FoundTable(NamedTuple):
    """A table `workers`. is_first: our statements mean it. is_usable: the role may use its schema."""

    name: str
    schema: str
    role: str
    is_first: bool
    is_on_path: bool
    is_usable: bool


def find_tables(conn: Connection) -> list[FoundTable]:
    """Return the tables of that name which may be the platform's, in all schemas; first ours."""
    return query(conn, args_row(FoundTable), FIND_TABLES, {"columns": PLATFORM_COLUMNS})


def find_visible(conn: Connection) -> str | None:
    """Return the name of the table that our statements mean; None: there is none at all.

    Raises WorkersRefused if there is another one that they may have to mean.
    """
    found = find_tables(conn)
    if not found:
        return None
    first = found[0]
    if not first.is_first:
        raise WorkersRefused(_not_on_path(first, scalars(conn, str, SEARCH_PATH)))
    if others := [table.name for table in found[1:] if table.is_on_path]:
        raise WorkersRefused(
            f"the search_path has more than one table workers: {first.name}, which would be used, and"
            f" {', '.join(others)}: keep the platform's alone: drop or rename the other, or take its"
            f" schema out of the search_path of role {first.role}"
        )
    return first.name


def _not_on_path(table: FoundTable, path: Sequence[str]) -> str:
    """Return what to do about a table that our role does not find, in place of a second one."""
    remedy = (
        f"ALTER ROLE {table.role} SET search_path = {', '.join([*path, table.schema])}"
        if table.is_usable
        else f"GRANT USAGE ON SCHEMA {table.schema} TO {table.role}, and have it in the search_path"
    )
    return (
        f"table {table.name} exists, and the search_path of role {table.role} ({', '.join(path)}) does"
        f" not show it: {remedy}; if it is another installation's, create ours with"
        " schema/001_workers.sql"
    )
