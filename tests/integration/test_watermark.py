"""The claim watermark: a claim skips acknowledged rows, and nothing else."""

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from uuid import uuid4

import pytest

from outbox import Message, enqueue, transaction, watermark
from outbox.postgres import Connection
from testkit.eventually import eventually
from testkit.system import OwnedLane, System
from tests.integration.test_lane import create_topic


@pytest.fixture
def lane(one_lane: System, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnedLane]:
    """A lane that asks who is writing before each batch, and never looks at all of itself again."""
    monkeypatch.setattr(watermark, "WRITER_POLL_S", 0)
    monkeypatch.setattr(watermark, "MAX_TIME_SHARE", 1e9)
    monkeypatch.setattr(watermark, "FULL_SCAN_S", 3600)
    monkeypatch.setattr(watermark, "MAX_SCAN_PAUSE_S", 3600)
    with one_lane.lane(batch_size=2) as owned:
        owned.recover()
        yield owned


def put(conn: Connection, system: System, key: str, *values: bytes) -> None:
    """Write rows into the outbox, inside the caller's transaction."""
    topic = system.settings.output_topic
    enqueue(conn, [Message(topic, key.encode(), value) for value in values], 1)


def work(system: System, lane: OwnedLane, batches: int = 8) -> int:
    """Send one row after another, each in a batch of its own; return the mark afterwards."""
    for number in range(batches):
        with closing(system.connect()) as conn, transaction(conn):
            put(conn, system, "other", b"other %d" % number)
        lane.drain()
    return lane.session.batches.watermarks[0].id


def values(system: System) -> list[bytes | None]:
    """Return what is in the topic and is not of the key `other`."""
    records = system.read(system.settings.output_topic)
    return [record.value() for record in records if record.key() != b"other"]


def last_id(system: System) -> int:
    """Return the last id that the outbox gave away."""
    ((last,),) = system.query(
        "SELECT last_value FROM pg_sequences WHERE sequencename = 'outbox_id_seq'"
    )
    return int(last)


def test_the_watermark_follows_the_acknowledged_rows(one_lane: System, lane: OwnedLane) -> None:
    assert work(one_lane, lane) >= last_id(one_lane) - 2
    lane.drain()
    lane.drain()
    assert lane.session.batches.watermarks[0].id == last_id(one_lane)


def test_a_row_that_commits_late_goes_before_the_next_of_its_key(
    one_lane: System, lane: OwnedLane
) -> None:
    """Guard: the mark waits for all that could still bring a lower id."""
    with closing(one_lane.connect()) as slow:
        with transaction(slow):
            put(slow, one_lane, "camera", b"1")
            lowest = last_id(one_lane)
            assert work(one_lane, lane) < lowest
        with closing(one_lane.connect()) as conn, transaction(conn):
            put(conn, one_lane, "camera", b"2")
        lane.drain()
    assert values(one_lane) == [b"1", b"2"]
    assert work(one_lane, lane) > lowest


def test_a_prepared_transaction_counts_as_one_that_goes_on(one_lane: System, lane: OwnedLane) -> None:
    with closing(one_lane.connect()) as slow:
        slow.execute("BEGIN")
        put(slow, one_lane, "camera", b"1")
        lowest = last_id(one_lane)
        work(one_lane, lane)
        slow.execute("PREPARE TRANSACTION 'later'")
        try:
            assert work(one_lane, lane) < lowest
        finally:
            slow.execute("COMMIT PREPARED 'later'")
    lane.drain()
    assert values(one_lane) == [b"1"]


def test_a_locked_row_is_published_once_it_is_unlocked(one_lane: System, lane: OwnedLane) -> None:
    with closing(one_lane.connect()) as other:
        with transaction(other):
            put(other, one_lane, "camera", b"1")
        with transaction(other):
            other.execute("SELECT FROM outbox FOR UPDATE")
            work(one_lane, lane)
        lane.drain()
    assert values(one_lane) == [b"1"]


def test_rows_of_a_missing_topic_let_others_of_their_key_pass_and_keep_their_order(
    one_lane: System, lane: OwnedLane
) -> None:
    """Guard: more of them than a batch has, and the watermark passes over them until it is there."""
    missing, own = f"missing-{uuid4()}", one_lane.settings.output_topic
    with closing(one_lane.connect()) as conn:

        def put_both(value: bytes) -> None:
            messages = [Message(topic, b"camera", value) for topic in (missing, own)]
            with transaction(conn):
                enqueue(conn, messages, 1)

        with transaction(conn):
            enqueue(conn, [Message(missing, b"camera", b"%d" % n) for n in range(1, 9)], 1)
        put_both(b"9")
        eventually(lambda: lane.drain() == 0 and values(one_lane) == [b"9"])
        assert work(one_lane, lane) > 10
        create_topic(one_lane, missing)
        put_both(b"10")
        eventually(partial(is_empty, one_lane, lane))
    assert values(one_lane) == [b"9", b"10"]
    assert [record.value() for record in one_lane.read(missing)] == [b"%d" % n for n in range(1, 11)]


def is_empty(system: System, lane: OwnedLane) -> bool:
    """Publish what can be; return whether nothing waits."""
    lane.session.idle()
    lane.drain()
    return system.query("SELECT count(*) FROM outbox") == [(0,)]


FOREIGN = """
    INSERT INTO outbox (lane, id, topic, key, value) OVERRIDING SYSTEM VALUE
    SELECT 0, %s, %s, 'camera', 'from elsewhere'
"""


def look_at_the_whole_lane(lane: OwnedLane) -> None:
    """Do it now."""
    lane.session.batches.watermarks[0]._full_scan_at = 0
    lane.drain()


def test_a_low_id_from_elsewhere_is_found_by_a_look_at_the_whole_lane(
    one_lane: System, lane: OwnedLane
) -> None:
    assert work(one_lane, lane) > 1
    one_lane.query(FOREIGN, 1, one_lane.settings.output_topic)
    assert lane.drain() == 0
    look_at_the_whole_lane(lane)
    assert values(one_lane) == [b"from elsewhere"]


def test_a_high_id_from_elsewhere_holds_up_nothing_for_long(one_lane: System, lane: OwnedLane) -> None:
    """It seems to say that the sequence has come so far, and so that all below it was given."""
    one_lane.query(FOREIGN, 10**12, one_lane.settings.output_topic)
    lane.drain()
    lane.drain()
    lane.drain()
    assert lane.session.batches.watermarks[0].id == 10**12
    assert work(one_lane, lane) == 10**12
    look_at_the_whole_lane(lane)
    work(one_lane, lane)
    lane.drain()
    assert one_lane.query("SELECT count(*) FROM outbox") == [(0,)]
