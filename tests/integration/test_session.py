"""Several lanes in one Kafka transaction: what holds them together, and what keeps them apart."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import chain, count
from typing import Any
from uuid import uuid4

import pytest

from outbox import (
    Connection,
    InDoubt,
    LaneState,
    Message,
    RecordRejected,
    enqueue,
    transaction,
)
from outbox.batch import Batch
from outbox.lane import LaneStatus
from outbox.lane_rows import lock_lanes, read_lanes, take_lane
from outbox.message import lane_of
from outbox.recovery import Decision
from testkit.disagreement import back_up, restore, set_marker
from testkit.eventually import eventually
from testkit.system import LANES, OwnedLane, System, limit_messages
from tests.integration.test_lane import create_topic, working

ALL = tuple(range(LANES))
TRANSACTIONAL_LANES = "SELECT transactional_lane FROM outbox_lane ORDER BY lane"


def keys_of(lane: int) -> Iterator[bytes]:
    """Yield keys that fall in a lane."""
    return (key for number in count() if lane_of(key := b"%d" % number, LANES) == lane)


def put(system: System, lanes: tuple[int, ...] = ALL, value: bytes = b"value", topic: str = "") -> None:
    """Write a row into each of the lanes, for the output topic unless told."""
    topic = topic or system.settings.output_topic
    with closing(system.connect()) as conn, transaction(conn):
        enqueue(conn, [Message(topic, next(keys_of(lane)), value) for lane in lanes], LANES)


def sent(system: System) -> list[int]:
    """Return the lane of each record that a reader sees."""
    records = system.read(system.settings.output_topic)
    return sorted(lane_of(record.key() or b"", LANES) for record in records)


def begin(lanes: OwnedLane) -> None:
    """Claim what waits, and leave it in an open transaction with its markers."""
    batch = lanes.session.batches.acknowledge_and_claim(lanes.session.owned.lanes)
    lanes.publisher.producer.begin_transaction()
    markers = {number: lanes.next_marker(number) for number in batch}
    lanes.publisher.send_records(chain.from_iterable(batch.values()), markers)


def test_one_kafka_transaction_carries_a_batch_of_every_lane(system: System) -> None:
    with system.lane(*ALL) as lanes:
        lanes.recover()
        put(system)
        begin(lanes)
        assert (
            system.query(
                "SELECT batch_number, cardinality(inflight), transactional_lane FROM outbox_lane"
            )
            == [(1, 1, 0)] * LANES
        )
        lanes.publisher.commit()
        markers = lanes.markers(*ALL)
        assert markers == {number: lanes.next_marker(number) for number in ALL}
        assert {marker.batch_number for marker in markers.values() if marker} == {1}
        lanes.drain()
    assert sent(system) == [0, 1, 2, 3]
    assert system.query("SELECT count(*) FROM outbox") == [(0,)]


def test_a_new_owner_fences_the_transactional_id_of_the_batch(system: System) -> None:
    """Guards: the transactional lane is committed before Kafka begins; older producers are fenced."""
    with system.lane(1, 2) as older:
        older.recover()
        put(system, (1, 2))
        begin(older)
        with system.lane(2, owner=False) as successor:
            successor.recover()
            with pytest.raises(InDoubt):
                older.publisher.commit()
            successor.drain()
            older.recover()
            older.drain()
            assert list(older.session.owned.lanes) == [1]
    assert sent(system) == [1, 2]


def test_a_marker_sent_under_another_id_is_fenced_too(system: System) -> None:
    """Guard: the transactional lane is committed by the recovery. A late marker of an idle
    lane would otherwise fall behind the successor's.
    """
    with system.lane(1, 2) as older:
        older.recover()
        older.publisher.producer.begin_transaction()
        older.publisher.send_records((), {2: older.next_marker(2)})
        with system.lane(2, owner=False) as successor:
            successor.recover()
            put(system, (2,))
            successor.run_once()
            with pytest.raises(InDoubt):
                older.publisher.commit()
            assert successor.marker() == 1


def test_an_earlier_id_is_fenced_once_and_not_at_every_doubt(system: System) -> None:
    """Otherwise a relay that cannot read its markers would fence its neighbour endlessly."""
    with system.lane(1, 2) as neighbour:
        neighbour.recover()
        with system.lane(2, owner=False) as newcomer:
            rows = read_lanes(newcomer.conn, newcomer.session.owned.epochs([2]))
            assert not rows[2].maybe_restored
            newcomer.session.recovery.fence(rows)  # and then the markers cannot be read
            neighbour.recover()
            newcomer.session.recovery.fence(rows)
            put(system, (1,))
            assert neighbour.drain() == 1


@pytest.mark.fault(10)
def test_after_a_restore_every_id_is_fenced_with_any_transactional_lane_in_the_row(
    system: System,
) -> None:
    """Guard: a relay that took a lane among the lost commits may still send what is sent again now."""
    with system.lane(2) as first:
        first.recover()
    put(system, (2,))
    back_up(system)
    with system.lane(1, 2, owner=False) as frozen:
        frozen.recover()
        batch = frozen.session.batches.acknowledge_and_claim([2])
        restore(system)
        assert system.query("SELECT transactional_lane FROM outbox_lane WHERE lane = 2") == [(2,)]
        with system.lane(2) as successor:
            successor.recover()
            with pytest.raises(InDoubt):
                frozen.session.batches.publish(batch)
            assert successor.drain() == 1
    assert sent(system) == [2]


@pytest.mark.fault(10)
def test_a_lane_table_that_was_exchanged_for_an_older_one_counts_as_restored(system: System) -> None:
    with system.lane(*ALL) as lanes:
        lanes.recover()
        epochs = lanes.session.owned.epochs(ALL)
        assert not any(row.maybe_restored for row in read_lanes(lanes.conn, epochs).values())
        system.query("CREATE TABLE backed_up (LIKE outbox_lane INCLUDING ALL)")
        system.query("INSERT INTO backed_up TABLE outbox_lane")
        system.query("ALTER TABLE outbox_lane RENAME TO outbox_lane_old")
        system.query("ALTER TABLE backed_up RENAME TO outbox_lane")
        rows = read_lanes(lanes.conn, epochs)
        assert len(rows) == LANES
        assert all(row.maybe_restored for row in rows.values())


@pytest.mark.fault(10)
@pytest.mark.parametrize("empty", ["TRUNCATE outbox_lane", "DELETE FROM outbox_lane"])
def test_rows_that_are_put_back_while_the_relay_works_are_not_sent_again(
    system: System, empty: str
) -> None:
    with system.lane(2) as lane:
        lane.recover()
        put(system, (2,))
        system.query("CREATE TABLE older_lane AS TABLE outbox_lane")
        system.query("CREATE TABLE older AS SELECT lane, topic, key, value, message_id FROM outbox")
        assert lane.drain() == 1
        with closing(system.connect()) as conn, transaction(conn):
            conn.execute(empty.encode())
            conn.execute("INSERT INTO outbox_lane SELECT * FROM older_lane")
            conn.execute("INSERT INTO outbox (lane, topic, key, value, message_id) TABLE older")
        with pytest.raises(InDoubt):
            lane.run_once()
        lane.recover()
        assert lane.lane.refused
    assert sent(system) == [2]


@pytest.mark.fault(10)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_restore_to_before_a_batch_was_shrunk_is_seen(system: System, rows: int) -> None:
    """What is sent again has a number and a token of its own: what was parked is not sent."""
    with system.lane(2) as lane:
        lane.recover()
        put(system, (2,) * rows)
        assert len(lane.claim()) == rows
    back_up(system)
    with system.lane(2) as lane:
        lane.session.recovery.note_rejection(RecordRejected("too large", lane=2))
        lane.recover()
        assert lane.marker() == 2
    restore(system)
    with system.lane(2) as lane:
        lane.recover()
        assert lane.lane.status == LaneStatus(LaneState.REFUSED, "marker_ahead")
        assert lane.drain() == 0
    assert system.query("SELECT count(*) FROM outbox") == [(rows,)]


def test_a_released_lane_does_not_disturb_its_previous_owner(system: System) -> None:
    with system.lane(0, 1) as older:
        older.recover()
        put(system, (0, 1))
        older.run_once()
        older.session.owned.to_release = [1]
        older.session.finish()
        assert system.query(TRANSACTIONAL_LANES)[:2] == [(0,), (1,)]
        del older.session.owned.lanes[1]
        with system.lane(1, owner=False) as successor:
            successor.recover()
            put(system, (0, 1))
            assert (older.drain(), successor.drain()) == (1, 1)
    assert sent(system) == [0, 0, 1, 1]


def test_a_lane_that_is_lost_does_not_keep_the_others_from_their_work(system: System) -> None:
    with system.lane(*ALL) as lanes:
        lanes.recover()
        put(system)
        lanes.run_once()
        with system.lane(0, owner=False) as thief:  # the one whose id carries them all
            put(system)
            assert lanes.run_once() == 3
            lanes.recover()  # under another id; and fences the previous one
            thief.recover()
            assert (lanes.drain(), thief.drain()) == (0, 1)
            assert system.query(TRANSACTIONAL_LANES) == [(0,), (1,), (1,), (1,)]
    assert sent(system) == sorted([*ALL, *ALL])


def test_who_holds_the_row_of_one_lane_holds_up_no_other(system: System) -> None:
    with system.lane(*ALL) as lanes, closing(system.connect()) as other:
        lanes.recover()
        put(system)
        lanes.run_once()
        put(system)
        with transaction(other):
            other.execute("SELECT FROM outbox_lane WHERE lane = 2 FOR UPDATE")
            assert (lanes.drain(), sent(system)) == (3, [0, 0, 1, 1, 2, 3, 3])
        assert lanes.drain() == 1
    assert system.query("SELECT count(*) FROM outbox") == [(0,)]


def test_a_rejected_record_is_parked_and_the_other_lanes_are_published(system: System) -> None:
    limit_messages(system, 2000)
    put(system, value=b"good")
    put(system, (2,), value=b"x" * 5000)
    put(system, value=b"good")
    with system.lane(*ALL) as lanes, working(lanes):
        eventually(lambda: system.query("SELECT count(*) FROM outbox") == [(0,)])
    assert sent(system) == sorted([*ALL, *ALL])
    assert system.query("SELECT lane, octet_length(value) FROM outbox_parked") == [(2, 5000)]


def test_rows_whose_topic_is_missing_hold_up_no_other_row_of_their_lane(system: System) -> None:
    missing = f"missing-{uuid4()}"
    put(system, (1,), topic=missing)
    put(system)
    with system.lane(*ALL) as lanes, working(lanes):
        eventually(lambda: sent(system) == [*ALL])
        status = LaneStatus(LaneState.WAITING, f"topic {missing} is missing: create it")
        eventually(lambda: lanes.relay.lane(1).status == status)
        assert {lanes.relay.lane(lane).status.state for lane in (0, 2, 3)} == {LaneState.ACTIVE}
        create_topic(system, missing)
        eventually(lambda: system.query("SELECT count(*) FROM outbox") == [(0,)])
        eventually(lambda: lanes.relay.lane(1).status.state is LaneState.ACTIVE)
    assert [record.value() for record in system.read(missing)] == [b"value"]


def test_a_doubt_after_a_batch_was_shrunk_parks_nothing(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row that is left of the batch was not refused, it was only not sent."""
    limit_messages(system, 2000)
    put(system, (1, 1))
    put(system, (1,), value=b"x" * 5000)
    with system.lane(*ALL) as lanes:
        decide, publish = lanes.session.recovery.decide, lanes.publisher.publish

        def shrink_and_lose_kafka(*arguments: Any) -> dict[int, Decision]:
            decisions = decide(*arguments)
            if arguments[-1] and decisions[1].row.inflight:
                monkeypatch.setattr(lanes.publisher, "publish", lose_kafka)
            return decisions

        def lose_kafka(*_: object) -> None:
            monkeypatch.setattr(lanes.publisher, "publish", publish)
            lost.append(True)
            raise InDoubt("no answer")

        lost: list[bool] = []
        monkeypatch.setattr(lanes.session.recovery, "decide", shrink_and_lose_kafka)
        with working(lanes):
            eventually(lambda: system.query("SELECT count(*) FROM outbox") == [(0,)])
        assert lost
    assert sent(system) == [1, 1]
    assert system.query("SELECT octet_length(value) FROM outbox_parked") == [(5000,)]


