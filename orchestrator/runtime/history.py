"""The table of the migrations that a database has had, and where our tables are.

It is called orchestrator_migrations; in earlier releases it was schema_migrations, the name that many
tools give to theirs. A table of that name is ours only if its columns and one of its rows are.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from psycopg.rows import args_row

from outbox import Connection, query

TABLE, OLD_TABLE = "orchestrator_migrations", "schema_migrations"


class History(NamedTuple):
    """The table, its schema, and the checksum of each migration that the database has had."""

    table: str
    schema: str
    applied: dict[int, str]


class HistoryTable(NamedTuple):
    """A table that may be the history: the first of its name on the search_path."""

    table: str
    schema: str


FIND_TABLES = """
    SELECT relname, nspname
      FROM pg_class
      JOIN pg_namespace ON pg_namespace.oid = relnamespace
     WHERE relname IN ('orchestrator_migrations', 'schema_migrations')
       AND pg_catalog.pg_table_is_visible(pg_class.oid)
       AND ARRAY['version integer', 'checksum text', 'applied_at timestamp with time zone']
           OPERATOR(pg_catalog.<@)
           ARRAY(SELECT attname::text || ' ' || pg_catalog.format_type(atttypid, atttypmod)
                   FROM pg_attribute
                  WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped)
     ORDER BY relname
"""


class AppliedMigration(NamedTuple):
    """A row of the table."""

    version: int
    checksum: str


READ_ROWS = "SELECT version, checksum FROM orchestrator_migrations ORDER BY version"
READ_OLD_ROWS = "SELECT version, checksum FROM schema_migrations ORDER BY version"


def find_history(conn: Connection, known: Mapping[int, str]) -> History | None:
    """Return the history of this database; None: it has none. known: our checksums, by version."""
    for found in query(conn, args_row(HistoryTable), FIND_TABLES):
        statement = READ_ROWS if found.table == TABLE else READ_OLD_ROWS
        applied = dict(query(conn, args_row(AppliedMigration), statement))
        if found.table == TABLE or not applied or applied.items() & known.items():
            return History(*found, applied)
    return None


CREATE_TABLE = """
    CREATE TABLE orchestrator_migrations (
        version    INTEGER PRIMARY KEY,
        checksum   TEXT NOT NULL,
        applied_at TIMESTAMPTZ NOT NULL DEFAULT NOW()
    )
"""
RENAME_OLD_TABLE = "ALTER TABLE schema_migrations RENAME TO orchestrator_migrations"


def prepare_table(conn: Connection, history: History | None) -> None:
    """Create the table, or give the one of an earlier release its name, unless it is there."""
    if history is None:
        conn.execute(CREATE_TABLE)
    elif history.table == OLD_TABLE:
        conn.execute(RENAME_OLD_TABLE)


RECORD_MIGRATION = """
    INSERT INTO orchestrator_migrations (version, checksum) VALUES (%(version)s, %(checksum)s)
"""


def record_migration(conn: Connection, version: int, checksum: str) -> None:
    """Note a migration, in the transaction that runs it."""
    conn.execute(RECORD_MIGRATION, {"version": version, "checksum": checksum})


# ---- names ----------------------------------------------------------------------------------------

CREATED = re.compile(
    r"^CREATE (?:UNIQUE )?(TABLE|INDEX|SEQUENCE|VIEW|TYPE) (?!IF\b)(\w+)", re.MULTILINE
)
RENAMED = re.compile(r"^ALTER \w+ \w+ RENAME TO (\w+)", re.MULTILINE)


def tables_of(statements: Iterable[str]) -> list[str]:
    """Return the tables that migrations create; not `workers`, which may be there before."""
    return [name for sql in statements for kind, name in CREATED.findall(sql) if kind == "TABLE"]


def names_of(statements: Iterable[str]) -> list[str]:
    """Return all names that migrations give: of tables, of indexes."""
    return [
        name
        for sql in statements
        for name in [name for _, name in CREATED.findall(sql)] + RENAMED.findall(sql)
    ]


class TakenName(NamedTuple):
    """Something in the schema where we would create. kind: table, view, type, ..."""

    kind: str
    name: str


FIND_TAKEN = """
    SELECT CASE relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence'
                        WHEN 'i' THEN 'index' WHEN 'I' THEN 'index' WHEN 'c' THEN 'type'
                        WHEN 'f' THEN 'foreign table' ELSE 'table' END, relname::text
      FROM pg_class
      JOIN pg_namespace ON pg_namespace.oid = relnamespace
     WHERE nspname = current_schema() AND relname = ANY(%(names)s)
 UNION ALL
    SELECT 'type', typname
      FROM pg_type
      JOIN pg_namespace ON pg_namespace.oid = typnamespace
     WHERE nspname = current_schema() AND typname = ANY(%(names)s) AND typrelid = 0::oid
"""


def find_taken(conn: Connection, names: list[str]) -> list[TakenName]:
    """Return which of the names are taken in the schema where we would create them."""
    return query(conn, args_row(TakenName), FIND_TAKEN, {"names": names})


class MisplacedTable(NamedTuple):
    """A table of ours that is not found where the others are. schema: None: nowhere."""

    name: str
    schema: str | None


FIND_MISPLACED = """
    SELECT name, nspname
      FROM pg_catalog.unnest(%(tables)s::text[]) AS name
      LEFT JOIN pg_class ON pg_class.oid = pg_catalog.to_regclass(name)::oid
      LEFT JOIN pg_namespace ON pg_namespace.oid = relnamespace
     WHERE nspname IS DISTINCT FROM %(schema)s
     ORDER BY name
"""


def find_misplaced(conn: Connection, tables: list[str], schema: str) -> list[MisplacedTable]:
    """Return those of the tables that our search_path does not find in this schema."""
    return query(conn, args_row(MisplacedTable), FIND_MISPLACED, {"tables": tables, "schema": schema})
