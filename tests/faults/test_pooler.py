"""PgBouncer in front of Postgres: what works through it works, what cannot is refused by name."""

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from orchestrator.embedded import EmbeddedPostgres, Servers
from outbox.lane_rows import read_identity
from outbox.membership import join, read_membership
from outbox.pooler import TransactionPoolingDetected
from testkit.empty_installation import bare_system, run_command
from testkit.eventually import eventually
from testkit.system import Running, System, take
from tests.faults.postgres_servers import pooler

pytestmark = [pytest.mark.fault(33), pytest.mark.xdist_group("own servers: PostgreSQL")]


def counted(consumer: Running, result: str) -> float:
    """Return how many records the consumer has counted as this."""
    series = rf'^orchestrator_records_total{{result="{result}"}} (\S+)'
    return float(re.findall(series, consumer.get("/metrics"), re.MULTILINE)[0])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"default_pool_size": "1"},
        {"server_round_robin": "1", "min_pool_size": "3"},
    ],
    ids=["quiet", "one process", "in turn"],
)
def test_the_relay_detects_a_pooler_in_transaction_mode(
    own: System, postgres: EmbeddedPostgres, settings: dict[str, str]
) -> None:
    own.accept(10)
    with pooler(postgres, "transaction", **settings) as pgbouncer:
        relay = own.start("relay", DATABASE_URL=pgbouncer.url(own))
        eventually(lambda: "PgBouncer" in relay.get("/readyz"))
        assert '"ready": false' in relay.get("/readyz")
        assert relay.logged("connect it directly, or through a pool in session mode")
        assert own.query("SELECT sum(epoch), sum(batch_number) FROM outbox_lane") == [(0, 0)]
        assert own.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
        relay.stop()
    own.start("relay")  # as it was told to be
    own.check_exactly_once(10)


def test_a_pooler_that_changes_its_mode_is_found_out_at_work(
    own: System, postgres: EmbeddedPostgres
) -> None:
    with pooler(postgres, "session") as pgbouncer:
        relay = own.start("relay", DATABASE_URL=pgbouncer.url(own))
        own.accept(10)
        own.check_exactly_once(10)
        pgbouncer.kill()
        pgbouncer.settings["pool_mode"] = "transaction"
        pgbouncer.start()
        eventually(lambda: "PgBouncer" in relay.get("/readyz"))
        relay.stop()
    own.accept(10)
    own.start("relay")
    own.check_exactly_once(20)


def test_a_lock_that_is_not_where_the_session_is_ends_the_membership(own: System) -> None:
    with closing(own.connect()) as member:
        identity = read_identity(member)
        join(member, identity)
        assert read_membership(member, identity).members == 1
        member.execute("SELECT pg_advisory_unlock_all()")  # as seen from another process of a pool
        with pytest.raises(TransactionPoolingDetected):
            read_membership(member, identity)


@pytest.mark.slow
def test_consumers_work_through_a_pooler_in_transaction_mode(
    own: System, postgres: EmbeddedPostgres
) -> None:
    with pooler(postgres, "transaction") as pgbouncer:
        through = {"DATABASE_URL": pgbouncer.url(own), "BATCH_SIZE": "5"}
        own.start("relay")
        consumers = [own.start("consumer", **through), own.start("consumer", **through)]
        for turn in range(3):
            own.submit(100)
            eventually(partial(has_workers, own, 100 * (turn + 1)), 30)
            consumers[-2].kill()  # the next one is lent what this one used
            consumers.append(own.start("consumer", **through))
        own.submit(100)
        own.check_exactly_once(400)
        for consumer in consumers:
            assert not consumer.logged("prepared statement")
        for consumer in consumers[-2:]:
            assert counted(consumer, "duplicate") == 0
            consumer.stop()


@pytest.mark.slow
def test_a_consumer_frozen_in_a_transaction_of_the_pools_loses_it(
    own: System, postgres: EmbeddedPostgres
) -> None:
    with pooler(postgres, "transaction", default_pool_size="3", server_round_robin="1") as pgbouncer:
        through = {"DATABASE_URL": pgbouncer.url(own)}
        frozen = own.start("consumer", crash_at="consumer.enqueued:1:freeze", **through)
        own.start("relay")
        own.submit(20)
        frozen.wait_frozen()
        assert own.query(IN_TRANSACTION) == [(1,)]
        eventually(lambda: own.query(IN_TRANSACTION) == [(0,)])  # after 10 s, as we ask the server
        frozen.thaw()
        own.check_exactly_once(20)
        with closing(psycopg.connect(pgbouncer.url(own), autocommit=True)) as stranger:
            for _ in range(6):  # whatever process the pool lends
                assert stranger.execute("SHOW lock_timeout", prepare=False).fetchone() == ("0",)


IN_TRANSACTION = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"


def has_workers(system: System, workers: int) -> bool:
    return sum(system.statuses().values()) >= workers


def test_both_work_through_a_pooler_in_session_mode(own: System, postgres: EmbeddedPostgres) -> None:
    with pooler(postgres, "session") as pgbouncer:
        processes = [own.start(role, DATABASE_URL=pgbouncer.url(own)) for role in ("consumer", "relay")]
        own.submit(100)
        own.check_exactly_once(100)
        for process in processes:
            process.stop()


