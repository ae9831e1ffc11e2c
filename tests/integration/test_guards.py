"""The guards of the relay's protocol: each test here fails when its guard is taken out.

tests/guards.py takes them out, one at a time, in a copy of the code, and watches the tests fail.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from threading import Thread
from types import ModuleType
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from outbox import InDoubt, LaneState, OwnershipLost, RolledBack, lane_rows, transaction
from outbox.lane import LaneStatus
from outbox.lane_rows import read_identity
from outbox.markers import Marker
from outbox.membership import try_lock_lane
from testkit.eventually import eventually
from testkit.system import System


def test_a_replaced_owner_acknowledges_and_claims_nothing(one_lane: System) -> None:
    """Guard 1: epoch compare-and-set."""
    one_lane.accept(1)
    with one_lane.lane() as zombie:
        zombie.recover()
        assert zombie.run_once() == 1  # published, not acknowledged
        with one_lane.lane(owner=False) as successor:
            one_lane.accept(1)
            assert zombie.run_once() == 0
            assert not zombie.session.owned.lanes
            assert one_lane.query("SELECT count(*) FROM outbox") == [(2,)]
            successor.recover()
            successor.drain()
    one_lane.check_exactly_once(2)


@pytest.mark.parametrize("point", ["relay.begun", "relay.published:2"])
def test_a_batch_is_committed_in_postgres_before_kafka_has_it(one_lane: System, point: str) -> None:
    """Guard 2: inflight is committed before Kafka begins. (The first publish is marker 0.)"""
    one_lane.accept(3)
    one_lane.start("relay", crash_at=point).wait_killed()
    assert one_lane.query("SELECT batch_number, cardinality(inflight) FROM outbox_lane") == [(1, 3)]
    one_lane.start("relay")
    one_lane.check_exactly_once(3)


def test_a_transaction_that_commits_just_before_the_fence_counts(
    one_lane: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard 3: the marker is read after the fence."""
    one_lane.accept(2)
    with one_lane.lane() as older:
        older.recover()
        rows = older.claim()
        with one_lane.lane(owner=False) as successor:
            fence = successor.publisher.start

            def commit_older_and_fence(transactional_lane: int) -> None:
                older.publisher.publish({0: Marker(1)}, rows)
                fence(transactional_lane)

            monkeypatch.setattr(successor.publisher, "start", commit_older_and_fence)
            successor.recover()
            successor.drain()
    one_lane.check_exactly_once(2)


def test_a_transaction_left_open_is_fenced_before_its_rows_go_out_again(one_lane: System) -> None:
    """Guard 3 too: after the fence the older producer can commit nothing."""
    one_lane.accept(2)
    with one_lane.lane() as older:
        older.recover()
        rows = older.claim()
        older.publisher.producer.begin_transaction()
        older.publisher.send_records(rows)
        with one_lane.lane(owner=False) as successor:
            successor.recover()
            with pytest.raises(InDoubt):
                older.publisher.commit()
            successor.drain()
    one_lane.check_exactly_once(2)


def test_records_and_marker_are_there_together_or_not_at_all(one_lane: System) -> None:
    """Guard 4: the marker is part of the records' transaction, and last in it."""
    one_lane.accept(3)
    one_lane.start("relay", crash_at="relay.marked:2").wait_killed()
    assert one_lane.orders() == []
    one_lane.start("relay")
    one_lane.check_exactly_once(3)


def test_a_producer_in_doubt_is_never_used_again(one_lane: System) -> None:
    """Guard 5: a new producer, and with it a new producer epoch, after any doubt."""
    one_lane.accept(1)
    with one_lane.lane() as lane:
        lane.recover()
        before = lane.publisher.producer
        with one_lane.lane(owner=False) as stranger:
            stranger.publisher.start(0)  # takes the producer epoch, not the lane
        one_lane.query("UPDATE outbox_lane SET epoch = %s", lane.lane.epoch)
        done = Thread(target=lane.session.run, args=[lambda: None], daemon=True)
        done.start()
        one_lane.check_exactly_once(1)
        lane.stop.set()
        done.join(5)
        assert lane.publisher.producer is not before


