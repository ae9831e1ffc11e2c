"""The migration runner: NNN_name.sql of schema/ and outbox/schema/, in order.

Each migration runs once, in a transaction of its own, which begins with the runner's lock: two that
start together take turns, through a pooler, too.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from psycopg.sql import SQL, Literal

from orchestrator.contract.workers_table import adopt_workers, check_workers
from orchestrator.program import PROGRAM
from orchestrator.runtime import history
from orchestrator.runtime.database import check_place, check_server, create_schema, own_schema
from orchestrator.runtime.history import History
from outbox import Connection, DatabaseNotReady, transaction
from outbox.admin import Migration, lock_runner, read_migration_files, set_lanes

# Advisory lock of the runner: two that start together migrate one after the other.
MIGRATION_LOCK = 0x6F7263_6D6967  # "orcmig"


class SchemaBehind(DatabaseNotReady):
    """The database lacks migrations; `orchestrator setup` or `orchestrator migrate` runs them."""


class SchemaRefused(DatabaseNotReady):
    """The database's tables are not those of this code: newer, changed, elsewhere, or another's."""


def read_migrations() -> list[Migration]:
    """Read the service's files and the library's: one sequence of numbers."""
    packaged = files("orchestrator") / "schema"
    service = packaged if packaged.is_dir() else Path(__file__).parents[2] / "schema"
    return read_migration_files(service, files("outbox") / "schema")


def migrate(conn: Connection, lanes: int) -> list[Migration]:
    """Run the pending migrations; return them. lanes: rows of outbox_lane that the first run inserts.

    Raises DatabaseNotReady before it changes anything.
    """
    check_server(conn)
    done = []
    while migration := run_next(conn, lanes):
        done.append(migration)
    check_workers(conn)
    return done


# Where the search_path has the platform's table, no second one is created in its first schema.
CREATES_WORKERS = "001_workers.sql"


def run_next(conn: Connection, lanes: int) -> Migration | None:
    """Run the first pending migration, in one transaction; return it. None: there is none."""
    with transaction(conn):
        lock_runner(conn, MIGRATION_LOCK)
        found, pending = compare(conn)
        adopted = adopt_workers(conn)
        if pending:
            create_schema(conn)
            check_names(conn, found, pending)
        history.prepare_table(conn, found)
        if not pending:
            return None
        first = pending[0]
        set_lanes(conn, lanes)
        if not (adopted and first.name == CREATES_WORKERS):
            conn.execute(first.sql.encode())
        history.record_migration(conn, first.version, first.checksum)
    return first


# As adopt_workers decides, without its look at the columns: the processes look at them.
SCRIPTED_WORKERS = """\
DO $workers$
BEGIN
    IF pg_catalog.to_regclass('workers') IS NOT NULL THEN
        RAISE NOTICE 'table workers is adopted as it is';
    ELSIF EXISTS (SELECT FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
                   WHERE relname = 'workers' AND relkind IN ('r', 'p', 'v', 'm', 'f')
                     AND attname IN ('worker_id', 'scenario_uuid')) THEN
        RAISE EXCEPTION 'the search_path does not show the schema in which there is a table workers';
    ELSE
{}
    END IF;
END
$workers$;
"""
SCRIPTED_RECORD = SQL("INSERT INTO orchestrator_migrations (version, checksum) VALUES ({}, {});")


def write_script() -> str:
    """Return what `migrate` does to a database without our tables, for psql.

    outbox.lanes sets the number of lanes, or else there are 4. A table `workers` is adopted.
    """
    script = f"{history.CREATE_TABLE.strip()};\n"
    for one in read_migrations():
        record = SCRIPTED_RECORD.format(Literal(one.version), Literal(one.checksum)).as_string(None)
        sql = SCRIPTED_WORKERS.format(one.sql) if one.name == CREATES_WORKERS else one.sql
        script += f"\nBEGIN;\n-- {one.name}\n{sql}{record}\nCOMMIT;\n"
    return script


def compare(conn: Connection) -> tuple[History | None, list[Migration]]:
    """Compare the files with the database; return its history and what has not run.

    Raises SchemaRefused.
    """
    migrations = read_migrations()
    found = history.find_history(conn, {one.version: one.checksum for one in migrations})
    if found is None:
        return None, migrations
    schema = own_schema(conn)
    if schema not in {"", found.schema}:
        raise SchemaRefused(
            f"our tables are in schema {found.schema}, and DATABASE_SCHEMA is {schema}: unset it; or"
            f" move them: ALTER TABLE ... SET SCHEMA {schema}"
        )
    _check_known(migrations, found.applied)
    return found, [one for one in migrations if one.version not in found.applied]


def read_pending(conn: Connection) -> list[Migration]:
    """Return the migrations that have not run. Raises SchemaRefused."""
    return compare(conn)[1]


def check_current(conn: Connection) -> None:
    """Raise SchemaBehind or SchemaRefused unless the database has exactly these migrations."""
    found, pending = compare(conn)
    if pending or found is None:
        names = ", ".join(migration.name for migration in pending)
        raise SchemaBehind(f"the database lacks {names}: run `{PROGRAM} setup`")
    tables = history.tables_of(one.sql for one in read_migrations())
    for table, schema in history.find_misplaced(conn, tables, found.schema):
        where = f"it is in schema {schema}" if schema else "it is missing"
        raise SchemaRefused(
            f"table {table} is not beside {found.table}, in schema {found.schema}: {where}: restore it,"
            f" or set DATABASE_SCHEMA={found.schema}"
        )


def check_names(conn: Connection, found: History | None, pending: Sequence[Migration]) -> None:
    """Raise SchemaRefused or DatabaseNotReady unless our tables can be created where we would."""
    place = check_place(conn)
    if found and found.schema != place:
        raise SchemaRefused(
            f"our tables are in schema {found.schema}, and this login creates in {place}: set"
            f" DATABASE_SCHEMA={found.schema}"
        )
    names = history.names_of(one.sql for one in pending)
    if taken := history.find_taken(conn, names + [history.TABLE] * (found is None)):
        listed = ", ".join(f"{kind} {name}" for kind, name in taken)
        if found and not found.applied:
            raise SchemaRefused(
                f"schema {place} has {listed}, but {found.table} is empty: is it a copy without rows"
                " (pg_dump --schema-only)? Copy the rows, too, or drop these tables"
            )
        raise SchemaRefused(
            f"schema {place} has {listed}, of another program: set DATABASE_SCHEMA=orchestrator, and"
            " our tables get a schema of their own"
        )


def _check_known(migrations: Sequence[Migration], applied: Mapping[int, str]) -> None:
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
