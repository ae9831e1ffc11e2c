"""One session of the consumer: records from Kafka into the service's rows and the outbox, exactly once.

Invariant: a batch's positions, rows and outbox rows commit in one Postgres transaction, and reading
always continues from the positions in Postgres. Any doubt (a lost reply, a rebalance, an error) ends
the session; the next one reads the positions under their lock, and so learns what was committed.
"""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Generic

import psycopg
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Message as Record

from orchestrator.config.timings import ConsumerTimings
from orchestrator.consumer.batch_writer import BatchWriter
from orchestrator.consumer.client import GroupMember, explain
from orchestrator.consumer.narrowing import RefusedRows
from orchestrator.consumer.offsets import OffsetConflict
from orchestrator.consumer.partitions import AssignedPartitions
from orchestrator.consumer.subscription import ConsumerObserver, Subscription, T
from orchestrator.contract.records import headers_of, partition_offset
from orchestrator.kafka.continuations import DECODE_ERRORS
from orchestrator.kafka.topics import Admin, TopicMissing, TopicRecreated, TopicWatch, read_topic_id
from outbox import (
    AdaptivePause,
    Connection,
    DatabaseNotReady,
    check_id_sequence,
    count_lanes,
    crash_point,
)

# The log no longer contains the next offset: the partition waits for an operator.
OFFSET_LOST_ERRORS = frozenset(
    {
        KafkaError._AUTO_OFFSET_RESET,
        KafkaError._LOG_TRUNCATION,
        KafkaError.OFFSET_OUT_OF_RANGE,
    }
)

# Of one partition; the others go on.
PARTITION_EVENTS = OFFSET_LOST_ERRORS | DECODE_ERRORS | {KafkaError._PARTITION_EOF}

# What ends a session, and a new one may cure.
SESSION_ERRORS = (
    psycopg.Error,
    KafkaException,
    DatabaseNotReady,
    TopicMissing,
    TopicRecreated,
    OffsetConflict,
)

# Of the records in one Postgres transaction. What the client holds has bounds of its own: PREFETCH.
BATCH_BYTES = 8 * 1024 * 1024
HEADER_BYTES = 64  # that a header takes beside its name and value: a record may have 300,000 empty ones
SLICE = 64  # records that are taken from the client between two looks at their size


@contextmanager
def open_consumer_session(
    subscription: Subscription[T],
    conn: Connection,
    observer: ConsumerObserver,
    timings: ConsumerTimings,
    refused_rows: RefusedRows | None = None,
) -> "Iterator[ConsumerSession[T]]":
    """Join the group while the block runs. Raises SESSION_ERRORS.

    refused_rows: what earlier sessions of the process know.
    """
    subscription.check(conn)
    lanes = count_lanes(conn)
    check_id_sequence(conn)
    admin = Admin(subscription.kafka)
    topic_id = read_topic_id(admin, subscription.topic)
    topic = TopicWatch(admin, subscription.topic, topic_id, timings.topic_check_s)
    with closing(GroupMember(subscription.kafka, subscription.group)) as client:
        partitions = AssignedPartitions(
            conn,
            client,
            admin,
            subscription.kafka,
            topic,
            subscription.repair_command,
            timings,
        )
        client.subscribe(
            [topic.name],
            on_assign=lambda _, assigned: partitions.assign([one.partition for one in assigned]),
            on_revoke=lambda _, _revoked: partitions.revoke(),
        )
        try:
            writer = BatchWriter(
                subscription,
                conn,
                topic,
                partitions,
                lanes,
                observer,
                refused_rows or RefusedRows(),
            )
            yield ConsumerSession(subscription, client, topic, partitions, writer, timings)
        finally:
            partitions.mirror_positions()


