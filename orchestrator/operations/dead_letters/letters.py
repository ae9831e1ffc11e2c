"""Dead letters: read them from their topic, retry their commands, discard them.

Invariant: a dead letter is handled at most once, and a command is retried at most once, however many
dead letters hold it: input that is read again leaves its dead letters again. That it was handled, its
line in `repairs` and, for a retry, the command in the outbox are one Postgres transaction; the relay
then publishes the command to the input topic exactly once, like everything in the outbox. So neither a
crash nor a second operator retries anything twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, TextIO
from uuid import UUID

from confluent_kafka import Message as Record
from psycopg.rows import args_row

from orchestrator.config.settings import Settings
from orchestrator.contract.records import headers_of, partition_offset
from orchestrator.kafka import topics
from orchestrator.kafka.reader import OffsetRange, find_ranges, read_ranges, time_of
from orchestrator.observability.logs import mask_text
from orchestrator.operations.dead_letters.filter import RecordFilter
from orchestrator.operations.dead_letters.headers import (
    REASON,
    RETRY_OF,
    added_by_us,
    escape_bytes,
    origin_id_of,
    origin_of,
)
from orchestrator.operations.repair.log import log_repair
from outbox import (
    Connection,
    Headers,
    Message,
    count_lanes,
    crash_point,
    enqueue,
    query,
    retry_transaction,
    scalar,
    transaction,
)


class RecordId(NamedTuple):
    """Names a dead letter."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


class DeadLetter(NamedTuple):
    """A record of the dead-letter topic.

    origin: topic, partition and offset of the record that it was, if its headers say so. origin_id: the
    same for all dead letters of that record. action: what an operator did, `retry` (of any of them) or
    `discard`; None: it is waiting.
    """

    record_id: RecordId
    at: datetime
    reason: str
    origin: str | None
    origin_id: UUID | None
    key: bytes | None
    value: bytes | None
    headers: Headers
    action: str | None = None


class DeadLetterTopic(NamedTuple):
    """The dead-letter topic as it is at one moment. ranges: the part of it to read, by partition."""

    settings: Settings
    topic_id: UUID
    ranges: Mapping[int, OffsetRange]


def find_dead_letters(settings: Settings, chosen: RecordFilter) -> DeadLetterTopic:
    """Return what of the topic, as it is now, can match. Raises TopicMissing or KafkaException."""
    admin, topic = topics.Admin(settings.kafka), settings.dead_letter_topic
    since_ms = None if chosen.since is None else int(chosen.since.timestamp() * 1000)
    ranges = find_ranges(admin, topic, since_ms)
    if chosen.ids:
        offsets = {p: [offset for number, offset in chosen.ids if number == p] for p in ranges}
        ranges = {p: _narrow_range(whole, offsets[p]) for p, whole in ranges.items()}
    return DeadLetterTopic(settings, topics.read_topic_id(admin, topic), ranges)


def _narrow_range(whole: OffsetRange, offsets: Sequence[int]) -> OffsetRange:
    """Return the part from the first of the offsets to the last."""
    if not offsets:
        return OffsetRange(whole.end, whole.end)
    return OffsetRange(max(whole.first, min(offsets)), min(whole.end, max(offsets) + 1))


def read_dead_letters(
    conn: Connection, topic: DeadLetterTopic, chosen: RecordFilter, progress: TextIO | None
) -> Iterator[list[DeadLetter]]:
    """Yield those that match in chunks, in order per partition; those already handled, too."""
    settings = topic.settings
    for chunk in read_ranges(settings.kafka, settings.dead_letter_topic, topic.ranges, progress):
        found = [
            letter
            for letter in map(parse_dead_letter, chunk)
            if chosen.reason in {None, letter.reason}
            and chosen.matches(letter.record_id, letter.at, letter.key)
        ]
        if found:
            actions = read_actions(conn, topic.topic_id, found)
            yield [letter._replace(action=actions[letter.record_id]) for letter in found]


