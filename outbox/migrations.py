"""The tables of the library: the numbered files of outbox/schema/, in order, each once.

The service of this repository has a runner of its own, for these files and its own ones: it reads and
locks as this one does.
"""

from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

from psycopg.rows import args_row
from psycopg.sql import SQL, Literal

from outbox.errors import DatabaseNotReady
from outbox.postgres import Connection, Session, query, scalar, transaction

SCHEMA = files("outbox") / "schema"
HISTORY = "history.sql"


class Migration(NamedTuple):
    """One file."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Return the SHA-256 of the text, in hex."""
        return sha256(self.sql.encode()).hexdigest()


def read_migration_files(*folders: Traversable) -> list[Migration]:
    """Return the numbered files of folders, by their number."""
    found = [
        file
        for folder in folders
        for file in folder.iterdir()
        if file.name[:3].isdigit() and file.name.endswith(".sql")
    ]
    return sorted(
        Migration(int(file.name[:3]), file.name, file.read_text(encoding="utf-8")) for file in found
    )


def read_migrations() -> list[Migration]:
    """Return the library's files, by their number."""
    return read_migration_files(SCHEMA)


SCRIPTED_LANES = SQL("SET outbox.lanes = {};\n")
SCRIPTED_RECORD = SQL("INSERT INTO outbox_migrations (version, checksum) VALUES ({}, {});\n")


def write_script(lanes: int, after: int = 0) -> str:
    """Return what `migrate` does, for any tool that runs SQL: it begins and commits the transaction.

    after: the version that is there; 0: none.
    """
    script = SCRIPTED_LANES.format(Literal(lanes)).as_string(None)
    script += (SCHEMA / HISTORY).read_text(encoding="utf-8")
    for one in read_migrations():
        if one.version > after:
            record = SCRIPTED_RECORD.format(Literal(one.version), Literal(one.checksum)).as_string(None)
            script += f"\n-- {one.name}\n{one.sql}{record}"
    return script


class Found(NamedTuple):
    """What is in the schema of our tables, or else on the search_path."""

    has_outbox: bool
    has_history: bool


# Another schema of the search_path may have the tables of another service.
FIND = """
    SELECT pg_catalog.to_regclass(pg_catalog.concat(own.prefix, 'outbox')) IS NOT NULL,
           pg_catalog.to_regclass(pg_catalog.concat(own.prefix, 'outbox_migrations')) IS NOT NULL
      FROM (SELECT pg_catalog.quote_ident(%(schema)s::text) || '.') AS own (prefix)
"""


class AppliedMigration(NamedTuple):
    """A row of the history."""

    version: int
    checksum: str


READ_APPLIED = "SELECT version, checksum FROM outbox_migrations"


def read_pending(conn: Connection) -> list[Migration]:
    """Return the files that the database has not had. Raises DatabaseNotReady if it cannot be known."""
    migrations = read_migrations()
    schema = own_schema(conn)
    ((has_outbox, has_history),) = query(conn, args_row(Found), FIND, {"schema": schema})
    if not has_history:
        if not has_outbox:
            return migrations
        raise DatabaseNotReady(
            "table outbox is there, and outbox_migrations is not: another tool made it and must upgrade"
            " it; `python -m outbox schema --after VERSION` prints what is newer than VERSION"
        )
    applied = dict(query(conn, args_row(AppliedMigration), READ_APPLIED))
    known = {one.version: one for one in migrations}
    if newer := sorted(applied.keys() - known.keys()):
        raise DatabaseNotReady(
            f"the database has migration {newer[-1]:03}, this code knows none after {max(known):03}:"
            " install the newer release"
        )
    for version, checksum in applied.items():
        if known[version].checksum != checksum:
            raise DatabaseNotReady(
                f"{known[version].name} is not the file that this database had: install the release"
                " that has it"
            )
    return [one for one in migrations if one.version not in applied]


def own_schema(conn: Connection) -> str | None:
    """Return the schema of our tables; None: that of the search_path."""
    return (isinstance(conn, Session) and conn.schema) or None


MIGRATION_LOCK = 0x6F7574_6D6967  # "outmig": of two that start together one waits
LOCK = """
    SELECT pg_catalog.set_config('lock_timeout', '0', true),  -- another runner may take long
           pg_catalog.pg_advisory_xact_lock(%(lock)s),
           pg_catalog.set_config('lock_timeout', '10s', true)  -- a table's lock is another matter
"""


def lock_runner(conn: Connection, number: int) -> None:
    """Wait until no other runner of this number is at work; the caller's transaction holds the lock."""
    conn.execute(LOCK, {"lock": number})


SET_LANES = "SELECT pg_catalog.set_config('outbox.lanes', %(lanes)s, true)"


def set_lanes(conn: Connection, lanes: int) -> None:
    """Tell the first migration of this transaction how many lanes to make."""
    conn.execute(SET_LANES, {"lanes": str(lanes)})


RECORD = "INSERT INTO outbox_migrations (version, checksum) VALUES (%(version)s, %(checksum)s)"
HAS_SCHEMA = """
    SELECT current_schema() IS NOT NULL AND current_schema() = coalesce(%(schema)s, current_schema())
"""


def migrate(conn: Connection, lanes: int) -> list[Migration]:
    """Run the pending files, all in one transaction; return them. lanes: for the first time alone.

    Raises DatabaseNotReady before anything is changed.
    """
    with transaction(conn):
        lock_runner(conn, MIGRATION_LOCK)
        pending = read_pending(conn)
        schema = own_schema(conn)
        if not scalar(conn, bool, HAS_SCHEMA, {"schema": schema}):
            raise DatabaseNotReady(
                f"schema {schema or 'of the search_path'} is missing, or this login may not use it: run"
                " CREATE SCHEMA, or GRANT USAGE ON SCHEMA"
            )
        if pending:
            conn.execute((SCHEMA / HISTORY).read_bytes())
            set_lanes(conn, lanes)
        for one in pending:
            conn.execute(one.sql.encode())
            conn.execute(RECORD, {"version": one.version, "checksum": one.checksum})
    return pending


def check_current(conn: Connection) -> None:
    """Raise DatabaseNotReady unless the database has had these files, and no others."""
    if pending := read_pending(conn):
        names = ", ".join(one.name for one in pending)
        raise DatabaseNotReady(f"the database lacks {names}: run `python -m outbox migrate`")
