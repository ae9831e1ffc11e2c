"""Postgres in trouble while both processes work: what cannot be known is found out, never assumed."""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from orchestrator.embedded import EmbeddedPostgres, Servers
from orchestrator.embedded.server import HOST
from outbox import Connection
from testkit.empty_installation import run_command
from testkit.eventually import eventually
from testkit.private_servers import answer, is_ready
from testkit.proxy import Rule, cut_after, proxy
from testkit.system import OwnedLane, Running, System, take
from testkit.wire_protocol import PostgresConversation
from tests.faults.postgres_servers import (
    fill,
    installed,
    own_postgres,
    run,
    set_server,
    small_volume,
)

pytestmark = pytest.mark.xdist_group("own servers: PostgreSQL")

RESUME_S = 45  # back-off, a dead member's session
CONSUMER, LANE = "orchestrator consumer", "outbox relay"


@pytest.fixture
def own(postgres: EmbeddedPostgres, servers: Servers, tmp_path: Path) -> Iterator[System]:
    """An installation with one lane, on a Postgres of this module's own."""
    on = Servers(postgres.url, servers.bootstrap_servers)
    with installed(on, tmp_path, lanes=1) as system:
        yield system


def waits(system: System, name: str) -> set[str]:
    """Return what the sessions of that name wait for inside the server."""
    found = system.query(
        "SELECT wait_event FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = %s AND state = 'active'",
        name,
    )
    return {str(event) for (event,) in found}


def accepted(system: System) -> int:
    """Count the workers that others can see."""
    return sum(system.statuses().values())


def series(process: Running, name: str) -> float:
    """Return the value of one series of a process."""
    (value,) = re.findall(rf"^{re.escape(name)} (\S+)", process.get("/metrics"), re.MULTILINE)
    return float(value)


def duplicates(consumer: Running) -> float:
    """Return how many records the consumer has taken a second time."""
    return series(consumer, 'orchestrator_records_total{result="duplicate"}')


# ---- the synchronous standby that does not answer --------------------------------------------------


@contextmanager
def ghost(postgres: EmbeddedPostgres) -> Iterator[None]:
    """Let every COMMIT wait for a standby that does not exist, while the block runs."""
    set_server(postgres, "synchronous_standby_names", "ghost")
    run(postgres, "CHECKPOINT")  # the checkpointer tells the others
    try:
        yield
    finally:
        set_server(postgres, "synchronous_standby_names", "")


@contextmanager
def held_back(system: System) -> Iterator[Connection]:
    """Keep the relay from its lane until the session that is given rolls back."""
    with closing(system.connect()) as conn:
        conn.execute("SET idle_in_transaction_session_timeout = 0")
        conn.execute("BEGIN")
        conn.execute("LOCK TABLE outbox_lane IN EXCLUSIVE MODE")
        yield conn


def start_consumer(system: System, **environ: str) -> Running:
    """Start a consumer and wait until it has its partitions."""
    consumer = system.start("consumer", **environ)
    eventually(lambda: consumer.logged('"partitions assigned"'), RESUME_S)
    return consumer


def start_relay(system: System, timings: str | None = None) -> Running:
    """Start a relay and wait until it works its lane."""
    relay = system.start("relay", **({"OUTBOX_TIMINGS": timings} if timings else {}))
    eventually(lambda: relay.logged('"lane active"'), RESUME_S)
    return relay


@pytest.mark.fault(7)
def test_a_consumer_waits_for_its_own_commit_that_is_still_running(
    own: System, postgres: EmbeddedPostgres
) -> None:
    cut = Rule("COMMIT", cut_after)
    with proxy(PostgresConversation, (HOST, postgres.port), [cut]) as port:
        through = make_conninfo(own.settings.database_url, port=port)
        consumer = start_consumer(own, DATABASE_URL=through)
        with ghost(postgres):
            own.submit(20)
            eventually(lambda: waits(own, CONSUMER) == {"SyncRep", "transactionid"}, RESUME_S)
            assert cut.done.is_set()
            assert accepted(own) == 0
        own.start("relay")
        own.check_exactly_once(20)
        assert duplicates(consumer) == 0
        assert not consumer.logged(
            "another consumer has moved"
        )  # it knew, and did not have to find out


