"""One session of the consumer: records from Kafka into the service's rows and the outbox, exactly once.

Invariant: a batch's positions, rows and outbox rows commit in one Postgres transaction, and reading
always continues from the positions in Postgres. Any doubt (a lost reply, a rebalance, an error) ends
the session; the next one reads the positions under their lock, and so learns what was committed.
"""

import logging
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Generic, NamedTuple
from uuid import UUID

import psycopg
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Message as Record

from orchestrator.config.timings import ConsumerTimings
from orchestrator.consumer import offsets
from orchestrator.consumer.client import GroupMember, explain
from orchestrator.consumer.handled import find_handled
from orchestrator.consumer.narrowing import (
    SAMPLE,
    EveryRowRefused,
    RefusedRows,
    may_be_of_a_row,
    parts_of,
)
from orchestrator.consumer.offsets import OffsetConflict, OffsetMove
from orchestrator.consumer.partitions import AssignedPartitions
from orchestrator.consumer.subscription import ConsumerObserver, Insert, Subscription, T
from orchestrator.contract.records import (
    InvalidRecord,
    RefusedRow,
    dead_letter,
    origin_id_of_record,
    partition_offset,
)
from orchestrator.kafka.continuations import DECODE_ERRORS
from orchestrator.kafka.topics import Admin, TopicMissing, TopicRecreated, TopicWatch, read_topic_id
from outbox import (
    AdaptivePause,
    Connection,
    DatabaseNotReady,
    Message,
    check_id_sequence,
    count_lanes,
    crash_point,
    enqueue,
    retry_transaction,
    transaction,
)

log = logging.getLogger(__name__)

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


@dataclass(slots=True)
class ParsedBatch(Generic[T]):
    """What so many records of one poll become. messages: one for each row, in the same order.

    again: those of records that are decided again, by the id that their dead letters have.
    """

    moves: list[OffsetMove]
    records: int
    rows: list[T] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    invalid: list["InvalidOne"] = field(default_factory=list)
    again: dict[UUID, Message] = field(default_factory=dict)


class TrialOver(Exception):
    """Rolls a transaction back that was a trial."""


class InvalidOne(NamedTuple):
    """A record that is no valid one. aggregate_id: that of its row, had it been accepted earlier."""

    aggregate_id: UUID
    reason: str
    dead_letter: Message


class Written(NamedTuple):
    """What a transaction has added: so many rows, and dead letters by reason."""

    rows: int
    dead: Counter[str]


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
            yield ConsumerSession(
                subscription,
                conn,
                client,
                topic,
                partitions,
                lanes,
                observer,
                timings,
                refused_rows or RefusedRows(),
            )
        finally:
            partitions.mirror_positions()


