"""The log decides after a doubt: what a recovery finds in the topics, and what it cannot know."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)

from outbox import (
    InDoubt,
    LaneState,
    Message,
    Observer,
    OutboxRow,
    Timings,
    enqueue,
    transaction,
)
from outbox.admin import RowId, marker_key, retry_parked
from outbox.lane import LaneStatus, Outcome
from outbox.log_reader import read_committed
from testkit.disagreement import forget_markers
from testkit.eventually import eventually
from testkit.installations import Installations
from testkit.proxied import led_through
from testkit.system import LANES, OwnedLane, System, delete_before, limit_messages, recreate
from tests.integration.test_lane import create_topic, working
from tests.integration.test_session import ALL, put, sent

Headers = list[tuple[str, str | bytes | None]]

# ---- the tools ----------------------------------------------------------------------------------


@dataclass
class Outcomes(Observer):
    """Keeps what recoveries found."""

    found: list[Outcome] = field(default_factory=list)

    def recovered(self, outcome: Outcome) -> None:
        """Keep one."""
        self.found.append(outcome)


@contextmanager
def open_transaction(system: System, topic: str) -> Iterator[int]:
    """Leave another producer's transaction open in partition 0 of a topic; yield its first offset."""
    offsets = list[int]()
    config = {**system.settings.kafka, "transactional.id": f"foreign-{uuid4()}"}
    producer = Producer(config)
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(
        topic,
        b"foreign",
        b"foreign",
        partition=0,
        on_delivery=lambda _error, record: offsets.append(record.offset() or 0),
    )
    assert producer.flush(10) == 0
    try:
        yield offsets[0]
    finally:
        producer.abort_transaction(30)


@pytest.fixture
def topic(one_lane: System) -> str:
    """Return a topic of one partition."""
    name = f"orders-{uuid4()}"
    create_topic(one_lane, name)
    return name


def enqueue_rows(system: System, topic: str, rows: int = 3) -> None:
    """Write rows of one key for a topic."""
    with closing(system.connect()) as conn, transaction(conn):
        enqueue(conn, [Message(topic, b"key", b"%d" % number) for number in range(rows)], 1)


def values_in(system: System, topic: str) -> list[bytes | None]:
    """Return what a read_committed reader sees of a topic."""
    return [record.value() for record in system.read(topic)]


def send_alone(lane: OwnedLane, rows: list[OutboxRow]) -> None:
    """Commit records of a batch without its marker, as if brokers had done the rest too late."""
    lane.publisher.publish({}, rows)


def fill(system: System, topic: str, records: int, key: bytes | None = None) -> None:
    """Write records that belong to no outbox."""
    producer = Producer({**system.settings.kafka})
    for _ in range(records):
        producer.produce(topic, b"x", key, partition=0)
    assert producer.flush(10) == 0


def set_config(system: System, topic: str, name: str, value: str) -> None:
    """Set a property of a topic, and wait until the broker says so."""
    admin = AdminClient(dict(system.settings.kafka))
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    changed = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin.incremental_alter_configs([changed])[changed].result(10)
    asked = ConfigResource(ResourceType.TOPIC, topic)

    def is_set() -> bool:
        answer = admin.describe_configs([asked])[asked]  # a busy broker does not know a new topic yet
        return answer.exception(10) is None and answer.result()[name].value == value

    eventually(is_set)


def check_refused(system: System, lane: OwnedLane, *words: str, rows: int = 3) -> None:
    """Check that the lane is refused because of its log, keeps its rows, and says why."""
    assert lane.lane.status == LaneStatus(LaneState.REFUSED, "log_unusable")
    assert lane.run_once() == 0
    ((reason, inflight),) = system.query("SELECT log_refusal, cardinality(inflight) FROM outbox_lane")
    assert inflight == rows
    assert system.query("SELECT count(*) FROM outbox") == [(rows,)]
    for word in words:
        assert word in reason, reason


# ---- all, none, some ----------------------------------------------------------------------------


