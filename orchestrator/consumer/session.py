"""One session of the consumer: commands from Kafka into workers and outbox, exactly once.

Invariant: a batch's offsets, workers and outbox rows commit in one Postgres transaction, and reading
always goes on from the offsets in Postgres. Any doubt (a lost reply, a rebalance, an error) ends the
session; the next one reads the offsets under their lock, and so finds out what was committed.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Record

from orchestrator.config.settings import Settings
from orchestrator.consumer import offsets
from orchestrator.consumer.offsets import OffsetConflict, OffsetMove, Position
from orchestrator.contract import workers
from orchestrator.contract.messages import CommandParser, DeployOrder, InvalidCommand, OrderBuilder
from orchestrator.contract.records import dead_letter, partition_offset
from orchestrator.contract.repair_commands import repair_of_partition
from orchestrator.kafka import topics
from orchestrator.kafka.topics import TopicMissing, TopicRecreated
from orchestrator.observability.metrics import ConsumerMetrics
from orchestrator.runtime.migrations import check_current
from outbox import (
    AdaptivePause,
    Connection,
    DatabaseNotReady,
    Message,
    count_lanes,
    crash_point,
    enqueue,
    retry_transaction,
    transaction,
)

log = logging.getLogger(__name__)

POLL_S = 0.5  # how long the loop waits for a first record before it looks at `stop`
SHOW_S = 0.5  # how old the offsets may be that lag tools see
LONGEST_PAUSE_S = 0.02  # between two batches of a busy consumer
PING_S = 2.0  # how soon an idle session finds out that Postgres has gone
TOPIC_CHECK_S = 1.0  # how soon it is seen that the topic was recreated
RECHECK_S = 10.0  # how soon a paused partition that was repaired goes on by itself

# The log no longer holds what comes next: the partition waits for a person.
LOG_LOST = frozenset(
    {
        KafkaError._AUTO_OFFSET_RESET,
        KafkaError._LOG_TRUNCATION,
        KafkaError.OFFSET_OUT_OF_RANGE,
    }
)


class NotUtf8(DatabaseNotReady):
    """The database cannot hold every text that a command may carry."""


# What a new session may cure, with patience.
NEW_SESSION = (
    psycopg.Error,
    KafkaException,
    DatabaseNotReady,
    TopicMissing,
    TopicRecreated,
    OffsetConflict,
)

Insert = Callable[[Connection, Sequence[DeployOrder]], Sequence[UUID]]


@dataclass(slots=True)
class Batch:
    """What the records of one poll become. messages: one for each order, in the same sequence."""

    moves: list[OffsetMove]
    orders: list[DeployOrder] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    dead: list[Message] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def messages_about(self, accepted: Sequence[UUID]) -> list[Message]:
        """Return the messages about these workers: as a rule all of them."""
        if len(accepted) == len(self.orders):
            return self.messages
        chosen = set(accepted)
        return [message for message in self.messages if message.aggregate_id in chosen]


class ConsumerSession:
    """One session on Postgres and one membership in the consumer group. Raises NEW_SESSION."""

    def __init__(self, settings: Settings, conn: Connection, metrics: ConsumerMetrics) -> None:
        check_current(conn)
        check_encoding(conn)
        self._settings = settings
        self._conn = conn
        self._metrics = metrics
        self._build = OrderBuilder(
            CommandParser(settings.max_message_bytes, settings.camera_url_schemes),
            settings.output_topic,
            f"/orchestrator/{settings.input_topic}" if settings.cloudevents else None,
        ).build
        self._lanes = count_lanes(conn)
        self._admin = topics.Admin(settings.kafka)
        self._topic = topics.TopicWatch(self._admin, settings.input_topic, TOPIC_CHECK_S)
        self._positions: dict[int, Position] = {}
        self.paused: dict[int, str] = {}  # partitions that wait for a person, and why
        self._unshown: dict[int, int] = {}  # next offsets that Kafka has not been shown
        self._show_at = 0.0
        self._recheck_at = 0.0
        self._ping_at = 0.0
        self._pace = AdaptivePause(LONGEST_PAUSE_S)
        self._cut_off: KafkaError | None = None  # no broker can be crash_point
        self._consumer = Consumer(
            {
                "session.timeout.ms": 6000,  # the brokers' minimum: how long a dead member is missed
                "heartbeat.interval.ms": 1500,
                "topic.metadata.refresh.interval.ms": 10_000,  # new partitions are seen this soon
                "queued.max.messages.kbytes": 24_576,  # about what waits in memory, and so a batch
                "error_cb": self._on_error,
                **settings.kafka,
                "group.id": settings.consumer_group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": False,
                "auto.offset.reset": "error",  # never a silent jump
                "isolation.level": "read_committed",
            },
            logger=logging.getLogger("librdkafka"),
        )
        self._consumer.subscribe(
            [settings.input_topic], on_assign=self._on_assign, on_revoke=self._on_revoke
        )

    def close(self) -> None:
        """Leave the group."""
        self._show_offsets()
        self._consumer.close()

    def positions(self) -> dict[int, int]:
        """Return the committed offset of each partition assigned here, paused ones included."""
        return {number: position.next_offset for number, position in self._positions.items()}

    # ---- the way of a batch ---------------------------------------------------------------------

    def run_once(self) -> int:
        """Accept one batch; return the records consumed."""
        if self._cut_off:
            raise KafkaException(self._cut_off)  # and not a poll that waits and looks idle
        self._topic.poll()
        self._recheck_paused()
        records = self._poll()
        if records:
            crash_point("consumer.polled")
            started = time.perf_counter()
            self._topic.begin_check()  # after the records: the answer holds for them
            self._accept(self._read(records))
            if len(records) < self._settings.batch_size:
                time.sleep(self._pace.after(time.perf_counter() - started))
        elif time.monotonic() > self._ping_at:  # before a command has to wait for a new session
            self._conn.execute("SELECT")
            self._ping_at = time.monotonic() + PING_S
        if time.monotonic() > self._show_at:
            self._show_offsets()
        return len(records)

    def _poll(self) -> list[Record]:
        """Wait for a first record, then take what has come with it.

        A rebalance may happen in either call. After one in the second, the first record counts for
        nothing: reading goes on from the offset in Postgres, and the record comes again.
        """
        first = self._consumer.poll(POLL_S)
        if first is None:
            return []
        assignment, rest = self._positions, self._settings.batch_size - 1
        records = self._consumer.consume(rest, 0) if rest else []
        if self._positions is assignment:
            records.insert(0, first)
        return [record for record in records if self._is_good(record)]

    def _is_good(self, record: Record) -> bool:
        """Say whether a record is one, and of a partition that is ours."""
        if error := record.error():
            self._note_error(record, error)
            return False
        return record.partition() in self._positions

    def _note_error(self, record: Record, error: KafkaError) -> None:
        """Pause a partition whose log is not what it was; any other error ends the session."""
        if error.code() not in LOG_LOST:
            raise KafkaException(error)
        partition, _ = partition_offset(record)
        if partition in self._positions:
            self._pause(
                partition, f"its next offset is not in the log: {repair_of_partition(partition)}"
            )

    def _read(self, records: Sequence[Record]) -> Batch:
        """Turn records into workers, orders and dead letters."""
        settings, topic_id = self._settings, self._topic.id
        last = {record.partition(): record for record in records}
        batch = Batch([self._move(record) for record in last.values()])
        for record in records:
            try:
                order, message = self._build(record, topic_id)
            except InvalidCommand as invalid:
                letter = dead_letter(
                    settings.dead_letter_topic, settings.consumer_group, record, invalid
                )
                batch.dead.append(letter)
                batch.reasons[invalid.reason] += 1
                continue
            batch.orders.append(order)
            batch.messages.append(message)
        return batch

    def _move(self, last: Record) -> OffsetMove:
        partition, offset = partition_offset(last)
        epoch = last.leader_epoch()
        return OffsetMove(
            partition,
            self._positions[partition].next_offset,
            offset + 1,
            -1 if epoch is None else epoch,
        )

    def _accept(self, batch: Batch) -> None:
        """Commit the batch."""
        started = time.perf_counter()
        try:
            accepted = self._write(batch, workers.insert)
        except psycopg.errors.UniqueViolation as error:  # records read again: the rare case pays
            error.__traceback__ = None  # it would keep the batch in memory until the next collection
            accepted = self._write(batch, workers.insert_ignoring_existing)
        took_s = time.perf_counter() - started
        crash_point("consumer.committed")
        for move in batch.moves:
            self._positions[move.partition] = Position(self._topic.id, move.next, move.leader_epoch)
            self._unshown[move.partition] = move.next
        duplicates = len(batch.orders) - accepted
        self._metrics.consumed(accepted, duplicates, batch.reasons, took_s, batch.messages)

    @retry_transaction
    def _write(self, batch: Batch, insert: Insert) -> int:
        """One Postgres transaction: offsets, workers, outbox. Return the accepted commands."""
        settings = self._settings
        with transaction(self._conn):
            offsets.advance(
                self._conn,
                settings.consumer_group,
                settings.input_topic,
                self._topic.id,
                batch.moves,
            )
            crash_point("consumer.advanced")
            accepted = insert(self._conn, batch.orders) if batch.orders else ()
            crash_point("consumer.inserted")
            enqueue(self._conn, batch.messages_about(accepted) + batch.dead, self._lanes)
            crash_point("consumer.enqueued")
            self._topic.finish_check()  # or records of the recreated topic would count as the old
        return len(accepted)

    def _show_offsets(self) -> None:
        """Commit the offsets to Kafka: a copy for lag tools, never read back."""
        if self._cut_off or not self._unshown:
            return  # without brokers, closing would wait for the answer
        topic, self._show_at = self._settings.input_topic, time.monotonic() + SHOW_S
        shown = [TopicPartition(topic, *place) for place in self._unshown.items()]
        self._unshown = {}
        with suppress(KafkaException):
            self._consumer.commit(offsets=shown, asynchronous=True)
        crash_point("consumer.shown")

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._cut_off = error

    # ---- assignment -----------------------------------------------------------------------------

    def _on_assign(self, _consumer: Consumer, assigned: Sequence[TopicPartition]) -> None:
        self._assign([place.partition for place in assigned])

    def _on_revoke(self, _consumer: Consumer, _revoked: Sequence[TopicPartition]) -> None:
        """Nothing is in hand between two polls; only lag tools wait for the last offsets."""
        self._show_offsets()
        self._positions = {}
        self.paused = {}

    def _assign(self, partitions: Sequence[int]) -> None:
        """Read on from the offsets in Postgres, and from nothing else."""
        self._topic.check_now()
        self._positions = dict(self._load(partitions))
        crash_point("consumer.assigned")
        for partition in [p for p in self.paused if p not in self._positions]:
            del self.paused[partition]
        for partition, position in self._positions.items():
            if position.topic_id != self._topic.id:
                why = "the topic was deleted and made again"
                self._pause(partition, f"{why}: {repair_of_partition(partition)}")
            else:
                self.paused.pop(partition, None)
        self._consumer.assign(
            [
                TopicPartition(
                    self._settings.input_topic,
                    partition,
                    position.next_offset,
                    leader_epoch=position.leader_epoch,
                )
                for partition, position in self._positions.items()
                if partition not in self.paused
            ]
        )
        self._unshown = {  # a predecessor may have had no time to show them
            partition: position.next_offset
            for partition, position in self._positions.items()
            if partition not in self.paused
        }
        log.info("partitions assigned", extra={"offsets": self.positions()})

    def _load(self, partitions: Sequence[int]) -> Mapping[int, Position]:
        """Return the positions of all partitions; one never seen starts at its beginning."""
        group, topic = self._settings.consumer_group, self._settings.input_topic
        known = offsets.lock_positions(self._conn, group, topic, partitions)
        new = [partition for partition in partitions if partition not in known]
        if not new:
            return known
        beginnings = topics.read_log_start_offsets(self._admin, topic, new)
        for partition in new:
            offsets.insert_position(
                self._conn, group, topic, partition, self._topic.id, beginnings[partition]
            )
        return offsets.lock_positions(self._conn, group, topic, partitions)

    def _pause(self, partition: int, why: str) -> None:
        """Stop reading one partition until a person has looked; the others go on."""
        self._recheck_at = time.monotonic() + RECHECK_S
        if self.paused.get(partition) != why:
            offset = self._positions[partition].next_offset
            log.error(
                "partition paused",
                extra={"partition": partition, "offset": offset, "reason": why},
            )
        self.paused[partition] = why

    def _recheck_paused(self) -> None:
        """Go on with a paused partition once somebody has changed its offset in Postgres."""
        if not self.paused or time.monotonic() < self._recheck_at:
            return
        self._recheck_at = time.monotonic() + RECHECK_S
        settings = self._settings
        stored = offsets.lock_positions(
            self._conn, settings.consumer_group, settings.input_topic, list(self.paused)
        )
        if any(stored.get(number) != self._positions[number] for number in self.paused):
            self._assign(list(self._positions))


SERVER_ENCODING = "SHOW server_encoding"


def check_encoding(conn: Connection) -> None:
    """Raise NotUtf8 unless the database can hold every text that a command may carry."""
    row = conn.execute(SERVER_ENCODING).fetchone()
    if row != ("UTF8",):
        raise NotUtf8(f"the database's encoding is {row and row[0]}: create it with ENCODING 'UTF8'")