class ConsumerSession(Generic[T]):
    """One session on Postgres and one membership in the consumer group. Raises SESSION_ERRORS."""

    def __init__(
        self,
        subscription: Subscription[T],
        conn: Connection,
        client: GroupMember,
        topic: TopicWatch,
        partitions: AssignedPartitions,
        lanes: int,
        observer: ConsumerObserver,
        timings: ConsumerTimings,
        refused_rows: RefusedRows,
    ) -> None:
        self._subscription = subscription
        self._conn = conn
        self._client = client
        self._topic = topic
        self._partitions = partitions
        self._lanes = lanes
        self._observer = observer
        self._timings = timings
        self._refused_rows = refused_rows
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
        records = self._poll()
        if records:
            crash_point("consumer.polled")
            started = time.perf_counter()
            self._topic.begin_check()  # after the records: the answer is valid for them
            self._consume(records, records, self._subscription.insert)
            if len(records) < self._subscription.batch_size:
                time.sleep(self._pause.after(time.perf_counter() - started))
        self._move_to_ends()
        self._partitions.watch(is_drained=len(records) < self._subscription.batch_size)
        self._partitions.mirror_if_due()
        return len(records)

    def _move_to_ends(self) -> None:
        """Move positions over what is no record, where the client has read to the end."""
        if moves := self._partitions.find_end_moves():
            self._topic.begin_check()  # after the ends were read: the answer is valid for them
            self._write(ParsedBatch(moves, records=0), self._subscription.insert)
            self._partitions.advanced(moves)

    def _poll(self) -> list[Record]:
        """Wait for a first record, then take those that have arrived with it.

        A rebalance may happen in either call. librdkafka takes back what a call has found before it,
        but not what an earlier call has returned: after one in the second call, the first record is
        dropped. Reading continues from the position in Postgres, and the record comes again.
        """
        first = self._client.poll(self._timings.poll_s)
        if first is None:
            return []
        generation, more = self._partitions.generation, self._subscription.batch_size - 1
        records = self._client.consume(more, 0) if more else []
        if self._partitions.generation == generation:
            records.insert(0, first)
        found = [record for record in records if self._is_assigned_record(record)]
        refused = self._partitions.refused
        return [one for one in found if one.partition() not in refused] if refused else found

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

    def _parse(self, records: Sequence[Record]) -> ParsedBatch[T]:
        """Turn each record into a row and a message, or into a dead letter."""
        subscription, topic_id = self._subscription, self._topic.id
        last = {record.partition(): record for record in records}
        batch = ParsedBatch[T]([self._move(record) for record in last.values()], len(records))
        again = {move.partition for move in batch.moves if move.before.decide_again}
        for record in records:
            try:
                row, message = subscription.parse(record, topic_id)
            except InvalidRecord as invalid:
                batch.invalid.append(self._invalid_one(record, invalid))
                continue
            batch.rows.append(row)
            batch.messages.append(message)
            if again and record.partition() in again:
                batch.again[origin_id_of_record(record)] = message
        return batch

    def _invalid_one(self, record: Record, invalid: InvalidRecord) -> InvalidOne:
        """Return the dead letter of a record."""
        subscription = self._subscription
        letter = dead_letter(subscription.dead_letter_topic, subscription.group, record, invalid)
        aggregate_id = subscription.aggregate_id(record, self._topic.id, letter.headers)
        return InvalidOne(aggregate_id, invalid.reason, letter)

    def _move(self, last: Record) -> OffsetMove:
        """Return the move of a partition whose last record of the batch this is."""
        partition, offset = partition_offset(last)
        before, epoch = self._partitions.positions[partition], last.leader_epoch()
        return OffsetMove(partition, before, offset + 1, -1 if epoch is None else epoch)

    def _consume(self, records: Sequence[Record], polled: Sequence[Record], insert: Insert[T]) -> None:
        """Commit records; if Postgres refuses a row, part by part: each part is one transaction.

        polled: all that came with them.
        """
        self._observer.tick()
        try:
            self._commit(self._parse(records), insert)
        except (psycopg.Error, RefusedRow) as error:
            error.__traceback__ = None  # it would keep the batch in memory until the next collection
            refused = self._explain(error)
        else:
            return
        if len(records) == 1:
            self._refuse_row(records[0], polled, refused)
            return
        for part in parts_of(records):
            self._consume(part, polled, self._subscription.insert_ignoring_existing)

    def _explain(self, error: psycopg.Error | RefusedRow) -> RefusedRow:
        """Return why Postgres refuses a row; raise what is no row's fault."""
        if isinstance(error, RefusedRow):
            return error
        if self._conn.closed or not may_be_of_a_row(error):
            raise error
        return self._subscription.explain_refusal(self._conn, error)

    def _refuse_row(self, record: Record, polled: Sequence[Record], refused: RefusedRow) -> None:
        """Make a dead letter of the record whose row Postgres refuses. Raises EveryRowRefused."""
        partition, offset = partition_offset(record)
        text = f"partition {partition}, offset {offset}: {refused}"
        if self._refused_rows.needs_proof():
            if not self._is_any_taken(polled):
                raise EveryRowRefused(text)
            self._refused_rows.note_accepted()
        batch = ParsedBatch[T]([self._move(record)], 1, invalid=[self._invalid_one(record, refused)])
        self._commit(batch, self._subscription.insert)
        self._refused_rows.note_refused(text)
        log.warning(
            "record refused", extra={"partition": partition, "offset": offset, "error": str(refused)}
        )

    def _is_any_taken(self, records: Sequence[Record]) -> bool:
        """Return whether Postgres would take the row of one of these records that is not decided."""
        left = [record for record in records if self._is_undecided(record)]
        return any(self._is_taken(record) for record in random.sample(left, min(SAMPLE, len(left))))

    def _is_undecided(self, record: Record) -> bool:
        """Return whether no transaction has moved beyond a record of this poll."""
        partition, offset = partition_offset(record)
        return offset >= self._partitions.positions[partition].next_offset

    def _is_taken(self, record: Record) -> bool:
        """Return whether Postgres would take the row of this record."""
        try:
            return self._insert_for_trial(self._parse([record]).rows)
        except (psycopg.Error, RefusedRow) as error:
            self._explain(error)
            return False

    def _insert_for_trial(self, rows: Sequence[T]) -> bool:
        """Insert rows and roll back; return whether they are new ones."""
        inserted: Sequence[UUID] = ()
        with suppress(TrialOver), transaction(self._conn):
            inserted = self._subscription.insert_ignoring_existing(self._conn, rows)
            self._conn.execute("SET CONSTRAINTS ALL IMMEDIATE")
            raise TrialOver
        return bool(inserted)

    def _commit(self, batch: ParsedBatch[T], insert: Insert[T]) -> None:
        """Commit the batch in Postgres; only then follow its moves."""
        started = time.perf_counter()
        try:
            written = self._write(batch, insert)
        except psycopg.errors.UniqueViolation as error:  # records read again: rare, so it may cost more
            error.__traceback__ = None  # it would keep the batch in memory until the next collection
            if insert is self._subscription.insert_ignoring_existing:
                raise
            written = self._write(batch, self._subscription.insert_ignoring_existing)
        took_s = time.perf_counter() - started
        crash_point("consumer.committed")
        self._partitions.advanced(batch.moves)
        if written.rows:
            self._refused_rows.note_accepted()
        duplicates = batch.records - written.rows - written.dead.total()
        self._observer.consumed(written.rows, duplicates, written.dead, took_s, batch.messages)

    @retry_transaction
    def _write(self, batch: ParsedBatch[T], insert: Insert[T]) -> Written:
        """One Postgres transaction: positions, rows, outbox."""
        topic = self._topic
        with transaction(self._conn):
            offsets.advance(self._conn, topic.name, topic.id, batch.moves)
            crash_point("consumer.advanced")
            rows, messages = batch.rows, batch.messages
            if batch.again:
                rows, messages = self._without_handled(batch)
            accepted = insert(self._conn, rows) if rows else ()
            crash_point("consumer.inserted")
            if len(accepted) < len(messages):
                messages = first_about_each(messages, accepted)
            dead = self._never_accepted(batch.invalid) if batch.invalid else ()
            enqueue(self._conn, messages + [one.dead_letter for one in dead], self._lanes)
            crash_point("consumer.enqueued")
            topic.finish_check()  # or records of a recreated topic would count as the old topic's
        return Written(len(accepted), Counter(one.reason for one in dead))

    def _without_handled(self, batch: ParsedBatch[T]) -> tuple[list[T], list[Message]]:
        """Leave out records whose dead letters an operator has dealt with."""
        handled = find_handled(self._conn, list(batch.again))
        dropped = {id(batch.again[origin]) for origin in handled}
        pairs = zip(batch.rows, batch.messages, strict=True)
        kept = [pair for pair in pairs if id(pair[1]) not in dropped]
        return [row for row, _ in kept], [message for _, message in kept]

    def _never_accepted(self, invalid: Sequence[InvalidOne]) -> list[InvalidOne]:
        """Leave out records that were accepted before, by settings that have changed since."""
        ids = [one.aggregate_id for one in invalid]
        accepted = self._subscription.find_existing(self._conn, ids)
        return [one for one in invalid if one.aggregate_id not in accepted]


def first_about_each(messages: Sequence[Message], aggregate_ids: Sequence[UUID]) -> list[Message]:
    """Return one message about each of the aggregates: a record may come with its retried command."""
    first: dict[UUID | None, Message] = {}
    for message in messages:
        first.setdefault(message.aggregate_id, message)
    wanted = set(aggregate_ids)
    return [message for aggregate_id, message in first.items() if aggregate_id in wanted]