@pytest.mark.parametrize("marker", [True, False])
@pytest.mark.parametrize(
    ("there", "outcome", "batch_number"),
    [
        (3, Outcome.PUBLISHED, 1),
        (2, Outcome.PARTLY_PUBLISHED, 2),
        (1, Outcome.PARTLY_PUBLISHED, 2),
        (0, Outcome.NOT_PUBLISHED, 2),
    ],
)
def test_the_rows_that_are_there_are_acknowledged_and_the_others_sent(
    one_lane: System, topic: str, there: int, outcome: Outcome, batch_number: int, marker: bool
) -> None:
    """Whether the marker is there or not: it only tells whether the history is the same."""
    outcomes = Outcomes()
    enqueue_rows(one_lane, topic)
    with one_lane.lane(observer=outcomes) as lane:
        lane.recover()
        rows = lane.claim()
        claimed = lane.next_marker(0)
        lane.publisher.publish({0: claimed} if marker else {}, rows[:there])
        lane.recover()
        assert outcomes.found == [Outcome.NEW_LANE, outcome]
        again = lane.next_marker(0)
        assert again.batch_number == batch_number
        assert (again == claimed) == (there == 3)
        assert lane.markers(0) == {0: again}
        inflight = [row.id for row in rows[there:]]
        assert one_lane.query("SELECT inflight FROM outbox_lane") == [(inflight,)]
        assert one_lane.query("SELECT id FROM outbox ORDER BY id") == [(one,) for one in inflight]
        assert lane.run_once() == 0
    assert values_in(one_lane, topic) == [b"0", b"1", b"2"]
    assert one_lane.query("SELECT count(*) FROM outbox") == [(0,)]


def test_what_was_acknowledged_by_the_log_is_told_to_the_service(one_lane: System) -> None:
    one_lane.accept(3)
    with one_lane.lane() as lane:
        lane.recover()
        send_alone(lane, lane.claim()[:2])
        lane.recover()
        assert one_lane.statuses() == {"deployed": 2, "pending": 1}
        lane.drain()
    one_lane.check_exactly_once(3)


def test_a_second_doubt_searches_for_what_was_sent_again(one_lane: System, topic: str) -> None:
    enqueue_rows(one_lane, topic)
    with one_lane.lane() as lane:
        lane.recover()
        send_alone(lane, lane.claim()[:1])
        for _ in range(3):  # the second finds the two others, the third nothing in flight
            lane.recover()
        assert lane.marker() == 2
        assert one_lane.query("SELECT inflight, search_start FROM outbox_lane") == [([], None)]
    assert values_in(one_lane, topic) == [b"0", b"1", b"2"]


def test_rows_of_a_batch_go_to_several_topics(one_lane: System, topic: str) -> None:
    second = one_lane.settings.output_topic
    enqueue_rows(one_lane, topic, 2)
    enqueue_rows(one_lane, second, 2)
    with one_lane.lane() as lane:
        lane.recover()
        rows = lane.claim()
        send_alone(lane, [rows[0], rows[2]])
        lane.recover()
        lane.drain()
    assert values_in(one_lane, topic) == values_in(one_lane, second) == [b"0", b"1"]


# ---- what the log cannot tell -------------------------------------------------------------------


@pytest.mark.parametrize(("key", "value"), [(b"key", b"another"), (b"another", b"0"), (None, b"0")])
def test_a_record_with_a_rows_id_and_other_bytes_is_refused(
    one_lane: System, topic: str, key: bytes | None, value: bytes
) -> None:
    fill(one_lane, topic, 5)
    enqueue_rows(one_lane, topic, 1)
    with one_lane.lane() as lane:
        lane.recover()
        (row,) = lane.claim()
        send_alone(lane, [row._replace(key=key, value=value)])
        lane.recover()
        check_refused(one_lane, lane, f"{topic}[0] offset 5", "not its bytes", rows=1)


