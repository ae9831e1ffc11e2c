"""The migration runner: NNN_name.sql of schema/ and outbox/schema/, in order.

Each migration runs once, in a transaction of its own.
"""

from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from psycopg.rows import args_row
from psycopg.sql import SQL, Literal

from outbox import Connection, DatabaseNotReady, query, scalar, transaction

# Advisory lock of the runner: two that start together migrate one after the other.
MIGRATION_LOCK = 0x6F7263_6D6967  # "orcmig"


class SchemaBehind(DatabaseNotReady):
    """The database lacks migrations; `orchestrator setup` or `orchestrator migrate` runs them."""


class SchemaRefused(DatabaseNotReady):
    """The database's migrations are not those of this code: newer, or changed after the fact."""


class Migration(NamedTuple):
    """One file of schema/."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Return the SHA-256 of the text, in hex."""
        return sha256(self.sql.encode()).hexdigest()


def read_migrations() -> list[Migration]:
    """Read the service's files and the library's: one sequence of numbers."""
    packaged = files("orchestrator") / "schema"
    service = packaged if packaged.is_dir() else Path(__file__).parents[2] / "schema"
    found = [
        file
        for folder in (service, files("outbox") / "schema")
        for file in folder.iterdir()
        if file.name[:3].isdigit() and file.name.endswith(".sql")
    ]
    return sorted(
        Migration(int(file.name[:3]), file.name, file.read_text(encoding="utf-8")) for file in found
    )


CREATE_HISTORY = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        version    INTEGER PRIMARY KEY,
        checksum   TEXT NOT NULL,
        applied_at TIMESTAMPTZ NOT NULL DEFAULT NOW()
    )
"""
RECORD_MIGRATION = """
    INSERT INTO schema_migrations (version, checksum) VALUES (%(version)s, %(checksum)s)
"""


def migrate(conn: Connection, lanes: int) -> list[Migration]:
    """Run the pending migrations; return them. lanes: rows of outbox_lane that the first run inserts.

    Raises SchemaRefused before it changes anything.
    """
    conn.execute("SET lock_timeout = 0")  # another runner may take long
    conn.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
    conn.execute("SET lock_timeout = '10s'")  # a table's lock is another matter
    try:
        pending = read_pending(conn)
        conn.execute(CREATE_HISTORY)
        conn.execute("SELECT set_config('outbox.lanes', %s, false)", (str(lanes),))
        for migration in pending:
            with transaction(conn):
                conn.execute(migration.sql.encode())
                values = {"version": migration.version, "checksum": migration.checksum}
                conn.execute(RECORD_MIGRATION, values)
    finally:
        conn.execute("SELECT pg_advisory_unlock(%s)", (MIGRATION_LOCK,))
    return pending


SCRIPTED_RECORD = SQL("INSERT INTO schema_migrations (version, checksum) VALUES ({}, {});")


def write_script() -> str:
    """Return what `migrate` does to an empty database, for psql: outbox.lanes, or else 4 lanes."""
    script = f"{CREATE_HISTORY.strip()};\n"
    for one in read_migrations():
        record = SCRIPTED_RECORD.format(Literal(one.version), Literal(one.checksum)).as_string(None)
        script += f"\nBEGIN;\n-- {one.name}\n{one.sql}{record}\nCOMMIT;\n"
    return script


def read_pending(conn: Connection) -> list[Migration]:
    """Compare the files with the database; return those that have not run. Raises SchemaRefused."""
    migrations = read_migrations()
    applied = _read_history(conn)
    _check_known(migrations, applied)
    return [migration for migration in migrations if migration.version not in applied]


def check_current(conn: Connection) -> None:
    """Raise SchemaBehind or SchemaRefused unless the database has exactly these migrations."""
    if pending := read_pending(conn):
        names = ", ".join(migration.name for migration in pending)
        raise SchemaBehind(f"the database lacks {names}: run `orchestrator setup`")


class AppliedMigration(NamedTuple):
    """A row of schema_migrations."""

    version: int
    checksum: str


HISTORY_EXISTS = "SELECT to_regclass('schema_migrations') IS NOT NULL"
READ_HISTORY = "SELECT version, checksum FROM schema_migrations ORDER BY version"


def _read_history(conn: Connection) -> dict[int, str]:
    """Return the checksum of each migration that the database has had."""
    exists = scalar(conn, bool, HISTORY_EXISTS)
    return dict(query(conn, args_row(AppliedMigration), READ_HISTORY) if exists else [])


def _check_known(migrations: Sequence[Migration], applied: dict[int, str]) -> None:
    """Raise SchemaRefused if the database has a migration that this code does not have."""
    known = {migration.version: migration for migration in migrations}
    if newer := sorted(applied.keys() - known.keys()):
        raise SchemaRefused(
            f"the database has migration {newer[-1]:03}, this code knows none after"
            f" {max(known):03}: run the newer release, or restore the database"
        )
    for version, checksum in applied.items():
        if known[version].checksum != checksum:
            raise SchemaRefused(
                f"{known[version].name} was changed after it was applied to this database:"
                " restore the file, and write changes as a new migration"
            )
