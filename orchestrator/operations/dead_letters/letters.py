"""Dead letters: read them from their topic, each with its state.

A dead letter belongs to the input that it came from, topic and consumer group: installations may share
a dead-letter topic, and the command of one must not become a worker of another. Its state is that of
the record that it was: input that is read again may leave a second dead letter or, if it is valid by
then, become a worker.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, TextIO
from uuid import UUID

from confluent_kafka import Message as Record
from psycopg.rows import args_row

from orchestrator.config.settings import Settings
from orchestrator.consumer.offsets import Position, read_positions
from orchestrator.contract.messages import worker_id
from orchestrator.contract.records import headers_of, partition_offset, retry_origin
from orchestrator.kafka import topics
from orchestrator.kafka.reader import OffsetRange, datetime_from_ms, find_ranges, read_ranges, time_of
from orchestrator.observability.masking import shown_bytes
from orchestrator.operations.dead_letters.filter import RecordFilter
from orchestrator.operations.dead_letters.headers import (
    HARMLESS_VALUES,
    IS_REFUSAL,
    MESSAGE,
    REASON,
    RETRY_OF,
    Input,
    Origin,
    Place,
    origin_id_in,
    origin_id_of,
    origin_of,
    truncated_parts,
)
from outbox import Connection, Headers, query, scalar


class RecordId(NamedTuple):
    """Names a dead letter."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


class LetterState(enum.StrEnum):
    """What became of a dead letter, or of the record that it was."""

    WAITING = "waiting"
    RETRIED = "retried"
    DISCARDED = "discarded"
    ACCEPTED = "accepted"  # its record was read again, and is a worker
    FOREIGN = "foreign"  # it came from another input


class DeadLetter(NamedTuple):
    """A record of the dead-letter topic.

    origin: the record that it was, if its headers say so. origin_id: the same for all dead letters of
    that record. truncated: length and hash of what is not whole, by `value`, `key` or `headers`.
    worker_id: of an accepted one. is_ahead: this database has not consumed that record: it was
    restored, or the topic was recreated.
    """

    record_id: RecordId
    at: datetime
    reason: str
    origin: Origin | None
    origin_id: UUID | None
    key: bytes | None
    value: bytes | None
    headers: Headers
    truncated: Mapping[str, str]
    state: LetterState = LetterState.WAITING
    worker_id: UUID | None = None
    is_ahead: bool = False

    @property
    def input(self) -> Input | None:
        """Return which input it came from, if its headers say so."""
        return self.origin and self.origin.input

    @property
    def retry_of(self) -> RecordId | None:
        """Return the dead letter that was retried and came back as this one; None: it was none."""
        value = dict(self.headers).get(RETRY_OF)
        if not isinstance(value, bytes) or not HARMLESS_VALUES[RETRY_OF].fullmatch(value):
            return None
        _, partition, offset = value.decode().split(":")
        return RecordId(int(partition), int(offset))

    @property
    def refusal(self) -> str | None:
        """Return why Postgres refuses the row of its command, if that is why it is one."""
        value = dict(self.headers).get(MESSAGE)
        return value.decode() if isinstance(value, bytes) and IS_REFUSAL(value) else None

    @property
    def first(self) -> Place | None:
        """Return the record that its command was at first, before it was retried for the first time."""
        return retry_origin(self.headers) or (self.origin and self.origin.place)

    @property
    def oldest_at(self) -> datetime:
        """Return a time before which its command had no deploy order, apart from clock skew."""
        return min(self.at, datetime_from_ms(self.first[2])) if self.first else self.at


class DeadLetterTopic(NamedTuple):
    """The dead-letter topic as it is at one moment.

    ranges: the part of it to read, by partition. input_id: the topic id of our input.
    """

    settings: Settings
    topic_id: UUID
    ranges: Mapping[int, OffsetRange]
    input_id: UUID

    def is_foreign(self, letter: DeadLetter) -> bool:
        """Return whether a dead letter says that it came from another input."""
        return letter.input not in {None, input_of(self.settings)}

    def worker_of(self, letter: DeadLetter) -> UUID | None:
        """Return the id of the worker that a command has or will have, however often it is retried."""
        return letter.first and worker_id(self.input_id, *letter.first)


def input_of(settings: Settings) -> Input:
    """Return our input."""
    return Input(settings.input_topic.encode(), settings.consumer_group.encode())


def find_dead_letters(settings: Settings, chosen: RecordFilter) -> DeadLetterTopic:
    """Return what of the topic, as it is now, can match. Raises TopicMissing or KafkaException."""
    admin, topic = topics.Admin(settings.kafka), settings.dead_letter_topic
    since_ms = None if chosen.since is None else max(int(chosen.since.timestamp() * 1000), 0)
    ranges = find_ranges(admin, topic, since_ms)
    if chosen.ids:
        offsets = {p: [offset for number, offset in chosen.ids if number == p] for p in ranges}
        ranges = {p: _narrow_range(whole, offsets[p]) for p, whole in ranges.items()}
    return DeadLetterTopic(
        settings,
        topics.read_topic_id(admin, topic),
        ranges,
        topics.read_topic_id(admin, settings.input_topic),
    )


def _narrow_range(whole: OffsetRange, offsets: Sequence[int]) -> OffsetRange:
    """Return the part from the first of the offsets to the last."""
    if not offsets:
        return OffsetRange(whole.end, whole.end)
    return OffsetRange(max(whole.first, min(offsets)), min(whole.end, max(offsets) + 1))


