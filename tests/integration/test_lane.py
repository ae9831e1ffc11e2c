"""One lane: batches, order, refused records, doubt and recovery."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from threading import Thread
from uuid import uuid4

import pytest
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]

from outbox import InDoubt, Message, OutboxRow, RecordRejected, enqueue, transaction
from outbox.markers import Marker
from outbox.outbox_rows import MAX_BATCH_BYTES, ClaimRequest, claim
from testkit.eventually import eventually
from testkit.proxied import led_through, postgres_proxied
from testkit.proxy import ANY, Connection, Rule
from testkit.system import OwnedLane, System, limit_messages, own_headers
from testkit.wire_protocol import Frame


def test_a_batch_is_acknowledged_when_the_next_one_is_claimed(one_lane: System) -> None:
    one_lane.accept(5)
    with one_lane.lane(batch_size=3) as lane:
        lane.recover()
        assert lane.run_once() == 3
        assert one_lane.query("SELECT count(*) FROM outbox") == [(5,)]
        assert lane.run_once() == 2
        assert one_lane.query("SELECT count(*) FROM outbox") == [(2,)]
        assert lane.run_once() == 0
        assert one_lane.query("SELECT batch_number, inflight FROM outbox_lane") == [(2, [])]
    one_lane.check_exactly_once(5)


def test_an_empty_lane_writes_nothing(one_lane: System) -> None:
    with one_lane.lane() as lane:
        lane.recover()
        lane.drain()
        before = one_lane.query("SELECT xmin::text FROM outbox_lane")
        for _ in range(3):
            assert lane.run_once() == 0
        assert one_lane.query("SELECT xmin::text FROM outbox_lane") == before


def test_one_batch_costs_one_postgres_commit_and_one_kafka_commit(one_lane: System) -> None:
    statements: list[str] = []

    def note(connection: Connection, statement: Frame) -> None:
        statements.append(statement.name)
        connection.forward(statement)

    one_lane.accept(30)
    kafka = one_lane.environ["KAFKA_BOOTSTRAP_SERVERS"]
    with (
        postgres_proxied(one_lane, [Rule(ANY, note, hit=0)]) as url,
        led_through(one_lane, kafka, DATABASE_URL=url).lane(batch_size=10) as lane,
    ):
        lane.recover()
        lane.run_once()
        statements.clear()
        lane.run_once()
        lane.run_once()
        assert lane.marker() == 3
    assert statements.count("COMMIT") == 2
    within, outside = False, set()
    for statement in filter(None, map(str.split, statements)):
        within = (within or statement[0] == "BEGIN") and statement != ["COMMIT"]
        if not within:
            outside.add(statement[0])
    assert outside <= {"COMMIT", "SELECT"}


def test_rows_of_a_key_are_published_in_the_order_of_their_ids(system: System) -> None:
    scenarios = [uuid4() for _ in range(8)]
    for _ in range(5):
        for scenario in scenarios:
            system.accept(3, scenario)
    relays = [system.start("relay", BATCH_SIZE="7"), system.start("relay", BATCH_SIZE="7")]
    system.check_exactly_once(8 * 5 * 3)
    for relay in relays:
        relay.stop()


def test_a_row_held_by_another_session_is_passed_over_and_sent_later(one_lane: System) -> None:
    one_lane.accept(3)
    with one_lane.lane() as lane, closing(one_lane.connect()) as other:
        lane.recover()
        with transaction(other):
            assert len(claim(other, [ClaimRequest(0, 1)], 10_000)[0]) == 1
            assert lane.run_once() == 2
        lane.drain()
    one_lane.check_exactly_once(3)


def long_in_its_key(topic: str, number: int) -> Message:
    return Message(topic, bytes([number]) * 900_000, b"value")


def long_in_its_value(topic: str, number: int) -> Message:
    return Message(topic, b"key", bytes([number]) * 900_000)


def long_in_its_headers(topic: str, number: int) -> Message:
    return Message(topic, b"key", b"value", [("header", bytes([number]) * 675_000)])


@pytest.mark.xdist_group("measures")
@pytest.mark.parametrize("make", [long_in_its_key, long_in_its_value, long_in_its_headers])
def test_a_backlog_of_long_rows_is_taken_in_portions_that_fit_into_memory(
    one_lane: System, make: Callable[[str, int], Message]
) -> None:
    topic = one_lane.settings.output_topic
    messages = [
        make(topic, number) if number % 3 else Message(topic, b"key", bytes([number]))
        for number in range(100)
    ]
    with one_lane.lane() as lane, closing(one_lane.connect()) as conn:
        with transaction(conn):
            enqueue(conn, messages, 1)
        with transaction(conn):
            tracemalloc.start()
            claimed = claim(conn, [ClaimRequest(0, 1000)], MAX_BATCH_BYTES * 4)[0]
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 1.5 * MAX_BATCH_BYTES
        assert [(row.key, row.value) for row in claimed] == [
            (message.key, message.value) for message in messages[: len(claimed)]
        ]
        assert MAX_BATCH_BYTES - 1_000_000 < sum(row.size_bytes for row in claimed) <= MAX_BATCH_BYTES
        lane.recover()
        lane.drain()
    found = [(record.key(), record.value(), own_headers(record)) for record in one_lane.read(topic)]
    sent = [(m.key, m.value, list(m.headers)) for m in messages]
    assert sorted(found) == sorted(sent)
    assert [one for one in found if one[0] == b"key"] == [one for one in sent if one[0] == b"key"]


def test_rows_committed_late_with_a_lower_id_are_not_lost(one_lane: System) -> None:
    topic = one_lane.settings.output_topic
    with one_lane.lane() as lane, closing(one_lane.connect()) as slow:
        lane.recover()
        with transaction(slow):
            enqueue(slow, [Message(topic, b"early", b"1")], 1)
            with closing(one_lane.connect()) as quick, transaction(quick):
                enqueue(quick, [Message(topic, b"late", b"2")], 1)
            assert lane.drain() == 1
        assert lane.drain() == 1
    assert {record.value() for record in one_lane.read(topic)} == {b"1", b"2"}
    assert one_lane.query("SELECT count(*) FROM outbox") == [(0,)]


def test_a_row_committed_between_publishing_and_acknowledging_is_not_acknowledged(
    one_lane: System,
) -> None:
    topic = one_lane.settings.output_topic
    with one_lane.lane() as lane, closing(one_lane.connect()) as slow:
        lane.recover()
        with transaction(slow):
            enqueue(slow, [Message(topic, b"early", b"1")], 1)
            with closing(one_lane.connect()) as quick, transaction(quick):
                enqueue(quick, [Message(topic, b"late", b"2")], 1)
            assert lane.run_once() == 1  # published, not yet acknowledged
        assert lane.drain() == 1
    assert {record.value() for record in one_lane.read(topic)} == {b"1", b"2"}


def test_headers_keys_and_tombstones_arrive_as_they_were(one_lane: System) -> None:
    topic = one_lane.settings.output_topic
    messages = [
        Message(topic, b"k", b"\x00\xff", [("a", b"\x00"), ("a", None), ("ü", b"")]),
        Message(topic, None, None),
        Message(topic, b"", b""),
    ]
    with one_lane.lane() as lane, closing(one_lane.connect()) as conn:
        with transaction(conn):
            enqueue(conn, messages, 1)
        lane.recover()
        lane.drain()
    found = {
        (record.key(), record.value(), tuple(own_headers(record))) for record in one_lane.read(topic)
    }
    assert found == {(m.key, m.value, tuple(m.headers)) for m in messages}


@pytest.mark.fault(19)
def test_a_record_too_large_for_its_topic_is_parked_alone(one_lane: System) -> None:
    limit_messages(one_lane, 2000)
    topic = one_lane.settings.output_topic
    values = [b"%d" % number for number in range(6)]
    values[2] = b"2" * 5000
    values[5] = b"5" * 5000
    with one_lane.lane() as lane:
        with closing(one_lane.connect()) as conn, transaction(conn):
            enqueue(conn, [Message(topic, b"k", value) for value in values], 1)
        with working(lane):
            eventually(lambda: one_lane.query("SELECT count(*) FROM outbox") == [(0,)])
        assert lane.marker() == one_lane.query("SELECT batch_number FROM outbox_lane")[0][0]
    assert [record.value() for record in one_lane.read(topic)] == [b"0", b"1", b"3", b"4"]
    parked = one_lane.query("SELECT value, reason FROM outbox_parked ORDER BY id")
    assert [value for value, _ in parked] == [values[2], values[5]]
    assert all("too large" in reason for _, reason in parked)


@pytest.mark.fault(19)
def test_a_batch_too_large_for_its_topic_is_published_row_by_row(one_lane: System) -> None:
    limit_messages(one_lane, 2000)
    one_lane.accept(40)  # each alone is small enough
    with one_lane.lane() as lane, working(lane):
        one_lane.check_exactly_once(40)
    assert one_lane.query("SELECT count(*) FROM outbox_parked") == [(0,)]


def test_a_producer_that_lost_a_connection_is_renewed_before_the_next_batch(one_lane: System) -> None:
    with one_lane.lane() as lane, working(lane):
        one_lane.accept(1)
        one_lane.check_exactly_once(1)
        before = lane.publisher.producer
        lane.publisher.note_possible_retry()
        one_lane.accept(1)
        one_lane.check_exactly_once(2)
        assert lane.publisher.producer is not before


def test_a_report_of_the_batch_before_rejects_no_record_of_the_next(one_lane: System) -> None:
    """A producer that was fenced in between fails as the transaction begins: that is a doubt."""
    limit_messages(one_lane, 2000)
    row = OutboxRow(
        0, 1, one_lane.settings.output_topic, b"k", b"x" * 5000, None, str(uuid4()), 0.0, 5001
    )
    with one_lane.lane() as lane:
        lane.recover()
        with pytest.raises(RecordRejected):
            lane.publisher.publish({0: Marker(1, uuid4())}, [row])
        lane.publisher.start(0)
        with one_lane.lane(owner=False) as other:
            other.publisher.start(0)
        producer = lane.publisher.producer
        producer.begin_transaction()
        producer.produce(row.topic, b"x")
        with suppress(KafkaException, SystemError):
            producer.flush(10)  # it learns here that it was fenced
        with pytest.raises(InDoubt):
            lane.publisher.publish({0: Marker(1, uuid4())}, [row])


def test_a_missing_topic_parks_nothing_and_its_row_waits(one_lane: System) -> None:
    missing = f"missing-{uuid4()}"
    with closing(one_lane.connect()) as conn, transaction(conn):
        enqueue(conn, [Message(missing, b"k", b"v")], 1)
    relay = one_lane.start("relay", RELAY_TOPICS=missing)
    eventually(lambda: relay.logged(f"topic {missing} is missing: create it"))
    assert not relay.logged("lane in doubt")
    assert one_lane.query("SELECT count(*) FROM outbox_parked") == [(0,)]
    create_topic(one_lane, missing)
    eventually(lambda: one_lane.query("SELECT count(*) FROM outbox") == [(0,)], 30)
    assert [record.value() for record in one_lane.read(missing)] == [b"v"]


def test_a_new_lane_has_a_marker_before_it_claims(one_lane: System) -> None:
    with one_lane.lane() as lane:
        assert lane.marker() is None
        lane.recover()
        assert lane.marker() == 0


def test_a_repaired_lane_goes_on_by_itself(one_lane: System) -> None:
    one_lane.accept(2)
    one_lane.query("UPDATE outbox_lane SET batch_number = 7")
    relay = one_lane.start("relay")
    eventually(lambda: relay.logged("marker_missing"))
    one_lane.query("UPDATE outbox_lane SET batch_number = 0")
    one_lane.check_exactly_once(2)
    assert relay.log.read_text().count("the marker in Kafka is missing") == 1


@contextmanager
def working(lane: OwnedLane) -> Iterator[None]:
    """Let a session do its whole work in a thread while the block runs."""
    thread = Thread(target=lane.session.run, args=[lambda: None])
    thread.start()
    try:
        yield
    finally:
        lane.stop.set()
        thread.join(10)


def create_topic(system: System, topic: str) -> None:
    """Create a topic of one partition, and wait until it has a leader."""
    admin = AdminClient(dict(system.settings.kafka))
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(10)

    def has_leader() -> bool:
        end = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        (answer,) = admin.list_offsets({TopicPartition(topic, 0): end}).values()
        return answer.exception(10) is None

    eventually(has_leader)