def test_a_refused_lane_is_not_acknowledged_and_blocks_no_other(system: System) -> None:
    put(system)
    with system.lane(*ALL) as lanes:
        lanes.recover()
        lanes.run_once()
    set_marker(system, 7, lane=1)
    with system.lane(*ALL) as lanes:
        lanes.recover()
        put(system)
        lanes.drain()
        lanes.session.owned.to_release = list(ALL)
        lanes.session.finish()
        assert {number for number, lane in lanes.session.owned.lanes.items() if lane.refused} == {1}
        assert system.query("SELECT DISTINCT lane FROM outbox") == [(1,)]
        assert system.query("SELECT count(*) FROM outbox") == [(2,)]


def test_the_locks_wait_for_a_take_over_that_is_being_committed(system: System) -> None:
    with closing(system.connect()) as owner, closing(system.connect("taker")) as taker:
        epochs = {number: take_lane(owner, number) for number in ALL}
        with ThreadPoolExecutor(1) as thread:
            with transaction(taker):
                take_lane(taker, 2)
                locked = thread.submit(lock_in_transaction, owner, epochs)
                eventually(lambda: system.query(WAITING) == [(1,)])
            assert locked.result(5) == [0, 1, 3]


def test_a_producer_is_renewed_when_the_lanes_change(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a zombie under the same id, which had fenced our producer, could still commit its batch."""
    with system.lane(0, strict_fencing=True) as relay:
        relay.recover()
        with system.lane(0, 1, owner=False) as zombie:
            zombie.recover()
            put(system, (1,))
            batch = zombie.session.batches.acknowledge_and_claim([1])
            for number in (0, 1):
                relay.session.owned.take_epoch(number)
            publish = relay.session.batches.publish

            def publish_after_the_zombie(again: Batch) -> None:
                with suppress(InDoubt):
                    zombie.session.batches.publish(batch)
                publish(again)

            monkeypatch.setattr(relay.session.batches, "publish", publish_after_the_zombie)
            relay.recover()
    assert sent(system) == [1]


WAITING = """
    SELECT count(*) FROM pg_stat_activity
     WHERE datname = current_database() AND wait_event IN ('transactionid', 'tuple')
"""


def lock_in_transaction(conn: Connection, epochs: dict[int, int]) -> list[int]:
    """Return which lanes are still ours, by the word of `lock_lanes`."""
    with transaction(conn):
        return list(lock_lanes(conn, epochs))
