"""The consumer's session and process: exactly once into Postgres, whatever happens on the way."""

import json
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from time import monotonic, time
from typing import Any, cast
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    Producer,
    TopicPartition,
)
from confluent_kafka import Message as Record
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    NewPartitions,
    NewTopic,
)

from orchestrator.config.timings import ConsumerTimings
from orchestrator.consumer.client import GroupMember
from orchestrator.consumer.offsets import OffsetConflict
from orchestrator.consumer.session import ConsumerSession
from orchestrator.contract.messages import worker_id
from orchestrator.kafka import topics
from orchestrator.observability.health import Health
from orchestrator.observability.metrics import ConsumerMetrics, new_registry
from outbox import Headers
from testkit.eventually import eventually
from testkit.system import (
    PARTITIONS,
    Running,
    System,
    delete_before,
    end_sessions,
    own_headers,
    recreate_input,
    take,
)

KEY = b"one partition"
OFTEN_REFRESHED = {"KAFKA_CONFIG_TOPIC_METADATA_REFRESH_INTERVAL_MS": "500"}
REBALANCED_S = 6.0  # longer than a rebalance of one member
SOON_RECHECKED = ConsumerTimings(position_check_s=0.1)
NEVER_RECHECKED = ConsumerTimings(position_check_s=600)


def command() -> bytes:
    """Return a valid command."""
    return msgspec.json.encode({"scenario_uuid": str(uuid4()), "camera_url": "rtsp://u:p@camera/1"})


def accepted(system: System) -> int:
    """Count the workers; each has one outbox row, and no scenario comes twice."""
    ((workers, scenarios, rows, paired),) = system.query(
        "SELECT (SELECT count(*) FROM workers), (SELECT count(DISTINCT scenario_uuid) FROM workers),"
        " (SELECT count(aggregate_id) FROM outbox),"
        " (SELECT count(*) FROM workers JOIN outbox ON aggregate_id = worker_id)"
    )
    assert workers == scenarios == rows == paired
    return int(workers)


def dead_letters(system: System) -> int:
    """Count the outbox rows that are about no worker."""
    return int(system.query("SELECT count(*) FROM outbox WHERE aggregate_id IS NULL")[0][0])


def stored(system: System) -> dict[int, int]:
    """Return the next offsets in Postgres by partition."""
    return dict(system.query("SELECT partition, next_offset FROM consumed_offsets"))


def set_offset(system: System, partition: int, offset: int) -> None:
    """Repair a partition as `orchestrator repair partition` does."""
    admin = AdminClient(dict(system.settings.kafka))
    system.query(
        "UPDATE consumed_offsets SET topic_id = %s, next_offset = %s, decided_end = %s,"
        " leader_epoch = -1, refusal = NULL WHERE partition = %s",
        topics.read_topic_id(admin, system.settings.input_topic),
        offset,
        offset,
        partition,
    )


# ---- offsets --------------------------------------------------------------------------------------


def test_offset_worker_and_outbox_row_are_written_by_one_transaction(system: System) -> None:
    system.submit(1)
    with system.consumer() as session:
        take(session, 1)
    ((partition, offset),) = [place for place in stored(system).items() if place[1]]
    assert offset == 1
    ((workers, outbox, offsets),) = system.query(
        "SELECT (SELECT xmin::text FROM workers), (SELECT xmin::text FROM outbox),"
        " (SELECT xmin::text FROM consumed_offsets WHERE partition = %s)",
        partition,
    )
    assert workers == outbox == offsets


@pytest.mark.parametrize("nonsense", [0, 1_000_000])
def test_reading_goes_on_from_postgres_and_not_from_kafka(system: System, nonsense: int) -> None:
    topic, group = system.settings.input_topic, system.settings.consumer_group
    system.submit(6)
    with system.consumer() as session:
        take(session, 6)
    shown = [TopicPartition(topic, partition, nonsense) for partition in range(PARTITIONS)]
    admin = AdminClient(dict(system.settings.kafka))
    moved = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, shown)])
    moved[group].result()
    system.submit(2)
    with system.consumer() as session:
        take(session, 2)
        assert session.run_once() == 0
    assert accepted(system) == 8