class ConsumerSession(Generic[T]):
    """One session on Postgres and one membership in the consumer group. Raises SESSION_ERRORS."""

    def __init__(
        self,
        subscription: Subscription[T],
        client: GroupMember,
        topic: TopicWatch,
        partitions: AssignedPartitions,
        writer: BatchWriter[T],
        timings: ConsumerTimings,
    ) -> None:
        self._subscription = subscription
        self._client = client
        self._topic = topic
        self._partitions = partitions
        self._writer = writer
        self._timings = timings
        self._pause = AdaptivePause(timings.max_pause_s)

    def positions(self) -> dict[int, int]:
        """Return the next offset of each partition assigned here, including refused ones."""
        return self._partitions.next_offsets()

    def refused(self) -> dict[int, str]:
        """Return the partitions that wait for an operator, and why."""
        return dict(self._partitions.refused)

    def unread(self) -> dict[int, str]:
        """Return the partitions whose records are in the log and do not come, and why."""
        return self._partitions.unread.reasons()

    def run_once(self) -> int:
        """Consume one batch; return the number of its records."""
        self._client.check_reachable()
        self._topic.poll()
        self._partitions.check_positions()
        self._partitions.resume_due()
        records, is_full = self._poll()
        if records:
            crash_point("consumer.polled")
            started = time.perf_counter()
            self._topic.begin_check()  # after the records: the answer is valid for them
            self._writer.accept(records)
            if not is_full:
                time.sleep(self._pause.after(time.perf_counter() - started))
        self._move_to_ends()
        self._partitions.watch(is_drained=not is_full)
        self._partitions.mirror_if_due()
        return len(records)

    def _move_to_ends(self) -> None:
        """Move positions over what is no record, where the client has read to the end."""
        if moves := self._partitions.find_end_moves():
            self._topic.begin_check()  # after the ends were read: the answer is valid for them
            self._writer.move(moves)

    def _poll(self) -> tuple[list[Record], bool]:
        """Wait for a first record, then take those that have arrived with it, up to a full batch.

        Return whether it is full, too. A rebalance may happen in each call. librdkafka takes back what
        a call has found before it, but not what earlier calls have returned: that is dropped. Reading
        continues from the position in Postgres, and these records come again.
        """
        first = self._client.poll(self._timings.poll_s)
        if first is None:
            return [], False
        generation, limit = self._partitions.generation, self._subscription.batch_size
        polled, size, is_full = [first], size_of(first), True
        while is_full and size < BATCH_BYTES and len(polled) < limit:
            more = self._client.consume(min(SLICE, limit - len(polled)), 0)
            if self._partitions.generation != generation:
                generation, polled = self._partitions.generation, []
            polled += more
            size += sum(map(size_of, more))
            is_full = bool(more)
        found = [record for record in polled if self._is_assigned_record(record)]
        refused = self._partitions.refused
        if refused:
            found = [record for record in found if record.partition() not in refused]
        return found, is_full

    def _is_assigned_record(self, record: Record) -> bool:
        """Say whether it is a record, and of a partition that is read here."""
        if error := record.error():
            self._take_event(record, error)
            return False
        return record.partition() in self._partitions.reading

    def _take_event(self, record: Record, error: KafkaError) -> None:
        """Note the end of a partition, or what keeps it from being read; else the session ends."""
        code = error.code()
        if record.topic() is None or code not in PARTITION_EVENTS:
            raise KafkaException(explain(error, self._subscription.group))
        partition, offset = partition_offset(record)
        if partition not in self._partitions.reading:
            return
        if code == KafkaError._PARTITION_EOF:
            self._partitions.ends.reached[partition] = offset
        elif code in DECODE_ERRORS:
            self._partitions.pause(partition, offset, error)
        elif not self._partitions.refuse(partition):
            raise KafkaException(error)  # the log has the position now


def size_of(record: Record) -> int:
    """Return about the bytes that a record takes: of value, key and headers."""
    headers = headers_of(record)
    own = sum(HEADER_BYTES + len(name) + len(value or b"") for name, value in headers) if headers else 0
    return len(record.value() or b"") + len(record.key() or b"") + own
