"""Why Postgres refuses to insert a worker: the row, or a table that would take no row.

What is said names the table, its columns and constraints, and never what was to be inserted: not the
message of a trigger, not the DETAIL.
"""

import psycopg

from orchestrator.contract.records import RefusedRow
from orchestrator.contract.workers import IdSequence, read_id_sequence
from orchestrator.contract.workers_catalog import insert_triggers, read_columns
from orchestrator.contract.workers_table import WorkersRefused, check_workers
from outbox import Connection, DatabaseNotReady, check_id_sequence, scalars

HIGHEST_ID = "(SELECT max(id) FROM workers)"  # for the operator to run
OUR_TABLES = ("outbox", "consumed_offsets")


def explain_refusal(conn: Connection, error: psycopg.Error) -> RefusedRow:
    """Return what is wrong with the row. Raises DatabaseNotReady if the table would take no row.

    conn: after the transaction was rolled back.
    """
    if (table := error.diag.table_name) in OUR_TABLES:
        check_id_sequence(conn)
        raise DatabaseNotReady(
            f"table {table} refuses a row ({error.sqlstate}), constraint {error.diag.constraint_name}:"
            " remove what was added to the table"
        )
    check_workers(conn)
    if ids := read_id_sequence(conn):
        _check_ids(conn, ids, error)
    return RefusedRow(f"Postgres refuses the row ({error.sqlstate}): {_name_cause(conn, error)}")


def _check_ids(conn: Connection, ids: IdSequence, error: psycopg.Error) -> None:
    """Raise WorkersRefused if it is the id that is refused, which is not the record's."""
    no_more = isinstance(error, psycopg.errors.SequenceGeneratorLimitExceeded)
    if no_more or (ids.used is not None and ids.used >= 1):
        raise WorkersRefused(
            f"no id is left for table workers, column id ({ids.type}): see WorkerIdsRunningOut in"
            " docs/runbook.md"
        )
    is_duplicate = isinstance(error, psycopg.errors.UniqueViolation)
    if ids.sequence and is_duplicate and _is_of_id(conn, error):
        raise WorkersRefused(
            f"table workers has ids beyond sequence {ids.sequence} of its column id:"
            f" SELECT setval({ids.sequence!r}, {HIGHEST_ID})"
        )


def _is_of_id(conn: Connection, error: psycopg.Error) -> bool:
    """Return whether two rows have the same id."""
    values = {"schema": error.diag.schema_name, "index": error.diag.constraint_name}
    return scalars(conn, str, READ_INDEXED_COLUMNS, values) == ["id"]


READ_INDEXED_COLUMNS = """
    SELECT coalesce(attname, '')::text                    -- none: of an expression
      FROM pg_class
      JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
      JOIN pg_index ON indexrelid = pg_class.oid
     CROSS JOIN pg_catalog.unnest(indkey::int2[]) AS number
      LEFT JOIN pg_attribute ON attrelid = indrelid AND attnum = number
     WHERE nspname = %(schema)s AND relname = %(index)s
"""
MAX_NAME = 63  # characters of an identifier: a trigger may claim longer ones


def _name_cause(conn: Connection, error: psycopg.Error) -> str:
    """Return table and column, and the constraint or the triggers."""
    diag = error.diag
    named = {"table": diag.table_name or "workers", "column": diag.column_name}
    if isinstance(error, psycopg.errors.StringDataRightTruncation) and not diag.column_name:
        (url,) = (one for one in read_columns(conn) if one.name == "camera_url")
        named["column"] = f"camera_url ({url.type})"
    named["constraint"] = diag.constraint_name
    if not (named["column"] or named["constraint"]):
        named["triggers"] = " ".join(insert_triggers(conn))
    return ", ".join(
        f"{what} {name.partition('://')[0][:MAX_NAME]}" for what, name in named.items() if name
    )