def test_kafka_shows_a_copy_of_the_offsets(system: System) -> None:
    topic, group = system.settings.input_topic, system.settings.consumer_group
    system.submit(20)
    with (
        system.consumer() as session,
        closing(Consumer({**system.settings.kafka, "group.id": group})) as looker,
    ):
        take(session, 20)
        places = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]

        def is_shown() -> bool:
            session.run_once()
            shown = looker.committed(places, timeout=5)
            return {place.partition: place.offset for place in shown} == stored(system)

        eventually(is_shown)


@pytest.mark.parametrize("first", [0, 3])
def test_a_partition_never_seen_starts_where_its_log_begins(system: System, first: int) -> None:
    system.produce(*[command() for _ in range(5)], partition=0)
    delete_before(system, system.settings.input_topic, 0, first)
    with system.consumer() as session:
        take(session, 5 - first)
        assert session.refused() == {}
    assert accepted(system) == 5 - first


def test_records_read_again_make_no_second_worker_and_new_ones_beside_them_count(
    system: System,
) -> None:
    system.produce(*[command() for _ in range(5)], key=KEY)
    with system.consumer() as session:
        take(session, 5)
    system.query("DELETE FROM consumed_offsets")
    system.produce(*[command() for _ in range(3)], key=KEY)
    metrics = ConsumerMetrics(new_registry("consumer"), Health())
    with system.consumer(metrics=metrics) as session:
        assert eventually(session.run_once) == 8  # old and new in one batch
        results = metrics._records
        assert results.labels("duplicate")._value.get() == 5
        assert results.labels("accepted")._value.get() == 3
    assert accepted(system) == 8


MOVED = {
    "offset": "UPDATE consumed_offsets SET next_offset = next_offset + 1",
    "topic": "UPDATE consumed_offsets SET topic_id = gen_random_uuid()",
    "epoch": "UPDATE consumed_offsets SET leader_epoch = leader_epoch + 1",
    "decided": "UPDATE consumed_offsets SET decided_end = decided_end + 9",
    "again": "UPDATE consumed_offsets SET decide_again = NOT decide_again",
    "refused": "UPDATE consumed_offsets SET refusal = 'log_truncated'",
    "gone": "DELETE FROM consumed_offsets",
}


@pytest.mark.fault(22)
@pytest.mark.parametrize("moved", MOVED)
def test_guard_a_batch_whose_offset_another_consumer_moved_leaves_nothing(
    system: System, moved: str
) -> None:
    with system.consumer(NEVER_RECHECKED) as session:
        eventually(lambda: session.run_once() == 0 and session.positions())
        system.query(MOVED[moved])
        before = stored(system)
        system.produce(*[command() for _ in range(3)], b"no command", key=KEY)
        with pytest.raises(OffsetConflict):
            eventually(session.run_once)
        assert stored(system) == before
    assert (accepted(system), dead_letters(system)) == (0, 0)


# ---- several consumers ----------------------------------------------------------------------------


def counted(consumer: Running) -> int:
    """Return how many commands a consumer says it accepted."""
    metrics = consumer.get("/metrics")
    name = 'orchestrator_records_total{result="accepted"} '
    (line,) = [line for line in metrics.splitlines() if line.startswith(name)]
    return int(float(line.removeprefix(name)))


def test_two_consumers_share_the_partitions_and_double_nothing(system: System) -> None:
    consumers = [system.start("consumer", BATCH_SIZE="20") for _ in range(2)]
    sent = 0

    def both_work() -> bool:
        nonlocal sent
        system.submit(20)
        sent += 20
        return all(counted(consumer) for consumer in consumers)

    eventually(both_work)
    eventually(lambda: accepted(system) == sent)
    for consumer in consumers:
        consumer.stop()
    system.submit(1)  # nothing is left over either
    with system.consumer() as session:
        take(session, 1)
        assert session.run_once() == 0
    assert accepted(system) == sent + 1


@pytest.mark.fault(22)
@pytest.mark.parametrize("point", [pytest.param("polled:2", marks=pytest.mark.slow), "inserted:2"])
def test_a_zombie_consumer_does_no_harm_and_works_again(system: System, point: str) -> None:
    system.submit(1)
    zombie = system.start("consumer", crash_at=f"consumer.{point}:freeze")
    eventually(lambda: accepted(system) == 1)
    system.produce(*[command() for _ in range(10)], b"no command", key=KEY)
    zombie.wait_frozen()
    if point.startswith("inserted"):  # as Postgres does after 10 s of silence in a transaction
        end_sessions(system, "% consumer")
    successor = system.start("consumer")
    eventually(lambda: accepted(system) == 11)
    system.submit(5)
    eventually(lambda: accepted(system) == 16)
    zombie.thaw()
    system.submit(5)
    eventually(lambda: accepted(system) == 21)
    successor.stop()
    system.submit(5)
    eventually(lambda: accepted(system) == 26)
    assert dead_letters(system) == 1  # no unique constraint keeps a second one away
    zombie.stop()