def read_dead_letters(
    conn: Connection, topic: DeadLetterTopic, chosen: RecordFilter, progress: TextIO | None
) -> Iterator[list[DeadLetter]]:
    """Yield those that match in chunks, in order per partition, whatever their state."""
    settings = topic.settings
    for chunk in read_ranges(settings.kafka, settings.dead_letter_topic, topic.ranges, progress):
        found = [
            letter
            for letter in map(parse_dead_letter, chunk)
            if chosen.reason in {None, letter.reason}
            and chosen.matches(letter.record_id, letter.at, letter.key)
        ]
        if found:
            yield add_states(conn, topic, found)


def parse_dead_letter(record: Record) -> DeadLetter:
    """Return what a record of the dead-letter topic says; any producer may have written it."""
    headers = headers_of(record)
    reason, origin = dict(headers).get(REASON), origin_of(headers)
    truncated = truncated_parts(headers)
    return DeadLetter(
        RecordId(*partition_offset(record)),
        time_of(record),
        shown_bytes(reason, HARMLESS_VALUES[REASON]) if reason else "unknown",
        origin,
        origin_id_in(headers)
        if truncated
        else origin and origin_id_of(origin, record.key(), record.value()),
        record.key(),
        record.value(),
        headers,
        truncated,
    )


# What was done about one dead letter of a record was done about all; that it was sent counts most.
READ_HANDLED = """
    SELECT letter.partition, letter.record_offset,
           coalesce(own.action, same_record.action), workers.worker_id
      FROM unnest(%(partitions)s::int[], %(offsets)s::bigint[], %(origin_ids)s::uuid[],
                  %(worker_ids)s::uuid[])
           AS letter (partition, record_offset, origin, worker_id)
      LEFT JOIN dead_letters_handled AS own
             ON own.topic_id = %(topic_id)s
            AND own.partition = letter.partition AND own.record_offset = letter.record_offset
      LEFT JOIN (SELECT origin, max(action) AS action
                   FROM dead_letters_handled
                  WHERE origin = ANY(%(origin_ids)s::uuid[])
                  GROUP BY origin) AS same_record
             ON same_record.origin = letter.origin
      LEFT JOIN workers ON workers.worker_id = letter.worker_id
"""

STATES = {"retry": LetterState.RETRIED, "discard": LetterState.DISCARDED}  # by action


class HandledLetter(NamedTuple):
    """What Postgres knows of a dead letter: what an operator did, the worker that its record became."""

    partition: int
    offset: int
    action: str | None
    worker_id: UUID | None


def add_states(
    conn: Connection, topic: DeadLetterTopic, letters: Sequence[DeadLetter]
) -> list[DeadLetter]:
    """Return the dead letters with their states."""
    ours = [letter for letter in letters if not topic.is_foreign(letter)]
    rows = query(conn, args_row(HandledLetter), READ_HANDLED, letter_columns(topic, ours))
    handled = {RecordId(row.partition, row.offset): row for row in rows}
    decided = read_positions(conn, topic.settings.input_topic)
    return [
        _with_state(letter, handled.get(letter.record_id))._replace(is_ahead=_is_ahead(letter, decided))
        for letter in letters
    ]


def _is_ahead(letter: DeadLetter, decided: Mapping[int, Position]) -> bool:
    """Return whether the record that a dead letter was is still to be decided."""
    if letter.origin is None:
        return False
    partition, offset, _ = letter.origin.place
    return partition in decided and offset >= decided[partition].decided_end


def _with_state(letter: DeadLetter, handled: HandledLetter | None) -> DeadLetter:
    """Return a dead letter with its state; handled: None of a foreign one."""
    if handled is None:
        return letter._replace(state=LetterState.FOREIGN)
    if handled.action is not None:
        return letter._replace(state=STATES[handled.action])
    if handled.worker_id is not None:
        return letter._replace(state=LetterState.ACCEPTED, worker_id=handled.worker_id)
    return letter


def letter_columns(topic: DeadLetterTopic, letters: Sequence[DeadLetter]) -> dict[str, object]:
    """Return the dead letters as parameters of a statement, an array for each column."""
    return {
        "topic_id": topic.topic_id,
        "partitions": [letter.record_id.partition for letter in letters],
        "offsets": [letter.record_id.offset for letter in letters],
        "origin_ids": [letter.origin_id for letter in letters],
        "worker_ids": [topic.worker_of(letter) for letter in letters],
    }


COUNT_HANDLED = """
    SELECT count(*)
      FROM dead_letters_handled
      JOIN unnest(%(partitions)s::int[], %(firsts)s::bigint[], %(ends)s::bigint[])
           AS part (partition, first, end_before) USING (partition)
     WHERE topic_id = %(topic_id)s AND record_offset >= first AND record_offset < end_before
"""


def count_handled(conn: Connection, topic: DeadLetterTopic) -> int:
    """Count the dead letters of the ranges that were handled, not those of the same records."""
    values = {
        "topic_id": topic.topic_id,
        "partitions": list(topic.ranges),
        "firsts": [part.first for part in topic.ranges.values()],
        "ends": [part.end for part in topic.ranges.values()],
    }
    return scalar(conn, int, COUNT_HANDLED, values)