@pytest.mark.fault(7)
def test_a_lane_waits_for_its_former_owners_commit_that_is_still_running(
    own: System, postgres: EmbeddedPostgres
) -> None:
    relay = start_relay(own)
    with held_back(own) as other, ThreadPoolExecutor(1) as thread:
        own.accept(20)
        with ghost(postgres):
            other.execute("ROLLBACK")
            eventually(lambda: waits(own, LANE) == {"SyncRep"})
            relay.kill()
            successor = thread.submit(work_lane, own)
            eventually(lambda: waits(own, "test lane 0") == {"transactionid"})
            assert waits(own, LANE) == {"SyncRep"}
            assert own.orders() == []
        assert successor.result(RESUME_S) == 0  # the batch was begun: the recovery sent it
    own.check_exactly_once(20)


def work_lane(system: System) -> int:
    """Take the lane as a successor, recover, and publish what is left; return the rows of that."""
    with system.lane(owner=False) as lane:
        lane.recover()
        return lane.drain()


def cancel(system: System, name: str) -> int:
    """Cancel what the session of that name waits for; return its process."""
    ((process, _),) = system.query(
        "SELECT pid, pg_cancel_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = %s AND wait_event = 'SyncRep'",
        name,
    )
    return int(process)


def waits_again(system: System, name: str, before: int) -> bool:
    """Say whether a new session of that name, and no other, waits for the standby."""
    found = system.query(
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = %s AND wait_event = 'SyncRep'",
        name,
    )
    return found != [] and (before,) not in found


UNCONFIRMED = "orchestrator_unconfirmed_commits_total"


@pytest.mark.fault(8)
def test_a_consumer_does_not_rely_on_a_commit_that_no_standby_confirmed(
    own: System, postgres: EmbeddedPostgres
) -> None:
    consumer = start_consumer(own)
    with ghost(postgres):
        own.submit(20)
        eventually(lambda: waits(own, CONSUMER) == {"SyncRep"})
        process = cancel(own, CONSUMER)
        eventually(lambda: waits_again(own, CONSUMER, process), RESUME_S)
        assert series(consumer, UNCONFIRMED) == 1
        assert consumer.logged('"commit not confirmed"')
        assert "CommitUnconfirmed" in consumer.get("/readyz")
    own.start("relay")
    own.check_exactly_once(20)
    assert duplicates(consumer) == 0


@pytest.mark.fault(8)
def test_a_relay_sends_nothing_on_a_commit_that_no_standby_confirmed(
    own: System, postgres: EmbeddedPostgres
) -> None:
    relay = start_relay(own)
    with held_back(own) as other:
        own.accept(20)
        with ghost(postgres):
            other.execute("ROLLBACK")
            eventually(lambda: waits(own, LANE) == {"SyncRep"})
            process = cancel(own, LANE)
            for attempt in range(1, 4):  # the new session's own commit may be cancelled, too
                eventually(partial(waits_again, own, LANE, process), RESUME_S)
                assert series(relay, UNCONFIRMED) == attempt
                process = cancel(own, LANE)
            assert relay.logged('"commit not confirmed"')
            assert own.orders() == []
    own.check_exactly_once(20)


@pytest.mark.fault(63)
def test_processes_whose_commits_wait_for_a_standby_are_alive_and_say_so(
    own: System, postgres: EmbeddedPostgres
) -> None:
    stalled = json.dumps({"stalled_s": 6, "gauge_period_s": 0.5})
    consumer, relay = start_consumer(own, OUTBOX_TIMINGS=stalled), start_relay(own, stalled)
    with held_back(own) as other:
        own.accept(20)
        with ghost(postgres):
            other.execute("ROLLBACK")
            own.submit(20)
            for process in (consumer, relay):
                eventually(partial(says, process, "synchronous standby, which is not"), RESUME_S)
                assert process.logged('"commit waiting"')
            time.sleep(8)  # longer than what a loop may be silent for
            for process in (consumer, relay):
                assert (answer(process, "livez"), answer(process, "readyz")) == (200, 503)
            for command in ("status", "doctor"):
                shown = run_command(own.environ, command)
                assert "now 'ghost'" in shown.stdout, shown
    own.check_exactly_once(40)
    for process in (consumer, relay):
        eventually(partial(is_ready, process))
        assert process.logged('"commit done"')


# ---- sessions and servers that end -----------------------------------------------------------------


@pytest.mark.fault(9)
def test_postgres_crashes_at_work_again_and_again(own: System, postgres: EmbeddedPostgres) -> None:
    own.start("consumer", BATCH_SIZE="10")
    own.start("relay", BATCH_SIZE="10")
    for turn in range(2):
        own.submit(200)
        eventually(partial(has_workers, own, 200 * turn + 1), RESUME_S)
        postgres.stop("immediate")
        postgres.start()
    own.check_exactly_once(400)


