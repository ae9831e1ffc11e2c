"""Workers whose row cannot be written at once: no lane waits for them, none is forgotten."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest

from orchestrator.contract import workers
from outbox import Connection, scalar
from outbox.deferred_rows import find_due, lock
from testkit.eventually import eventually
from testkit.system import OwnedLane, System, deferred_workers

RUNNING = "UPDATE workers SET status = 'running', process_pid = 7 WHERE worker_id = ANY(%s)"


@contextmanager
def held(
    system: System, ids: list[UUID], statement: str = RUNNING
) -> Iterator[psycopg.Connection[Any]]:
    """Let a Runner's transaction write to workers; commit it at the end of the block."""
    with psycopg.connect(system.settings.database_url) as conn:
        conn.execute(statement.encode(), [ids] if ids else None)
        yield conn


def deferred(system: System) -> dict[UUID, str]:
    """Return the aggregates on the list, with the reason."""
    return dict(system.query("SELECT aggregate_id, reason FROM outbox_deferred"))


def status_of(system: System, worker: UUID) -> str:
    """Return the status of a worker."""
    ((status,),) = system.query("SELECT status FROM workers WHERE worker_id = %s", worker)
    return str(status)


def retry_until_empty(system: System, lane: OwnedLane) -> None:
    """Let a stepped relay try again until the list is empty."""

    def is_empty() -> bool:
        lane.session.batches.deferred.retry()
        return not deferred(system)

    eventually(is_empty)


REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'no update of %%', NEW.camera_url; END $$
"""


def refuse(system: System, worker: UUID) -> None:
    """Let a trigger refuse every update of one worker."""
    system.query(REFUSE)
    system.query(
        "CREATE TRIGGER refuse BEFORE UPDATE ON workers FOR EACH ROW"
        f" WHEN (NEW.worker_id = '{worker}') EXECUTE FUNCTION refuse()"
    )


# ---- locked ---------------------------------------------------------------------------------------


@pytest.mark.fault(42)
def test_a_locked_worker_holds_up_no_other_row_and_keeps_the_status_of_the_runner(
    system: System,
) -> None:
    relay = system.start("relay", crash_at="relay.published:1:freeze")
    first = system.accept(1)
    relay.wait_frozen()
    with held(system, first):
        relay.thaw()
        system.accept(200)
        eventually(lambda: system.query("SELECT count(*) FROM outbox") == [(0,)])
        eventually(lambda: system.statuses() == {"pending": 1, "deployed": 200})
        assert deferred(system) == {first[0]: "locked by another session"}
        assert '"ready": true' in relay.get("/readyz")
    eventually(lambda: deferred(system) == {})
    assert system.statuses() == {"running": 1, "deployed": 200}
    assert system.audit().passed


@pytest.mark.fault(42)
def test_a_locked_worker_is_deployed_after_a_rollback(one_lane: System) -> None:
    accepted = one_lane.accept(10)
    with one_lane.lane() as lane:
        lane.recover()
        lane.run_once()
        with held(one_lane, accepted[:3]) as runner:
            assert lane.run_once() == 0
            assert deferred(one_lane).keys() == set(accepted[:3])
            lane.session.batches.deferred.retry()
            assert deferred(one_lane).keys() == set(accepted[:3])
            runner.rollback()
        retry_until_empty(one_lane, lane)
    one_lane.check_exactly_once(10)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT FROM workers WHERE worker_id = ANY(%s)",
        "SELECT FROM workers WHERE worker_id = ANY(%s) FOR KEY SHARE",  # as a foreign key does
    ],
)
def test_a_reader_or_a_reference_defers_nothing(one_lane: System, statement: str) -> None:
    accepted = one_lane.accept(10)
    with one_lane.lane() as lane:
        lane.recover()
        lane.run_once()
        with held(one_lane, accepted, statement):
            lane.run_once()
            assert deferred(one_lane) == {}
            assert one_lane.statuses() == {"deployed": 10}


def test_workers_that_are_gone_or_were_moved_on_are_done(one_lane: System) -> None:
    gone, moved, *_ = one_lane.accept(10)
    with one_lane.lane() as lane:
        lane.recover()
        lane.run_once()
        one_lane.query("DELETE FROM workers WHERE worker_id = %s", gone)
        one_lane.query(RUNNING, [moved])
        lane.run_once()
    assert deferred(one_lane) == {}
    assert one_lane.statuses() == {"running": 1, "deployed": 8}


@pytest.mark.fault(42)
def test_another_relay_deploys_what_a_killed_one_has_deferred(one_lane: System) -> None:
    first = one_lane.start("relay", crash_at="relay.published:1:freeze")
    accepted = one_lane.accept(5)
    first.wait_frozen()
    with held(one_lane, accepted) as runner:
        first.thaw()
        eventually(lambda: deferred(one_lane).keys() == set(accepted))
        first.kill()
        runner.rollback()
    assert one_lane.statuses() == {"pending": 5}
    second = one_lane.start("relay", crash_at="relay.retried")  # before its COMMIT
    second.wait_killed()
    assert len(deferred(one_lane)) == 5
    assert one_lane.statuses() == {"pending": 5}
    one_lane.start("relay")
    one_lane.check_exactly_once(5)
    assert deferred(one_lane) == {}


def test_relays_share_the_list_without_waiting_for_each_other(one_lane: System) -> None:
    with deferred_workers(one_lane, 4), one_lane.lane() as lane, closing(one_lane.connect()) as other:
        eventually(lambda: find_due(lane.conn, 0.2, 10))  # after the first pause
        other.execute("BEGIN")
        (first, *_) = lock(other, find_due(lane.conn, 0.2, 2))
        lane.session.batches.deferred.retry()
        tried = "SELECT id, attempts FROM outbox_deferred ORDER BY id"
        found = dict(one_lane.query(tried))
        assert found.pop(first.id) == 1
        assert sorted(found.values()) == [1, 2, 2]
        other.execute("ROLLBACK")


@pytest.mark.fault(42)
def test_deferred_workers_are_deployed_while_kafka_is_away(one_lane: System) -> None:
    with deferred_workers(one_lane, 3):
        one_lane.start("relay", KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
        eventually(
            lambda: max(n for (n,) in one_lane.query("SELECT attempts FROM outbox_deferred")) > 1
        )
    eventually(lambda: one_lane.statuses() == {"deployed": 3})
    one_lane.check_exactly_once(3)


# ---- refused --------------------------------------------------------------------------------------


@pytest.mark.fault(42)
def test_a_worker_whose_update_is_refused_is_named_and_keeps_no_other_on_the_list(
    system: System,
) -> None:
    accepted = system.accept(50)
    refuse(system, accepted[17])
    relay = system.start("relay")
    eventually(lambda: system.statuses() == {"pending": 1, "deployed": 49})
    assert status_of(system, accepted[17]) == "pending"
    assert deferred(system) == {accepted[17]: "no update of rtsp"}  # the URL has a password
    eventually(lambda: relay.logged('"aggregates deferred"'))
    assert relay.logged(f'"aggregate_ids": ["{accepted[17]}"]')
    system.accept(50)
    eventually(lambda: system.statuses() == {"pending": 1, "deployed": 99})
    system.query("DROP TRIGGER refuse ON workers")
    system.check_exactly_once(100)
    eventually(lambda: relay.logged('"aggregates done"'))
    assert deferred(system) == {}


@pytest.mark.fault(42)
@pytest.mark.parametrize(
    ("refused", "reason", "allowed"),
    [
        ("ALTER TABLE workers RENAME TO w", 'relation "workers"', "ALTER TABLE w RENAME TO workers"),
        (
            "ALTER TABLE workers REPLICA IDENTITY NOTHING",
            "replica identity",
            "ALTER TABLE workers REPLICA IDENTITY DEFAULT",
        ),
    ],
    ids=["table missing", "no replica identity"],
)
def test_lanes_go_on_while_all_updates_are_refused(
    one_lane: System, refused: str, reason: str, allowed: str
) -> None:
    one_lane.accept(10)
    with one_lane.lane(batch_size=5) as lane:
        lane.recover()
        lane.run_once()
        one_lane.query("CREATE PUBLICATION all_workers FOR TABLE workers")
        one_lane.query(refused)
        lane.drain()
        assert one_lane.query("SELECT count(*) FROM outbox") == [(0,)]
        assert len(deferred(one_lane)) == 10
        assert all(reason in found for found in deferred(one_lane).values())
        lane.session.batches.deferred.retry()
        assert len(deferred(one_lane)) == 10
        one_lane.query(allowed)
        retry_until_empty(one_lane, lane)
        one_lane.accept(5)
        lane.drain()
        assert deferred(one_lane) == {}  # it is called in the lanes' transaction again
    one_lane.check_exactly_once(15)


FUNCTION = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN %s END $$"
BEFORE = "CREATE TRIGGER refuse BEFORE UPDATE ON workers"
AT_COMMIT = "CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON workers INITIALLY DEFERRED"
FOR_ONE = "FOR EACH ROW WHEN (NEW.worker_id = '%s') EXECUTE FUNCTION refuse()"
CHECK = "ALTER TABLE workers ADD CONSTRAINT refuse CHECK"
# What its function does, how it is attached, and the reason.
WAYS = {
    "skipped": ("RETURN NULL;", f"{BEFORE} {FOR_ONE}", "a trigger on workers skips or undoes"),
    "undone": (
        "NEW.status = OLD.status; RETURN NEW;",
        f"{BEFORE} {FOR_ONE}",
        "a trigger on workers skips or undoes",
    ),
    "refused at COMMIT": ("RAISE 'not now';", f"{AT_COMMIT} {FOR_ONE}", "not now (P0001)"),
    "a division by zero": ("PERFORM 1 / 0;", f"{BEFORE} {FOR_ONE}", "division by zero (22012)"),
    "a lock": ("RAISE lock_not_available;", f"{BEFORE} {FOR_ONE}", "lock_not_available (55P03)"),
    "a deadlock": ("RAISE deadlock_detected;", f"{AT_COMMIT} {FOR_ONE}", "deadlock_detected (40P01)"),
    "a time-out": ("PERFORM pg_sleep(60);", f"{BEFORE} {FOR_ONE}", "statement timeout (57014)"),
    "a CHECK": ("", f"{CHECK} (worker_id <> '%s' OR status <> 'deployed')", '"refuse" (23514)'),
}


@pytest.mark.fault(42)
@pytest.mark.parametrize("way", WAYS)
def test_a_worker_that_is_refused_in_any_way_is_named_and_holds_up_no_lane(
    one_lane: System, way: str
) -> None:
    accepted = one_lane.accept(3)
    body, attach, reason = WAYS[way]
    one_lane.query(FUNCTION % body)
    one_lane.query(attach % accepted[1])
    with one_lane.lane() as lane:
        if way == "a time-out":
            lane.conn.execute("SET statement_timeout = '500ms'")
        lane.recover()
        assert lane.run_once() == 3
        lane.drain()
        assert one_lane.query("SELECT count(*) FROM outbox") == [(0,)]
        eventually(lambda: only_left(one_lane, lane, accepted[1]))
        assert reason in deferred(one_lane)[accepted[1]]
        assert one_lane.statuses() == {"pending": 1, "deployed": 2}
        one_lane.query("DROP FUNCTION refuse CASCADE")
        one_lane.query("ALTER TABLE workers DROP CONSTRAINT IF EXISTS refuse")
        retry_until_empty(one_lane, lane)
    one_lane.check_exactly_once(3)


def only_left(system: System, lane: OwnedLane, worker: UUID) -> bool:
    """Let a stepped relay try again; return whether one worker alone is left on its list."""
    lane.session.batches.deferred.retry()
    return deferred(system).keys() == {worker}


def is_retried(lane: OwnedLane, calls: list[str]) -> bool:
    """Let a stepped relay look at its list; return whether it has called `on_published` again."""
    lane.session.batches.deferred.retry()
    return len(calls) > 1


@pytest.mark.fault(42)
def test_a_table_that_is_locked_as_a_whole_is_waited_for_once(
    one_lane: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts, set_deployed = list[str](), workers.set_deployed

    def recording(conn: Connection, worker_ids: Sequence[UUID]) -> Mapping[UUID, str]:
        timeouts.append(scalar(conn, str, "SHOW lock_timeout"))
        return set_deployed(conn, worker_ids)

    monkeypatch.setattr(workers, "set_deployed", recording)
    one_lane.accept(30)
    with one_lane.lane(batch_size=10) as lane:
        lane.recover()
        lane.run_once()
        lane.conn.execute("SET lock_timeout = '20ms'")
        with held(one_lane, [], "LOCK TABLE workers IN SHARE MODE"):
            lane.drain()
            assert len(deferred(one_lane)) == 30
            assert timeouts == ["20ms"]
            eventually(lambda: is_retried(lane, timeouts))
            assert set(timeouts[1:]) == {"100ms"}  # the lanes wait
        retry_until_empty(one_lane, lane)
    one_lane.check_exactly_once(30)


def test_a_session_that_ends_in_the_callback_defers_nothing(one_lane: System) -> None:
    one_lane.accept(3)
    one_lane.query(
        "CREATE FUNCTION hang_up() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$"
    )
    one_lane.query(
        "CREATE TRIGGER hang_up BEFORE UPDATE ON workers FOR EACH ROW EXECUTE FUNCTION hang_up()"
    )
    with one_lane.lane() as lane:
        lane.recover()
        lane.run_once()
        with pytest.raises(psycopg.OperationalError):
            lane.run_once()
    assert deferred(one_lane) == {}
    one_lane.query("DROP TRIGGER hang_up ON workers")
    one_lane.start("relay")
    one_lane.check_exactly_once(3)
