"""The guards of the relay's protocol: each test here fails when its guard is taken out.

tests/guards.py takes them out, one at a time, in a copy of the code, and watches the tests fail.
"""

from contextlib import closing, suppress
from threading import Thread

import psycopg
import pytest

from outbox import InDoubt, LaneState, RolledBack, transaction
from outbox.lane import LaneStatus
from outbox.markers import Marker
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