@pytest.mark.parametrize(
    ("batch_number", "marker", "reason"),
    [
        (1, 3, "marker_ahead"),  # Postgres was restored to an older state
        (5, 3, "marker_behind"),  # Kafka lost commits, or the marker is another outbox's
        (3, None, "marker_missing"),  # the group's offsets expired or were deleted
    ],
)
def test_a_lane_whose_histories_disagree_sends_nothing(
    one_lane: System, batch_number: int, marker: int | None, reason: str
) -> None:
    """Guard 6: refusal on disagreement."""
    with one_lane.lane() as lane:
        if marker is not None:
            lane.publisher.start(0)
            lane.publisher.publish({0: Marker(marker)}, ())
        one_lane.query("UPDATE outbox_lane SET batch_number = %s", batch_number)
        one_lane.accept(1)
        lane.recover()
        assert lane.lane.status == LaneStatus(LaneState.REFUSED, reason)
        assert lane.run_once() == 0
    assert one_lane.orders() == []
    assert one_lane.statuses() == {"pending": 1}


def test_acknowledging_never_turns_a_running_worker_back(one_lane: System) -> None:
    """Guard 7: the status guard in acknowledge."""
    one_lane.accept(2)
    with one_lane.lane() as lane:
        lane.recover()
        lane.run_once()
        one_lane.query("UPDATE workers SET status = 'running' WHERE id = 1")
        lane.drain()
    assert one_lane.statuses() == {"running": 1, "deployed": 1}


def test_a_commit_answered_with_rollback_is_an_error(one_lane: System) -> None:
    """Guard 8: the command tag of COMMIT is checked."""
    with (
        closing(one_lane.connect()) as conn,
        pytest.raises(RolledBack),
        transaction(conn),
        suppress(psycopg.errors.DivisionByZero),  # what must not be done inside a transaction
    ):
        conn.execute("SELECT 1 / 0")


# ---- guards of a lane's ownership ------------------------------------------------------------------


WAITING = """
    SELECT count(*) FROM pg_stat_activity
     WHERE datname = current_database() AND wait_event IN ('transactionid', 'tuple')
"""


def once_before(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, act: Callable[[], object]
) -> None:
    """Let `act` happen before the next call of a function of the library."""
    function = getattr(module, name)

    def act_and_call(*values: Any) -> Any:
        monkeypatch.setattr(module, name, function)
        act()
        return function(*values)

    monkeypatch.setattr(module, name, act_and_call)


def take_over(system: System) -> int:
    """Take the lane as a successor, recover, and publish what is left; return the rows of that."""
    with system.lane(owner=False) as successor:
        successor.recover()
        return successor.drain()


def test_a_lane_is_locked_before_its_rows_are_claimed(
    one_lane: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a successor would pass over the rows that the older one has claimed, and send later ones."""
    scenario = uuid4()
    with one_lane.lane() as older, ThreadPoolExecutor(1) as thread:
        older.recover()
        one_lane.accept(2, scenario)
        successors = list[Future[int]]()

        def start_successor() -> None:
            one_lane.accept(2, scenario)
            successors.append(thread.submit(take_over, one_lane))
            eventually(lambda: successors[0].done() or one_lane.query(WAITING) == [(1,)])

        once_before(monkeypatch, lane_rows, "begin_batches", start_successor)
        with suppress(OwnershipLost):
            older.run_once()
        successors[0].result(30)
    take_over(one_lane)
    one_lane.check_exactly_once(4)


def test_a_replaced_owner_fences_nothing(one_lane: System) -> None:
    """Ownership is read before the fence: else a zombie could fence its successor again and again."""
    with one_lane.lane() as older:
        older.recover()
        with one_lane.lane(owner=False) as successor:
            successor.recover()
            older.recover()
            one_lane.accept(1)
            assert successor.drain() == 1
    one_lane.check_exactly_once(1)


def test_a_lane_whose_successor_goes_on_before_the_decision_is_lost_and_not_refused(
    one_lane: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ownership is compared again under the lock: the marker is older than what the successor did."""
    one_lane.accept(1)
    with one_lane.lane() as older:
        once_before(monkeypatch, lane_rows, "lock_lanes", lambda: take_over(one_lane))
        older.recover()
        assert not older.session.owned.lanes
    one_lane.check_exactly_once(1)


def test_the_lock_of_a_lost_lane_is_released(system: System) -> None:
    """Else no relay could take the lane again while the session lives."""
    with system.lane(0, 1) as relay:
        relay.recover()
        with system.lane(0, owner=False):
            system.accept(20)
            relay.run_once()
            assert list(relay.session.owned.lanes) == [1]
            with closing(system.connect()) as conn:
                assert try_lock_lane(conn, read_identity(conn), 0)
                assert not try_lock_lane(conn, read_identity(conn), 1)