# ---- commands -------------------------------------------------------------------------------------

REFUSED = "a pooler in transaction mode (PgBouncer?) stands before Postgres"
COMMANDS: dict[tuple[str, ...], tuple[int, str]] = {
    ("setup",): (0, ""),
    ("migrate", "--check"): (0, ""),
    ("status",): (0, ""),
    ("doctor",): (1, REFUSED),
    ("audit",): (1, REFUSED),
    ("explain", "00000000-0000-4000-8000-000000000000"): (1, "is unknown"),
    ("dlq", "list"): (0, ""),
    ("dlq", "discard", "--all", "--yes"): (0, ""),
    ("parked", "list"): (0, ""),
    ("parked", "discard", "--all", "--yes"): (0, ""),
    ("parked", "retry", "--all", "--yes"): (1, REFUSED),
    ("repair", "lane", "all", "--yes"): (1, REFUSED),
    ("repair", "partition", "all", "--yes"): (0, ""),
    ("submit", "rtsp://camera/1", "--count", "3"): (0, ""),
}
# PgBouncer itself keeps these as the client of the moment has them.
TRACKED = ["application_name", "client_encoding", "DateStyle", "IntervalStyle", "TimeZone"]
LEFT_BEHIND = """
    SELECT name || ' = ' || setting
      FROM pg_settings
     WHERE source = 'session' AND name <> ALL(%s) AND name <> 'standard_conforming_strings'
 UNION ALL
    SELECT 'prepared ' || left(statement, 40) FROM pg_prepared_statements
 UNION ALL
    SELECT 'temporary ' || relname FROM pg_class WHERE relpersistence = 't'
 UNION ALL
    SELECT 'lock ' || objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
"""


def left_behind(url: str) -> list[str]:
    """Return what is set, prepared or locked in the one server session of the pool."""
    with closing(psycopg.connect(url, autocommit=True, prepare_threshold=None)) as stranger:
        return [str(one) for (one,) in stranger.execute(LEFT_BEHIND, [TRACKED]).fetchall()]


def test_commands_leave_nothing_behind_in_the_sessions_of_a_pool(
    own: System, postgres: EmbeddedPostgres
) -> None:
    consumer, relay = own.start("consumer"), own.start("relay")
    own.submit(10)
    own.check_exactly_once(10)
    with pooler(postgres, "transaction", default_pool_size="1") as pgbouncer:
        url = pgbouncer.url(own)
        assert left_behind(url) == []
        for command, (code, words) in COMMANDS.items():
            done = run_command(own.environ | {"DATABASE_URL": url}, *command)
            assert done.returncode == code, (command, done.stdout, done.stderr)
            assert words in done.stdout + done.stderr
            assert left_behind(url) == [], command
    for process in (consumer, relay):
        process.stop()


def test_a_relay_that_is_refused_leaves_nothing_behind(own: System, postgres: EmbeddedPostgres) -> None:
    with pooler(postgres, "transaction", default_pool_size="1") as pgbouncer:
        relay = own.start("relay", DATABASE_URL=pgbouncer.url(own))
        eventually(lambda: "PgBouncer" in relay.get("/readyz"))
        eventually(lambda: "outbox_deferred_rows 0.0" in relay.get("/metrics"))  # the gauges' session
        relay.stop()
        assert left_behind(pgbouncer.url(own)) == []


def test_options_that_a_pooler_refuses_are_named(own: System, postgres: EmbeddedPostgres) -> None:
    with pooler(postgres, "transaction") as pgbouncer:
        url = make_conninfo(pgbouncer.url(own), options="-c search_path=public")
        refused = run_command(own.environ | {"DATABASE_URL": url}, "status")
    assert refused.returncode == 1, refused.stderr
    assert "startup parameter" in refused.stderr
    assert "remove it from DATABASE_URL" in refused.stderr


@pytest.mark.parametrize("schema", ["", "vap"])
def test_setup_works_through_a_pooler_in_transaction_mode(
    servers: Servers, postgres: EmbeddedPostgres, tmp_path: Path, schema: str
) -> None:
    with (
        bare_system(Servers(postgres.url, servers.bootstrap_servers), tmp_path) as bare,
        pooler(postgres, "transaction", default_pool_size="3", server_round_robin="1") as pgbouncer,
    ):
        url = pgbouncer.url(bare)
        environ = bare.environ | {"DATABASE_URL": url, "LANES": "7", "DATABASE_SCHEMA": schema}
        vap = System(environ, tmp_path)
        with ThreadPoolExecutor(3) as threads:
            runs = [threads.submit(run_command, environ, "setup") for _ in range(3)]
        assert [run.result().returncode for run in runs] == [0, 0, 0], [r.result().stderr for r in runs]
        assert bare.query(f"SELECT count(*) FROM {schema or 'public'}.outbox_lane") == [(7,)]  # noqa: S608
        with vap.consumer() as session:
            vap.submit(3)
            take(session, 3)
        for _ in range(6):  # whatever process the pool lends
            assert left_behind(url) == []
