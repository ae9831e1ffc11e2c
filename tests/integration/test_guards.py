"""The guards of the relay's protocol: each test here fails when its guard is taken out.

tests/guards.py takes them out, one at a time, in a copy of the code, and watches the tests fail.
"""

from collections.abc import Callable, Iterator, Sequence
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
from testkit.disagreement import copied
from testkit.eventually import eventually
from testkit.proxied import WiredKafka, led_through
from testkit.proxy import Connection, Rule, replay
from testkit.system import System
from testkit.wire_protocol import Frame
from tests.integration.test_evidence import open_transaction
from tests.integration.test_session import put, sent


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
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard 3: the evidence is read after the fence of all ids that may still publish the lane."""
    with system.lane(1, 2) as older:
        older.recover()
        put(system, (2,))
        batch = older.session.batches.acknowledge_and_claim([2])
        with system.lane(2, owner=False) as successor:
            fence = successor.publisher.fence

            def commit_older_and_fence(transactional_lanes: Sequence[int]) -> Iterator[int]:
                assert transactional_lanes == [1]
                older.session.batches.publish(batch)
                return fence(transactional_lanes)

            monkeypatch.setattr(successor.publisher, "fence", commit_older_and_fence)
            successor.recover()
            successor.drain()
    assert sent(system) == [2]
    assert system.query("SELECT count(*) FROM outbox") == [(0,)]


def test_a_transaction_that_commits_just_before_we_fence_our_own_id_counts(
    one_lane: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard 3 too."""
    one_lane.accept(2)
    with one_lane.lane() as older:
        older.recover()
        rows = older.claim()
        with one_lane.lane(owner=False) as successor:
            start = successor.publisher.start

            def commit_older_and_start(transactional_lane: int) -> None:
                older.session.batches.publish({0: rows})
                start(transactional_lane)

            monkeypatch.setattr(successor.publisher, "start", commit_older_and_start)
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
        older.publisher.send_records(rows, {0: older.next_marker(0)})
        with one_lane.lane(owner=False) as successor:
            successor.recover()
            with pytest.raises(InDoubt):
                older.publisher.commit()
            successor.drain()
    one_lane.check_exactly_once(2)


def test_records_and_marker_are_there_together_or_not_at_all(one_lane: System) -> None:
    """Guard 4: the marker is part of the records' transaction."""
    one_lane.accept(3)
    one_lane.start("relay", crash_at="relay.produced:2").wait_killed()
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
        (3, 3, "marker_foreign"),  # a copy of the database, or a second primary, went on
        (3, None, "marker_missing"),  # the marker topic was recreated, or lost it
    ],
)
def test_a_lane_whose_histories_disagree_sends_nothing(
    one_lane: System, batch_number: int, marker: int | None, reason: str
) -> None:
    """Guard 6: refusal on disagreement."""
    with one_lane.lane() as lane:
        if marker is not None:
            lane.publisher.start(0)
            lane.publisher.publish({0: Marker(marker, uuid4())}, ())
        one_lane.query("UPDATE outbox_lane SET batch_number = %s, token = %s", batch_number, uuid4())
        one_lane.accept(1)
        lane.recover()
        assert lane.lane.status == LaneStatus(LaneState.REFUSED, reason)
        assert lane.run_once() == 0
    assert one_lane.orders() == []
    assert one_lane.statuses() == {"pending": 1}


def test_a_copy_of_the_database_that_goes_on_is_refused_by_its_token(one_lane: System) -> None:
    """Guard 9: tokens are compared, and not only numbers: both histories have the same ones."""
    with one_lane.lane() as lane:
        lane.recover()
        one_lane.accept(1)
        lane.drain()
    with copied(one_lane) as copy, one_lane.lane() as lane, copy.lane() as of_copy:
        of_copy.recover()
        copy.accept(1)
        rows = of_copy.claim()
        lane.recover()
        one_lane.accept(1)
        lane.drain()
        assert lane.marker() == of_copy.next_marker(0).batch_number == 2
        with pytest.raises(InDoubt):
            of_copy.session.batches.publish({0: rows})
        of_copy.recover()
        assert of_copy.lane.status == LaneStatus(LaneState.REFUSED, "marker_foreign")
        assert of_copy.run_once() == 0
    one_lane.check_exactly_once(2)


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


# ---- the evidence -------------------------------------------------------------------------------


def test_a_read_that_ends_before_the_barrier_is_not_accepted(one_lane: System) -> None:
    """Guard 10: records that a foreign open transaction hides would be sent a second time."""
    one_lane.accept(20)  # some of them for the partition that is held up
    with one_lane.lane() as lane:
        lane.recover()
        with open_transaction(one_lane, one_lane.settings.output_topic):
            assert lane.run_once() == 20
            lane.recover()
        lane.recover()
        lane.drain()
    one_lane.check_exactly_once(20)


def test_a_late_copy_of_the_barriers_abort_ends_no_batch(wired_lane: System, wired: WiredKafka) -> None:
    """Guard 11: barriers have a transactional id of their own."""
    aborts, replays = list[Frame](), list[bytes]()

    def keep(connection: Connection, frame: Frame) -> None:
        aborts.append(frame)
        connection.forward(frame)

    def replay_and_forward(connection: Connection, frame: Frame) -> None:
        replays.append(replay(wired.behind_proxy, aborts[-1]))
        connection.forward(frame)

    rules = Rule("EndTxn of a barrier", keep, hit=0), Rule("EndTxn", replay_and_forward, hit=0)
    wired_lane.accept(2)
    with (
        wired.proxied(*rules) as proxied,
        led_through(wired_lane, proxied).lane() as lane,
    ):
        lane.recover()
        lane.drain()
        assert len(replays) == 2  # before the first marker and before the batch were committed
        assert lane.marker() == 1
    wired_lane.check_exactly_once(2)


@pytest.mark.parametrize("there", ["marker", "records"])
def test_the_log_decides_and_not_the_marker(one_lane: System, there: str) -> None:
    """Guard 12: brokers may end a transaction in one partition early, and not in the other."""
    one_lane.accept(3)
    with one_lane.lane() as lane:
        lane.recover()
        rows = lane.claim()
        if there == "marker":
            lane.publisher.publish({0: lane.next_marker(0)}, ())
        else:
            lane.publisher.publish({}, rows)
        lane.recover()
        assert lane.marker() == one_lane.query("SELECT batch_number FROM outbox_lane")[0][0]
        lane.drain()
    one_lane.check_exactly_once(3)


def test_a_claim_notes_where_a_search_begins(one_lane: System) -> None:
    """Guard 13: in its own transaction, or it could not be told whether the log still has the batch."""
    one_lane.accept(2)
    one_lane.start("relay", crash_at="relay.begun").wait_killed()
    ((start,),) = one_lane.query("SELECT search_start FROM outbox_lane")
    ((topic_id, offsets),) = [start[one_lane.settings.output_topic]]
    assert topic_id
    assert offsets == [0, 0]
    one_lane.start("relay")
    one_lane.check_exactly_once(2)


def test_what_is_sent_again_has_a_number_and_a_token_of_its_own(one_lane: System) -> None:
    """Guard 14: or a restore to before the decision would look like the same history."""
    one_lane.accept(2)
    with one_lane.lane() as lane:
        lane.recover()
        first = lane.marker()
        lane.claim()
        claimed = lane.next_marker(0)
        lane.recover()
        again = lane.next_marker(0)
        assert (first, claimed.batch_number, again.batch_number) == (0, 1, 2)
        assert again.token != claimed.token
        assert lane.markers(0) == {0: again}
        lane.drain()
    one_lane.check_exactly_once(2)