def test_a_topic_that_was_deleted_holds_a_lane_up_and_recreated_it_is_refused(
    one_lane: System, topic: str
) -> None:
    enqueue_rows(one_lane, topic)
    with one_lane.lane() as lane:
        lane.recover()
        send_alone(lane, lane.claim())
        admin = AdminClient(dict(one_lane.settings.kafka))
        admin.delete_topics([topic])[topic].result(10)
        eventually(lambda: topic not in admin.list_topics(timeout=10).topics)
        lane.recover()
        assert lane.lane.status.state is LaneState.BACKING_OFF
        assert f"topic {topic} is missing" in (lane.lane.status.reason or "")
        assert lane.run_once() == 0
        create_topic(one_lane, topic)
        eventually(lambda: topic in admin.list_topics(timeout=10).topics)
        lane.recover()
        check_refused(one_lane, lane, f"topic {topic} was recreated")


def test_a_topic_that_was_recreated_is_refused(one_lane: System, topic: str) -> None:
    enqueue_rows(one_lane, topic)
    with one_lane.lane() as lane:
        lane.recover()
        lane.claim()
        recreate(one_lane, topic)
        lane.recover()
        check_refused(one_lane, lane, f"topic {topic} was recreated")


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_log_that_begins_after_the_batch_could_have_is_refused(
    one_lane: System, topic: str, beyond: int
) -> None:
    fill(one_lane, topic, 4)
    enqueue_rows(one_lane, topic)
    with one_lane.lane() as lane:
        lane.recover()
        lane.claim()
        fill(one_lane, topic, 4)
        delete_before(one_lane, topic, 0, 4 + beyond)
        lane.recover()
        if beyond:
            check_refused(one_lane, lane, f"{topic}[0] begins at offset 5", "from offset 4")
            return
        lane.drain()
    assert values_in(one_lane, topic)[4:] == [b"0", b"1", b"2"]


def test_rows_that_are_still_there_need_no_beginning_of_the_log(one_lane: System, topic: str) -> None:
    fill(one_lane, topic, 4)
    enqueue_rows(one_lane, topic)
    with one_lane.lane() as lane:
        lane.recover()
        rows = lane.claim()
        fill(one_lane, topic, 4)
        send_alone(lane, rows)
        delete_before(one_lane, topic, 0, 8)
        lane.recover()
        assert not lane.lane.refused
    assert values_in(one_lane, topic) == [b"0", b"1", b"2"]


@pytest.mark.parametrize("there", [2, 3])
def test_a_compacted_topic_can_tell_what_is_there_and_not_what_is_missing(
    one_lane: System, topic: str, there: int
) -> None:
    set_config(one_lane, topic, "cleanup.policy", "compact")
    enqueue_rows(one_lane, topic)
    with one_lane.lane() as lane:
        lane.recover()
        send_alone(lane, lane.claim()[:there])
        lane.recover()
        if there < 3:
            check_refused(one_lane, lane, f"topic {topic} is compacted")
        else:
            assert one_lane.query("SELECT count(*) FROM outbox") == [(0,)]


def test_a_search_without_a_noted_start_is_refused(one_lane: System, topic: str) -> None:
    enqueue_rows(one_lane, topic)
    with one_lane.lane() as lane:
        lane.recover()
        lane.claim()
        one_lane.query("UPDATE outbox_lane SET search_start = NULL")
        lane.recover()
        check_refused(one_lane, lane, f"not noted where {topic} ended")


def test_a_refused_lane_goes_on_when_the_log_can_tell_again(one_lane: System, topic: str) -> None:
    enqueue_rows(one_lane, topic)
    with one_lane.lane() as lane:
        lane.recover()
        lane.claim()
        fill(one_lane, topic, 1, b"key")  # of which ours may have been the earlier one
        set_config(one_lane, topic, "cleanup.policy", "compact")
        lane.recover()
        check_refused(one_lane, lane, "compacted")
        set_config(one_lane, topic, "cleanup.policy", "delete")
        lane.recover()
        assert one_lane.query("SELECT log_refusal FROM outbox_lane") == [(None,)]
        lane.drain()
    assert values_in(one_lane, topic)[1:] == [b"0", b"1", b"2"]


# ---- a transaction of another producer ----------------------------------------------------------