def has_workers(system: System, least: int) -> bool:
    return accepted(system) >= least


@pytest.mark.slow
@pytest.mark.fault(12)
def test_processes_frozen_in_a_transaction_lose_it_and_do_it_again(own: System) -> None:
    consumer = own.start("consumer", crash_at="consumer.enqueued:1:freeze")
    relay = own.start("relay", crash_at="relay.claimed:1:freeze")
    own.accept(20)
    own.submit(20)
    consumer.wait_frozen()
    relay.wait_frozen()
    in_transaction = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
    assert own.query(in_transaction) == [(2,)]
    eventually(lambda: own.query(in_transaction) == [(0,)])  # after 10 s, as we ask the server
    assert accepted(own) == 20
    consumer.thaw()
    relay.thaw()
    own.check_exactly_once(40)
    assert duplicates(consumer) == 0


@pytest.mark.slow
@pytest.mark.fault(12)
def test_a_session_frozen_while_it_is_sent_rows_loses_its_locks(own: System) -> None:
    with closing(own.connect("frozen")) as frozen:
        frozen.execute("BEGIN")
        frozen.execute("SELECT FROM outbox_lane FOR UPDATE")
        frozen.pgconn.send_query(b"SELECT repeat('x', 1000000) FROM generate_series(1, 100)")
        eventually(lambda: waits(own, "frozen") == {"ClientWrite"})
        eventually(lambda: own.query(FROZEN) == [(0,)], 30)  # after 10 s, as we ask the server


FROZEN = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'frozen'"


@pytest.mark.fault(12)
def test_an_idle_time_out_of_the_administrators_ends_no_session_of_ours(own: System) -> None:
    name = conninfo_to_dict(own.settings.database_url)["dbname"]
    own.query(f"ALTER DATABASE {name} SET idle_session_timeout = '300ms'")
    processes = [own.start("consumer"), own.start("relay")]
    own.submit(20)
    eventually(partial(are_deployed, own, 20), RESUME_S)
    eventually(lambda: own.query(OLD_CONSUMERS) == [(1,)])
    own.submit(20)
    own.check_exactly_once(40)
    assert not any(process.logged('waiting"') for process in processes)


def are_deployed(system: System, workers: int) -> bool:
    return system.statuses() == {"deployed": workers}


OLD_CONSUMERS = """
    SELECT count(*) FROM pg_stat_activity
     WHERE datname = current_database() AND application_name = 'orchestrator consumer'
       AND backend_start < clock_timestamp() - interval '2 s'
"""


# ---- transactions that the server gives up ---------------------------------------------------------


@contextmanager
def cycling(system: System, lane: OwnedLane) -> Iterator[None]:
    """Let the lane do a cycle in a thread; the block begins when that waits for a lock."""
    with ThreadPoolExecutor(1) as thread:
        cycle = thread.submit(lane.run_once)
        eventually(lambda: waits(system, "test lane 0") & {"transactionid", "tuple"})
        yield
        cycle.result(20)


@pytest.mark.fault(13)
def test_a_deadlock_repeats_the_relays_transaction(own: System) -> None:
    first, *_ = own.accept(10)
    with own.lane() as lane, closing(own.connect()) as other:
        lane.recover()
        assert lane.run_once() == 10
        own.accept(10)
        other.execute("SET deadlock_timeout = '1min'")  # the other one finds out, and is the victim
        other.execute("BEGIN")
        other.execute("SELECT FROM outbox WHERE aggregate_id = %s FOR UPDATE", [first])
        with cycling(own, lane):
            other.execute("SELECT FROM outbox_lane FOR UPDATE")
            other.execute("ROLLBACK")
        lane.drain()
    own.check_exactly_once(20)


FAIL_ONCE = """
    CREATE SEQUENCE attempts;
    CREATE FUNCTION fail_once() RETURNS TRIGGER LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('attempts') = 1 THEN
                RAISE EXCEPTION 'could not serialize access' USING ERRCODE = 'serialization_failure';
            END IF;
            RETURN NEW;
        END
    $$;
    CREATE TRIGGER fail_once BEFORE UPDATE ON outbox_lane FOR EACH ROW EXECUTE FUNCTION fail_once()
"""


@pytest.mark.fault(13)
def test_a_serialization_failure_repeats_the_relays_transaction(own: System) -> None:
    own.accept(10)
    with own.lane() as lane:
        lane.recover()
        assert lane.run_once() == 10
        own.accept(10)
        own.query(FAIL_ONCE)
        assert lane.run_once() == 10
        lane.drain()
    own.check_exactly_once(20)


@pytest.mark.fault(13)
def test_a_lock_time_out_ends_the_session_and_the_work_is_retried(own: System) -> None:
    with own.consumer() as session:
        eventually(lambda: session.run_once() == 0 and session.positions(), RESUME_S)
        own.submit(10)
        session._writer._conn.execute("SET lock_timeout = '20ms'")
        with held_offsets(own), pytest.raises(psycopg.errors.LockNotAvailable):
            take(session, 10)
    assert accepted(own) == 0
    with own.consumer() as session, own.lane() as lane:
        take(session, 10)
        lane.recover()
        lane.conn.execute("SET lock_timeout = '20ms'")
        with held_back(own), pytest.raises(psycopg.errors.LockNotAvailable):
            lane.run_once()
    with own.lane() as lane:
        lane.recover()
        assert lane.drain() == 10
    own.check_exactly_once(10)


@contextmanager
def held_offsets(system: System) -> Iterator[None]:
    """Keep every consumer from its offsets while the block runs."""
    with closing(system.connect()) as conn, conn.transaction():
        conn.execute("SELECT FROM consumed_offsets FOR UPDATE")
        yield


# ---- a database that takes nothing -----------------------------------------------------------------


@pytest.mark.fault(14)
def test_a_read_only_database_is_waited_for(own: System, postgres: EmbeddedPostgres) -> None:
    consumer, relay = start_consumer(own), start_relay(own)
    with held_back(own) as other:
        own.accept(20)
        set_server(postgres, "default_transaction_read_only", "on")
        try:
            own.submit(20)
            other.execute("ROLLBACK")
            for process in (consumer, relay):
                eventually(partial(says, process, "read-only"), RESUME_S)
        finally:
            set_server(postgres, "default_transaction_read_only", "off")
    own.check_exactly_once(40)


def says(process: Running, text: str) -> bool:
    """Say whether a process is not ready and gives this reason, while it is alive."""
    said = process.get("/readyz")
    return '"ready": false' in said and text in said and answer(process, "livez") == 200


@pytest.mark.fault(14)
@pytest.mark.parametrize("table", ["workers", "outbox"])
def test_a_full_disk_is_waited_for(own: System, postgres: EmbeddedPostgres, table: str) -> None:
    with small_volume("4m", *postgres._user()) as volume:
        run(postgres, f"CREATE TABLESPACE small LOCATION '{volume}'")
        own.query(f"ALTER TABLE {table} SET TABLESPACE small")
        consumer, relay = start_consumer(own), start_relay(own)
        own.submit(20)
        own.check_exactly_once(20)
        ballast = fill(volume)
        own.submit(2000)
        eventually(partial(says, consumer, "No space left on device (53100)"), RESUME_S)
        ballast.unlink()
        own.check_exactly_once(2020)
        consumer.stop()
        relay.stop()
        own.query(f"ALTER TABLE {table} SET TABLESPACE pg_default")
        run(postgres, "DROP TABLESPACE small")


@pytest.mark.slow
@pytest.mark.fault(14)
def test_a_server_that_dies_of_a_full_wal_volume_is_waited_for(
    postgres: EmbeddedPostgres, servers: Servers, tmp_path: Path
) -> None:
    with (
        small_volume("80m", *postgres._user()) as volume,
        own_postgres(wal=volume / "wal") as small,
        installed(Servers(small.url, servers.bootstrap_servers), tmp_path, lanes=1) as system,
    ):
        processes = start_consumer(system), start_relay(system)
        system.submit(20)
        system.check_exactly_once(20)
        ballast = fill(volume)
        system.submit(200)
        with pytest.raises(psycopg.OperationalError):
            run(small, WRITE_AHEAD)
        for process in processes:
            eventually(partial(says, process, "connection"), RESUME_S)
        assert "PANIC" in small.log_file.read_text()
        ballast.unlink()
        small.start()  # unless it still tries by itself
        system.check_exactly_once(220)


WRITE_AHEAD = "CREATE TABLE waste AS SELECT repeat('x', 1000) FROM generate_series(1, 200000)"