def parse_dead_letter(record: Record) -> DeadLetter:
    """Return what a record of the dead-letter topic says; any producer may have written it."""
    headers = headers_of(record)
    reason, origin = dict(headers).get(REASON), origin_of(headers)
    return DeadLetter(
        RecordId(*partition_offset(record)),
        time_of(record),
        mask_text(escape_bytes(reason or b"unknown")),
        origin and origin.name,
        origin and origin_id_of(origin, record.key(), record.value()),
        record.key(),
        record.value(),
        headers,
    )


READ_ACTIONS = """
    SELECT letter.partition, letter.record_offset, coalesce(own.action, same_record.action)
      FROM unnest(%(partitions)s::int[], %(offsets)s::bigint[], %(origin_ids)s::uuid[])
           AS letter (partition, record_offset, origin)
      LEFT JOIN dead_letters_handled AS own
             ON own.topic_id = %(topic_id)s
            AND own.partition = letter.partition AND own.record_offset = letter.record_offset
      LEFT JOIN dead_letters_handled AS same_record
             ON same_record.origin = letter.origin AND same_record.action = 'retry'
"""


def read_actions(
    conn: Connection, topic_id: UUID, letters: Sequence[DeadLetter]
) -> dict[RecordId, str | None]:
    """Return what was done about each dead letter, None: nothing."""

    def action_of(partition: int, offset: int, action: str | None) -> tuple[RecordId, str | None]:
        return RecordId(partition, offset), action

    return dict(query(conn, args_row(action_of), READ_ACTIONS, _letter_columns(topic_id, letters)))


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


# ---- handling them --------------------------------------------------------------------------------


# In one order, or two operators could wait for each other. A record id always has the same origin.
INSERT_HANDLED = """
    INSERT INTO dead_letters_handled (topic_id, partition, record_offset, action, origin)
    SELECT %(topic_id)s, partition, record_offset, %(action)s, origin
      FROM unnest(%(partitions)s::int[], %(offsets)s::bigint[], %(origin_ids)s::uuid[])
           AS letter (partition, record_offset, origin)
     ORDER BY origin, partition, record_offset
        ON CONFLICT DO NOTHING
 RETURNING partition, record_offset
"""


@retry_transaction
def handle_dead_letters(
    conn: Connection, topic: DeadLetterTopic, letters: Sequence[DeadLetter], action: str, command: str
) -> int:
    """One Postgres transaction: `retry` or `discard` those still waiting; return how many they were."""
    settings = topic.settings
    values = _letter_columns(topic.topic_id, letters) | {"action": action}
    with transaction(conn):
        inserted = set(query(conn, args_row(RecordId), INSERT_HANDLED, values))
        ours = [letter for letter in letters if letter.record_id in inserted]
        if action == "retry":
            commands = [retry_message(settings, topic.topic_id, letter) for letter in ours]
            enqueue(conn, commands, count_lanes(conn))
        if ours:
            record_ids = [letter.record_id for letter in ours]
            log_repair(
                conn,
                command,
                f"dead letters of {settings.dead_letter_topic}",
                action,
                {"topic_id": topic.topic_id, "record_ids": record_ids},
                {},
                {"dead_letters": len(ours)},
            )
        crash_point("dlq.handled")
    crash_point("dlq.committed")
    return len(ours)


def retry_message(settings: Settings, topic_id: UUID, letter: DeadLetter) -> Message:
    """Return the record that a dead letter was, byte for byte, and a header that names it."""
    added = added_by_us(letter.headers)
    own = [header for header, is_ours in zip(letter.headers, added, strict=True) if not is_ours]
    retry_of = f"{topic_id}:{letter.record_id}".encode()
    return Message(settings.input_topic, letter.key, letter.value, [*own, (RETRY_OF, retry_of)])


def _letter_columns(topic_id: UUID, letters: Sequence[DeadLetter]) -> dict[str, object]:
    return {
        "topic_id": topic_id,
        "partitions": [letter.record_id.partition for letter in letters],
        "offsets": [letter.record_id.offset for letter in letters],
        "origin_ids": [letter.origin_id for letter in letters],
    }