def test_a_foreign_open_transaction_holds_up_only_lanes_with_rows_in_flight(system: System) -> None:
    topic = system.settings.output_topic
    with system.lane(*ALL, timings=Timings(held_up_s=0.5, refused_recheck_s=0.5)) as lanes:
        lanes.recover()
        put(system, (2,))
        lanes.session.batches.acknowledge_and_claim([2])
        with open_transaction(system, topic) as offset:
            lanes.recover()
            held_up = lanes.relay.lane(2)
            assert held_up.status.state is LaneState.BACKING_OFF
            assert held_up.status.reason == (
                f"{topic}[0]: a transaction of another producer is open at offset {offset}"
            )
            assert [lane.number for lane in lanes.session.owned.working()] == [0, 1, 3]
            put(system, (0, 1, 3))
            assert lanes.drain() == 3
            assert system.query("SELECT lane FROM outbox") == [(2,)]
        with working(lanes):
            eventually(lambda: system.query("SELECT count(*) FROM outbox") == [(0,)])
    assert sent(system) == [0, 1, 2, 3]


def test_a_batch_behind_a_foreign_open_transaction_is_not_sent_twice(system: System) -> None:
    topic = system.settings.output_topic
    with system.lane(*ALL, timings=Timings(held_up_s=0.5)) as lanes:
        lanes.recover()
        with open_transaction(system, topic):
            put(system)
            assert lanes.run_once() == 4
            lanes.recover()
            working_lanes = lanes.session.owned.working()
            assert len(working_lanes) < LANES  # of the others the partition can be read
        with working(lanes):
            eventually(lambda: system.query("SELECT count(*) FROM outbox") == [(0,)])
    assert sent(system) == [0, 1, 2, 3]


# ---- topics that come, grow ---------------------------------------------------------------------


def test_rows_in_flight_of_a_topic_that_was_missing_at_the_claim_may_go_there_later(
    one_lane: System,
) -> None:
    """As an earlier release has left them, which claimed such rows."""
    missing = f"missing-{uuid4()}"
    enqueue_rows(one_lane, one_lane.settings.output_topic)
    with one_lane.lane(timings=Timings(kafka_call_s=4.0)) as lane:
        lane.recover()
        lane.claim()
        one_lane.query("UPDATE outbox SET topic = %s", missing)
        one_lane.query("UPDATE outbox_lane SET search_start = %s", json.dumps({missing: [None, []]}))
        lane.recover()  # nothing of it can be there: it is left, and sent later
        assert one_lane.query("SELECT inflight FROM outbox_lane") == [([],)]
        create_topic(one_lane, missing)
        eventually(lambda: drains(lane, 3))
    assert values_in(one_lane, missing) == [b"0", b"1", b"2"]


def drains(lane: OwnedLane, rows: int) -> bool:
    """Look at the topics and publish what can be; say whether it was so many rows."""
    lane.session.idle()
    return lane.drain() == rows


@pytest.mark.parametrize("there", [0, 2])
def test_partitions_added_after_the_claim_are_searched_from_their_beginning(
    one_lane: System, topic: str, there: int
) -> None:
    enqueue_rows(one_lane, topic, 2)
    with one_lane.lane() as lane:
        lane.recover()
        rows = lane.claim()
        admin = AdminClient(dict(one_lane.settings.kafka))
        admin.create_partitions([NewPartitions(topic, 3)])[topic].result(10)
        eventually(lambda: len(admin.list_topics(timeout=10).topics[topic].partitions) == 3)
        producer = Producer({**one_lane.settings.kafka})
        for row in rows[:there]:
            headers: Headers = [("message-id", row.message_id)]
            producer.produce(topic, row.value, row.key, partition=2, headers=headers)
        assert producer.flush(10) == 0
        lane.recover()
        lane.drain()
    assert sorted(filter(None, values_in(one_lane, topic))) == [b"0", b"1"]


# ---- the message id -----------------------------------------------------------------------------


def test_a_parked_row_keeps_its_message_id_and_is_sent_with_it(one_lane: System) -> None:
    topic = one_lane.settings.output_topic
    limit_messages(one_lane, 2000)
    with closing(one_lane.connect()) as conn, transaction(conn):
        enqueue(conn, [Message(topic, b"k", b"x" * 5000)], 1)
    (named,) = one_lane.query("SELECT message_id::text FROM outbox")
    with one_lane.lane() as lane, working(lane):
        eventually(lambda: one_lane.query("SELECT count(*) FROM outbox_parked") == [(1,)])
        assert one_lane.query("SELECT message_id::text FROM outbox_parked") == [named]
        limit_messages(one_lane, 1_000_000)
        with closing(one_lane.connect()) as conn, transaction(conn):
            ((lane_number, row_id),) = one_lane.query("SELECT lane, id FROM outbox_parked")
            assert len(retry_parked(conn, [RowId(lane_number, row_id)])) == 1
        eventually(lambda: one_lane.query("SELECT count(*) FROM outbox") == [(0,)])
    (record,) = one_lane.read(topic)
    assert record.headers() == [("message-id", named[0].encode())]


def test_a_messages_own_header_of_that_name_comes_before_ours(one_lane: System, topic: str) -> None:
    with closing(one_lane.connect()) as conn, transaction(conn):
        enqueue(conn, [Message(topic, b"k", b"v", [("message-id", b"of the service")])], 1)
    with one_lane.lane() as lane:
        lane.recover()
        (row,) = lane.claim()
        send_alone(lane, [row])
        lane.recover()
        assert one_lane.query("SELECT count(*) FROM outbox") == [(0,)]
    (record,) = one_lane.read(topic)
    assert record.headers() == [
        ("message-id", b"of the service"),
        ("message-id", row.message_id.encode()),
    ]


# ---- markers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "committed"), [(3, True), (15, False), (16, True), (17, False), (300, True)]
)
def test_a_marker_is_found_far_before_the_end(one_lane: System, records: int, committed: bool) -> None:
    """Behind it are barriers, aborted transactions, markers of other outboxes: none is ours."""
    topic = one_lane.settings.marker_topic
    with one_lane.lane() as lane:
        lane.recover()
        one_lane.accept(1)
        lane.drain()
        producer = Producer({**one_lane.settings.kafka, "transactional.id": f"other-{uuid4()}"})
        producer.init_transactions(30)
        producer.begin_transaction()
        for number in range(records):
            key = b"barrier" if number % 2 else marker_key(uuid4())
            producer.produce(topic, b"{}", key, partition=0)
        (producer.commit_transaction if committed else producer.abort_transaction)(30)
        for _ in range(3):
            lane.recover()
            assert not lane.lane.refused
            assert lane.marker() == 1
        one_lane.accept(1)
        lane.drain()
        assert lane.marker() == 2
    one_lane.check_exactly_once(2)


def test_an_aborted_marker_does_not_count(one_lane: System) -> None:
    with one_lane.lane() as lane:
        lane.recover()
        one_lane.accept(1)
        rows = lane.claim()
        lane.publisher.producer.begin_transaction()
        lane.publisher.send_records(rows, {0: lane.next_marker(0)})
        lane.recover()
        assert lane.marker() == 2
        lane.drain()
    one_lane.check_exactly_once(1)


def test_a_deleted_marker_is_missing(one_lane: System) -> None:
    one_lane.accept(1)
    with one_lane.lane() as lane:
        lane.recover()
        lane.drain()
        forget_markers(one_lane)
        lane.recover()
        assert lane.lane.status == LaneStatus(LaneState.REFUSED, "marker_missing")


def test_two_outboxes_share_a_marker_topic(
    one_lane: System, installations: Installations, tmp_path: Path
) -> None:
    with installations.system(tmp_path / "second", lanes=1) as made:
        second = led_through(
            made,
            one_lane.environ["KAFKA_BOOTSTRAP_SERVERS"],
            MARKER_TOPIC=one_lane.settings.marker_topic,
        )
        with one_lane.lane() as lane, second.lane() as other:
            for number in (1, 2, 3):
                for system, owned in ((one_lane, lane), (second, other)):
                    owned.recover()
                    system.accept(number)
                    owned.drain()
                    assert owned.marker() == number
            assert lane.next_marker(0).token != other.next_marker(0).token
        one_lane.check_exactly_once(6)
        second.check_exactly_once(6)


def test_a_marker_topic_that_is_not_compacted_is_named(one_lane: System) -> None:
    topic = one_lane.settings.marker_topic
    set_config(one_lane, topic, "cleanup.policy", "delete")
    with one_lane.lane() as lane:
        with pytest.raises(InDoubt, match=f"topic {topic} must be compacted"):
            lane.recover()
        set_config(one_lane, topic, "cleanup.policy", "compact")
        lane.recover()
        assert lane.marker() == 0


def test_a_compacted_topic_without_a_later_record_of_the_key_misses_nothing(
    one_lane: System, topic: str
) -> None:
    set_config(one_lane, topic, "cleanup.policy", "compact")
    enqueue_rows(one_lane, topic)
    with one_lane.lane() as lane:
        lane.recover()
        lane.claim()
        fill(one_lane, topic, 2, b"another key")
        lane.recover()
        lane.drain()
    assert values_in(one_lane, topic)[2:] == [b"0", b"1", b"2"]


# ---- while a recovery looks ---------------------------------------------------------------------


def test_records_that_retention_deletes_while_they_are_looked_for_are_not_sent_again(
    one_lane: System, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: the log start is read once more after the log. A reader passes over what is deleted."""
    enqueue_rows(one_lane, topic)
    with one_lane.lane() as lane:
        lane.recover()
        send_alone(lane, lane.claim())

        def delete_and_read(*values: Any) -> Iterator[Any]:
            delete_before(one_lane, topic, 0, 3)
            return read_committed(*values)

        monkeypatch.setattr("outbox.evidence.read_committed", delete_and_read)
        lane.recover()
        check_refused(one_lane, lane, f"{topic}[0] begins at offset 3", "from offset 0")


def test_a_topic_recreated_while_it_is_looked_through_is_refused(
    one_lane: System, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: so is the topic id."""
    enqueue_rows(one_lane, topic)
    with one_lane.lane() as lane:
        lane.recover()
        lane.claim()

        def read_and_recreate(*values: Any) -> Iterator[Any]:
            yield from read_committed(*values)
            recreate(one_lane, topic)

        monkeypatch.setattr("outbox.evidence.read_committed", read_and_recreate)
        lane.recover()
        check_refused(one_lane, lane, f"topic {topic} was recreated")


def test_a_record_that_a_consumer_forwards_with_its_headers_is_another_message(
    one_lane: System, topic: str
) -> None:
    enqueue_rows(one_lane, topic, 1)
    with closing(one_lane.connect()) as conn, transaction(conn):
        enqueue(conn, [Message(one_lane.settings.output_topic, b"key", b"other")], 1)
    with one_lane.lane() as lane:
        lane.recover()
        first, other = lane.claim()
        lane.publisher.publish({}, [other._replace(message_id=first.message_id), first])
        lane.recover()
        assert not lane.lane.refused
        lane.drain()
    assert values_in(one_lane, topic) == [b"0"]


@pytest.mark.parametrize("policy", ["delete", "compact,delete"])
def test_a_marker_topic_from_which_retention_deletes_is_named(one_lane: System, policy: str) -> None:
    set_config(one_lane, one_lane.settings.marker_topic, "cleanup.policy", policy)
    with one_lane.lane() as lane, pytest.raises(InDoubt, match="must be compacted"):
        lane.recover()


def test_an_open_transaction_in_one_lanes_marker_partition_holds_up_that_lane_alone(
    system: System,
) -> None:
    with system.lane(*ALL) as lanes:
        lanes.recover()
        put(system)
        with open_transaction(system, system.settings.marker_topic):
            lanes.recover()
            assert lanes.relay.lane(0).status.state is LaneState.BACKING_OFF
            assert "open at offset" in (lanes.relay.lane(0).status.reason or "")
            assert lanes.drain() == LANES - 1
    assert sent(system) == [1, 2, 3]
