"""What an administrator sets for a server, a database or a role changes nothing that we depend on."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import psycopg
import pytest
from psycopg.rows import tuple_row

from orchestrator.embedded import EmbeddedPostgres
from outbox import Connection, connect, query, transaction
from outbox.admin import snapshot
from testkit.empty_installation import run_command
from testkit.eventually import eventually
from testkit.system import System
from tests.faults.postgres_servers import pooler
from tests.faults.test_postgres import cancel, ghost, waits

pytestmark = [pytest.mark.fault(66), pytest.mark.xdist_group("own servers: PostgreSQL")]

# Set for the database: hostile, but each of them allowed.
HOSTILE = {
    "client_min_messages": "error",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Pacific/Kiritimati",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "standard_conforming_strings": "off",
    "escape_string_warning": "off",
    "backslash_quote": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "xmloption": "document",
    "quote_all_identifiers": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "exit_on_error": "on",
    "row_security": "on",
    "synchronous_commit": "off",
    "session_replication_role": "replica",
    "check_function_bodies": "off",
    "statement_timeout": "400ms",
    "transaction_timeout": "500ms",
    "idle_in_transaction_session_timeout": "400ms",
    "idle_session_timeout": "1s",
    "lock_timeout": "1ms",
    "search_path": 'nowhere, "$user", public',
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_indexscan": "off",
    "enable_sort": "off",
    "jit_above_cost": "0",
    "work_mem": "64kB",
}
WANTED = {
    "client_min_messages": "warning",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "Pacific/Kiritimati",  # the database's, as that of its columns
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "quote_all_identifiers": "off",
    "default_transaction_isolation": "read committed",
    "transaction_isolation": "read committed",
    "exit_on_error": "off",
    "row_security": "off",
    "synchronous_commit": "on",
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "10s",
    "idle_session_timeout": "0",
    "lock_timeout": "10s",
}


@pytest.fixture
def hostile(own: System) -> System:
    """An installation whose database sets everything otherwise."""
    database = own.query("SELECT current_database()")[0][0]
    known = {name for (name,) in own.query("SELECT name FROM pg_settings")}
    for name, value in HOSTILE.items():
        if name in known:
            to = value if name == "search_path" else f"'{value}'"
            own.query(f"ALTER DATABASE {database} SET {name} = {to}")
    return own


COMMANDS: Sequence[Sequence[str]] = (
    ["status"],
    ["audit"],
    ["dlq", "list"],
    ["parked", "list"],
    ["migrate", "--check"],
    ["setup"],
)


DECIDED_AGAIN = "SELECT NOT bool_or(decide_again) FROM consumed_offsets"


def test_everything_works_under_hostile_settings(hostile: System) -> None:
    consumer, relay = hostile.start("consumer"), hostile.start("relay")
    (scenario, *_) = hostile.submit(200)
    hostile.check_exactly_once(200)
    eventually(lambda: "outbox_pending_rows{" in relay.get("/metrics"))
    consumer.stop()
    hostile.query("UPDATE consumed_offsets SET next_offset = 0, decide_again = true")
    again = hostile.start("consumer")  # meets the unique constraint, and goes on in its session
    eventually(lambda: hostile.query(DECIDED_AGAIN) == [(True,)])
    for command in [*COMMANDS, ["explain", str(scenario)], ["doctor"]]:
        done = run_command(hostile.environ, *command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
    hostile.check_exactly_once(200)
    for process in (again, relay):
        assert not process.logged('waiting"'), process.log.read_text()
        process.stop()


def test_a_consumer_works_through_a_pooler_under_hostile_settings(
    hostile: System, postgres: EmbeddedPostgres
) -> None:
    with pooler(postgres, "transaction") as pgbouncer:
        consumer = hostile.start("consumer", DATABASE_URL=pgbouncer.url(hostile))
        hostile.start("relay")
        hostile.submit(50)
        hostile.check_exactly_once(50)
        assert not consumer.logged('"consumer waiting"')
        consumer.stop()


SHOW = "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%(names)s)"


def shown(rows: Iterable[tuple[object, ...]]) -> dict[str, str]:
    """Return the settings by name."""
    return {str(name): str(value) for name, value in rows}


@contextmanager
def url_in(mode: str, system: System, postgres: EmbeddedPostgres) -> Iterator[str]:
    """Yield the address of the installation's database: direct, or through a pooler in a mode."""
    if mode == "direct":
        yield system.settings.database_url
        return
    with pooler(postgres, mode) as pgbouncer:
        yield pgbouncer.url(system)


MODES = ["direct", "session", "transaction"]


@pytest.mark.parametrize("mode", MODES)
def test_each_form_of_session_has_what_we_depend_on(
    hostile: System, postgres: EmbeddedPostgres, mode: str
) -> None:
    values = {"names": list(WANTED)}
    with url_in(mode, hostile, postgres) as url, closing(connect(url, "test")) as conn:
        for _ in range(3):
            alone = shown(query(conn, tuple_row, SHOW, values))
            assert alone.items() <= WANTED.items(), alone
            assert len(alone) >= len(WANTED) - 1  # transaction_timeout is new in 17
            assert shown(conn.execute(SHOW, values).fetchall()) == alone
            with transaction(conn):
                assert shown(conn.execute(SHOW, values).fetchall()) == alone
            with snapshot(conn):
                within = shown(query(conn, tuple_row, SHOW, values))
            assert within == alone | {"transaction_isolation": "repeatable read"}


@pytest.mark.parametrize("mode", MODES)
def test_a_commit_that_was_not_confirmed_cannot_be_silenced(
    hostile: System, postgres: EmbeddedPostgres, mode: str
) -> None:
    def commit(conn: Connection) -> None:
        with transaction(conn):
            conn.execute("UPDATE outbox_lane SET epoch = epoch + 1")

    with (
        url_in(mode, hostile, postgres) as url,
        closing(connect(url, "test commit")) as conn,
        ghost(postgres),
        ThreadPoolExecutor(1) as thread,
    ):
        done = thread.submit(commit, conn)
        eventually(lambda: waits(hostile, "test commit") == {"SyncRep"})
        cancel(hostile, "test commit")
        with pytest.raises(psycopg.OperationalError, match="not confirmed by the synchronous standby"):
            done.result(20)
