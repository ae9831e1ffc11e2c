"""Writes batches into Postgres: positions, rows and outbox rows of a batch in one transaction.

A batch that Postgres refuses is written part by part, down to the record whose row it refuses.
"""

import logging
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Generic, NamedTuple
from uuid import UUID

import psycopg
from confluent_kafka import Message as Record

from orchestrator.consumer import offsets
from orchestrator.consumer.handled import find_handled
from orchestrator.consumer.narrowing import (
    SAMPLE,
    EveryRowRefused,
    RefusedRows,
    RowOrSchema,
    is_rarely_of_a_row,
    may_be_of_a_row,
    parts_of,
)
from orchestrator.consumer.offsets import OffsetMove
from orchestrator.consumer.parsed_batch import BatchParser, InvalidOne, ParsedBatch
from orchestrator.consumer.partitions import AssignedPartitions
from orchestrator.consumer.subscription import ConsumerObserver, Insert, Subscription, T
from orchestrator.contract.records import RefusedRow, partition_offset
from orchestrator.kafka.topics import TopicWatch
from outbox import Connection, Message, crash_point, enqueue, retry_transaction, transaction

log = logging.getLogger(__name__)


class TrialOver(Exception):
    """Rolls a transaction back that was a trial."""


class Written(NamedTuple):
    """What a transaction has added: so many rows, dead letters by reason, and all their messages."""

    rows: int
    dead: Counter[str]
    messages: Sequence[Message]


class BatchWriter(Generic[T]):
    """The writing half of a consumer session. Raises SESSION_ERRORS.

    lanes: of the outbox. refused_rows: what earlier sessions of the process know.
    """

    def __init__(
        self,
        subscription: Subscription[T],
        conn: Connection,
        topic: TopicWatch,
        partitions: AssignedPartitions,
        lanes: int,
        observer: ConsumerObserver,
        refused_rows: RefusedRows,
    ) -> None:
        self._subscription = subscription
        self._conn = conn
        self._topic = topic
        self._partitions = partitions
        self._lanes = lanes
        self._observer = observer
        self._refused_rows = refused_rows
        self._parser = BatchParser(subscription, topic.id)

    def accept(self, records: Sequence[Record]) -> None:
        """Commit the records of one poll."""
        self._refused_rows.begin_poll()
        self._consume(records, records, self._subscription.insert)

    def move(self, moves: list[OffsetMove]) -> None:
        """Commit moves of positions over what is no record."""
        self._write(ParsedBatch(moves, records=0), self._subscription.insert)
        self._partitions.advanced(moves)

    def _consume(self, records: Sequence[Record], polled: Sequence[Record], insert: Insert[T]) -> None:
        """Commit records; if Postgres refuses a row, part by part: each part is one transaction.

        polled: all that came with them.
        """
        self._observer.tick()
        try:
            self._commit(self._parser.parse(records, self._partitions.positions), insert)
        except (psycopg.Error, RefusedRow) as error:
            error.__traceback__ = None  # it would keep the batch in memory until the next collection
            cause, refused = error, self._explain(error)
        else:
            return
        if len(records) == 1:
            self._prove(records[0], polled, refused, cause)
            self._refuse_row(records[0], refused)
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

    def _prove(
        self, record: Record, polled: Sequence[Record], refused: RefusedRow, cause: Exception
    ) -> None:
        """Raise EveryRowRefused or RowOrSchema unless it is this row that Postgres refuses."""
        is_rare, place = is_rarely_of_a_row(cause), place_of(record)
        if self._refused_rows.needs_proof(cause):
            if not self._is_any_taken(polled):
                raise RowOrSchema(place, cause) if is_rare else EveryRowRefused(f"{place}: {refused}")
            self._refused_rows.note_accepted()
        if is_rare and self._is_taken(record):  # the schema has changed in between
            raise RowOrSchema(place, cause)

    def _refuse_row(self, record: Record, refused: RefusedRow) -> None:
        """Make a dead letter of the record whose row Postgres refuses."""
        partition, offset = partition_offset(record)
        batch = self._parser.refuse(record, self._partitions.positions, refused)
        self._commit(batch, self._subscription.insert)
        self._refused_rows.note_refused(f"{place_of(record)}: {refused}")
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
            return self._insert_for_trial(self._parser.parse([record], self._partitions.positions).rows)
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
        sent = {id(message) for message in written.messages} if batch.decided else ()
        few = [one for one in batch.decided if id(one.message) in sent]
        told_already = written.dead[RefusedRow.REASON]
        self._observer.decided(few, written.rows, written.dead.total() - told_already)

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
            messages = messages + [one.dead_letter for one in dead]
            enqueue(self._conn, messages, self._lanes)
            crash_point("consumer.enqueued")
            topic.finish_check()  # or records of a recreated topic would count as the old topic's
        return Written(len(accepted), Counter(one.reason for one in dead), messages)

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


def place_of(record: Record) -> str:
    """Return where a record is, as messages name it."""
    partition, offset = partition_offset(record)
    return f"partition {partition}, offset {offset}"


def first_about_each(messages: Sequence[Message], aggregate_ids: Sequence[UUID]) -> list[Message]:
    """Return one message about each of the aggregates: a record may come with its retried command."""
    first: dict[UUID | None, Message] = {}
    for message in messages:
        first.setdefault(message.aggregate_id, message)
    wanted = set(aggregate_ids)
    return [message for aggregate_id, message in first.items() if aggregate_id in wanted]