# ---- partitions that wait, come and go ------------------------------------------------------------


@pytest.mark.fault(25)
def test_a_partition_whose_next_offset_is_gone_waits_alone(system: System) -> None:
    consumer = system.start("consumer")
    system.produce(*[command() for _ in range(3)], partition=0)
    eventually(lambda: stored(system).get(0) == 3)
    consumer.stop()
    system.produce(*[command() for _ in range(5)], partition=0)
    delete_before(system, system.settings.input_topic, 0, 6)
    consumer = system.start("consumer")
    eventually(lambda: "partition 0: offset_out_of_range" in consumer.get("/readyz"))
    assert "offset_out_of_range" in json.loads(consumer.get("/readyz"))["notes"]["partitions"]
    assert '"ready": true' in consumer.get("/readyz")  # it reads the other one
    assert consumer.logged('"partition refused"')
    system.produce(command(), partition=1)
    eventually(lambda: accepted(system) == 4)
    assert stored(system) == {0: 3, 1: 1}
    consumer.stop()


@pytest.mark.fault(25)
def test_a_refused_partition_continues_once_its_position_is_repaired(system: System) -> None:
    system.produce(*[command() for _ in range(3)], partition=0)
    with system.consumer() as session:
        take(session, 3)
    system.produce(*[command() for _ in range(5)], partition=0)
    delete_before(system, system.settings.input_topic, 0, 6)
    with system.consumer(SOON_RECHECKED) as session:
        eventually(lambda: session.run_once() == 0 and session.refused().keys() == {0})
        assert session.run_once() == 0
        set_offset(system, 0, 6)
        system.produce(command(), partition=1)
        take(session, 3)
        assert session.refused() == {}
    assert accepted(system) == 6


@pytest.mark.fault(24)
def test_a_topic_recreated_before_the_start_waits_for_the_operator(system: System) -> None:
    system.produce(*[command() for _ in range(3)], partition=0)
    with system.consumer() as session:
        take(session, 3)
    recreate_input(system)
    system.produce(*[command() for _ in range(5)], partition=0)
    with system.consumer(SOON_RECHECKED) as session:
        eventually(lambda: session.run_once() == 0 and session.refused().keys() == {0, 1})
        assert stored(system) == {0: 3, 1: 0}
        set_offset(system, 0, 0)
        set_offset(system, 1, 0)
        take(session, 5)
    assert accepted(system) == 8


@pytest.mark.fault(24)
@pytest.mark.parametrize("records", [2, 7])  # fewer than were consumed before, and more
def test_a_topic_recreated_under_a_running_consumer_waits_for_the_operator(
    system: System, records: int
) -> None:
    consumer = system.start("consumer")
    system.produce(*[command() for _ in range(3)], partition=0)
    eventually(lambda: accepted(system) == 3)
    recreate_input(system)
    system.produce(*[command() for _ in range(records)], partition=0)
    eventually(lambda: "topic_recreated" in consumer.get("/readyz"), 30)
    assert accepted(system) == 3
    assert stored(system)[0] == 3
    consumer.stop()


def test_a_topic_that_is_missing_is_named_and_waited_for(system: System) -> None:
    admin, topic = AdminClient(dict(system.settings.kafka)), system.settings.input_topic
    admin.delete_topics([topic])[topic].result()
    eventually(lambda: topic not in admin.list_topics(timeout=10).topics)
    consumer = system.start("consumer")
    eventually(lambda: f"topic {topic} is missing" in consumer.get("/readyz"))
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result()
    system.submit(3)
    eventually(lambda: accepted(system) == 3)
    consumer.stop()


def test_a_topic_that_is_deleted_under_an_idle_consumer_is_named(system: System) -> None:
    admin, topic = AdminClient(dict(system.settings.kafka)), system.settings.input_topic
    consumer = system.start("consumer")
    eventually(lambda: '"ready": true' in consumer.get("/readyz"))
    admin.delete_topics([topic])[topic].result()
    eventually(lambda: f"topic {topic} is missing" in consumer.get("/readyz"))
    assert '"ready": false' in consumer.get("/readyz")
    assert consumer.logged("consumer waiting")


def test_a_consumer_without_partitions_is_ready(system: System) -> None:
    consumers = [system.start("consumer") for _ in range(PARTITIONS + 1)]
    eventually(lambda: any(one.logged('"offsets": {}') for one in consumers))
    eventually(lambda: all('"ready": true' in one.get("/readyz") for one in consumers))


@pytest.mark.fault(26)
def test_partitions_added_under_a_running_consumer_are_read_from_their_beginning(
    system: System,
) -> None:
    admin, topic = AdminClient(dict(system.settings.kafka)), system.settings.input_topic
    consumer = system.start("consumer", **OFTEN_REFRESHED)
    system.submit(3)
    eventually(lambda: accepted(system) == 3)
    admin.create_partitions([NewPartitions(topic, PARTITIONS + 2)])[topic].result()
    eventually(lambda: len(topics.describe_topic(admin, topic).partitions) == PARTITIONS + 2)
    for partition in range(PARTITIONS + 2):  # before the consumer has seen them
        system.produce(command(), command(), partition=partition)
    eventually(lambda: accepted(system) == 3 + 2 * (PARTITIONS + 2))
    consumer.stop()


def test_a_record_polled_just_before_a_rebalance_is_consumed_once(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read again from its position in Postgres, so the one that came before does not count."""
    system = System(system.environ | OFTEN_REFRESHED, system.directory)
    admin, topic = AdminClient(dict(system.settings.kafka)), system.settings.input_topic
    consume = GroupMember.consume

    def consume_across_a_rebalance(
        client: GroupMember, records: int, _timeout_s: float
    ) -> list[Record]:
        monkeypatch.setattr(GroupMember, "consume", consume)
        admin.create_partitions([NewPartitions(topic, PARTITIONS + 1)])[topic].result()
        return consume(client, records, REBALANCED_S)

    with system.consumer() as session:
        eventually(lambda: session.run_once() == 0 and session.positions())
        for _ in range(5):  # the ends of the partitions are events, too
            assert session.run_once() == 0
        monkeypatch.setattr(GroupMember, "consume", consume_across_a_rebalance)
        system.produce(*[command() for _ in range(3)], key=KEY)
        take(session, 3)
        assert len(session.positions()) == PARTITIONS + 1
        eventually(lambda: session.run_once() == 0 and accepted(system) == 3)


# ---- records --------------------------------------------------------------------------------------


@pytest.mark.fault(27)
def test_records_of_aborted_transactions_are_passed_over(system: System) -> None:
    producer = Producer({**system.settings.kafka, "transactional.id": f"api-{uuid4()}"})
    producer.init_transactions(10)
    kept = []
    for number in range(9):
        producer.begin_transaction()
        values = [command() for _ in range(3)]
        for value in values:
            producer.produce(system.settings.input_topic, value, KEY)
        producer.flush(10)
        if number % 3 == 2:
            producer.abort_transaction(10)
        else:
            producer.commit_transaction(10)
            kept += [UUID(msgspec.json.decode(value)["scenario_uuid"]) for value in values]
    with system.consumer() as session:
        take(session, 18)
        assert session.run_once() == 0
    assert accepted(system) == 18
    assert {row[0] for row in system.query("SELECT scenario_uuid FROM workers")} == set(kept)


def test_the_trace_travels_to_the_order_and_no_other_header_does(one_lane: System) -> None:
    parent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    trace = [("traceparent", parent), ("tracestate", b"vendor=1")]
    headers = [("traceparent", b"x" * 900_000), ("cookie", b"secret"), *trace, ("Traceparent", b"no")]
    one_lane.produce(command(), headers=headers)
    with one_lane.consumer() as session, one_lane.lane() as lane:
        take(session, 1)
        assert one_lane.query("SELECT json_array_length(headers) FROM outbox") == [(2,)]
        lane.recover()
        lane.drain()
    (order,) = one_lane.read(one_lane.settings.output_topic)
    assert own_headers(order) == trace


STRANGE: list[list[tuple[str, bytes | None]]] = [
    [("", b"")],
    [("traceparent", None), ("traceparent", b""), ("tracestate", b"\x00\xff")],
    [("\x01 \u043a\u043b\u044e\u0447 \U0001f600", b"x" * 5000)],
    [(f"h{number}", None) for number in range(300)],
]


@pytest.mark.fault(30)
@pytest.mark.parametrize("value", [command(), b"no command"], ids=["command", "bad"])
def test_strange_headers_are_carried_or_dropped_but_stop_nothing(
    one_lane: System, value: bytes
) -> None:
    for headers in STRANGE:
        one_lane.produce(value, key=KEY, headers=headers)
    produce_raw(one_lane, value, b"\xff\xfe not UTF-8")
    with one_lane.consumer() as session, one_lane.lane() as lane:
        take(session, len(STRANGE) + 1)
        lane.recover()
        assert lane.drain() == len(STRANGE) + 1
    settings = one_lane.settings
    letters = one_lane.read(settings.dead_letter_topic)
    assert len([*letters, *one_lane.read(settings.output_topic)]) == len(STRANGE) + 1
    for letter, headers in zip(letters_of(KEY, letters), STRANGE, strict=False):
        assert list(letter.headers() or ())[: len(headers)] == headers
    for letter in letters_of(None, letters):
        assert letter.value() == value
        assert dict(cast("Headers", letter.headers()))["dlq-reason"] == b"not_json"


def test_a_header_name_ends_at_its_nul_for_the_client(one_lane: System) -> None:
    """A known limit, which the README names."""
    produce_raw(one_lane, b"no command", b"before\0behind")
    with one_lane.consumer() as session, one_lane.lane() as lane:
        take(session, 1)
        lane.recover()
        assert lane.drain() == 1
    (letter,) = one_lane.read(one_lane.settings.dead_letter_topic)
    assert next(iter(letter.headers() or ()))[0] == "before"


def letters_of(key: bytes | None, letters: list[Record]) -> list[Record]:
    """Return those with this key: in one partition, so in order."""
    return [letter for letter in letters if letter.key() == key]


@pytest.mark.xdist_group("measures")
def test_a_single_command_is_taken_at_once(system: System) -> None:
    with system.consumer(ConsumerTimings(poll_s=6.0)) as session:
        eventually(lambda: session.run_once() == 0 and session.positions(), 20)
        system.submit(1)
        started = monotonic()
        eventually(session.run_once)  # the end of the partition may come first
        assert monotonic() - started < 4.0


# ---- Postgres in trouble --------------------------------------------------------------------------


@pytest.mark.fault(12)
def test_a_backend_terminated_in_the_middle_is_an_unknown_outcome_that_is_found_out(
    system: System,
) -> None:
    consumer = system.start("consumer", crash_at="consumer.enqueued:1:freeze")
    system.submit(5)
    consumer.wait_frozen()
    end_sessions(system, "% consumer")
    consumer.thaw()
    eventually(lambda: accepted(system) == 5)
    consumer.stop()


@pytest.mark.fault(12)
def test_a_session_that_has_nothing_to_do_notices_that_postgres_has_gone(system: System) -> None:
    with system.consumer() as session:
        eventually(lambda: session.run_once() == 0 and session.positions())
        end_sessions(system, "% consumer")
        with pytest.raises(psycopg.OperationalError):
            eventually(lambda: session.run_once() > 0)


@pytest.mark.fault(12)
def test_backends_terminated_again_and_again_lose_and_double_nothing(system: System) -> None:
    consumer = system.start("consumer", BATCH_SIZE="5")
    for _ in range(10):
        system.submit(30)
        end_sessions(system, "% consumer")
    eventually(lambda: accepted(system) == 300, 30)
    consumer.stop()


@contextmanager
def blocked(system: System, session: ConsumerSession[Any]) -> Iterator[None]:
    """Let the session take what waits in the topic, in a thread, while the block runs."""
    with ThreadPoolExecutor(1) as thread:
        taken = thread.submit(eventually, session.run_once)
        eventually(lambda: [wait for _, wait in system.query(WAITS)] == ["Lock"])
        yield
        assert taken.result(20) > 0


WAITS = (
    "SELECT xact_start, wait_event_type FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name = 'test consumer'"
)


def assigned(session: ConsumerSession[Any]) -> bool:
    """Move a session until it has its partitions."""
    return session.run_once() == 0 and len(session.positions()) == PARTITIONS


@pytest.mark.fault(13)
def test_a_deadlock_repeats_the_transaction(system: System) -> None:
    with system.consumer() as session, closing(system.connect()) as other:
        eventually(lambda: assigned(session))
        system.produce(command(), partition=0, timestamp=1)
        crossed = worker_id(session._topic.id, 0, 0, 1)
        other.execute("SET deadlock_timeout = '1min'")  # the session finds out, and is the victim
        other.execute("BEGIN")
        other.execute(
            "INSERT INTO workers (worker_id, scenario_uuid, camera_url) VALUES (%s, %s, 'x')",
            (crossed, crossed),
        )
        with blocked(system, session):  # on the worker's id, with its offset locked
            other.execute("SELECT FROM consumed_offsets FOR UPDATE")  # until the server decides
            other.execute("ROLLBACK")
    assert accepted(system) == 1


@pytest.mark.fault(13)
def test_a_lock_time_out_repeats_the_transaction(system: System) -> None:
    with system.consumer() as session, closing(system.connect()) as other:
        eventually(lambda: assigned(session))
        session._writer._conn.execute("SET lock_timeout = '500ms'")
        system.submit(1)
        other.execute("BEGIN")
        other.execute("SELECT FROM consumed_offsets FOR UPDATE")
        seen: set[object] = set()
        with blocked(system, session):

            def three_attempts() -> bool:
                seen.update(start for start, wait in system.query(WAITS) if wait == "Lock")
                return len(seen) >= 3

            eventually(three_attempts)
            other.execute("ROLLBACK")
    assert accepted(system) == 1


@pytest.mark.fault(13)
def test_a_serialization_failure_repeats_the_transaction(system: System) -> None:
    with system.consumer() as session, closing(system.connect()) as other:
        eventually(lambda: assigned(session))
        session._writer._conn.execute("SET default_transaction_isolation = 'repeatable read'")
        system.submit(1)
        other.execute("BEGIN")
        other.execute("UPDATE consumed_offsets SET topic = topic")
        with blocked(system, session):
            other.execute("COMMIT")
    assert accepted(system) == 1


# ---- a producer that writes what no client library writes -----------------------------------------


def produce_raw(system: System, value: bytes, header: bytes) -> None:
    """Write a record with a header of any name into partition 0, by Kafka's protocol itself.

    https://kafka.apache.org/documentation/#recordbatch and Produce version 3.
    """
    topic = system.settings.input_topic.encode()
    records = record_batch(value, header)
    request = struct.pack(">hhihs", 0, 3, 1, 1, b"t")  # api, version, correlation, client
    request += struct.pack(">hhii", -1, -1, 5000, 1)  # no transaction, all acks, time-out, 1 topic
    request += struct.pack(">h", len(topic)) + topic
    request += struct.pack(">iii", 1, 0, len(records)) + records
    host, _, port = system.settings.kafka["bootstrap.servers"].partition(",")[0].rpartition(":")
    with socket.create_connection((host, int(port)), 10) as conn:
        conn.sendall(struct.pack(">i", len(request)) + request)
        answer = conn.recv(4096)
    error_at = 4 + 4 + 4 + 2 + len(topic) + 4 + 4  # size, correlation, topics, name, partitions, number
    assert answer[error_at : error_at + 2] == b"\0\0", answer


def record_batch(value: bytes, header: bytes) -> bytes:
    """Return a batch of one record without a key and with one header."""
    fields = [zigzag(-1), zigzag(len(value)), value, zigzag(1), zigzag(len(header)), header, zigzag(-1)]
    record = b"\0" + zigzag(0) + zigzag(0) + b"".join(fields)
    now = int(time() * 1000)
    checked = struct.pack(">hiqqqhii", 0, 0, now, now, -1, -1, -1, 1) + zigzag(len(record)) + record
    return struct.pack(">qiibI", 0, len(checked) + 9, -1, 2, crc32c(checked)) + checked


def zigzag(number: int) -> bytes:
    """Return a signed integer as Kafka's varint."""
    left = number * 2 if number >= 0 else -number * 2 - 1
    encoded = bytearray()
    while left > 127:
        encoded.append(left & 127 | 128)
        left >>= 7
    return bytes([*encoded, left])


def crc32c(data: bytes) -> int:
    """Return the Castagnoli checksum, which the standard library lacks."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF
