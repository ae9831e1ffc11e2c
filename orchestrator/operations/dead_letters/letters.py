"""Dead letters, for people: what they are, sending their commands again, being done with them.

Invariant: a letter is dealt with at most once, and a command is sent again at most once, however many
letters hold it: input that is read again leaves its dead letters again. That it was, its line in
`repairs` and, for a retry, the command in the outbox are one Postgres transaction; the relay then
publishes the command to the input topic exactly once, as all that is in the outbox. So a crash, or a
second person, retries nothing twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, TextIO, cast
from uuid import UUID

from confluent_kafka import Message as Record

from orchestrator.config.settings import Settings
from orchestrator.contract.records import headers_of
from orchestrator.kafka import topics
from orchestrator.kafka.reader import OffsetRange, find_ranges, read_ranges, time_of
from orchestrator.observability.logs import mask
from orchestrator.operations.dead_letters.filter import Place, Selection
from orchestrator.operations.dead_letters.headers import (
    REASON,
    RETRY_OF,
    identity_of,
    origin_of,
    printable,
    which_are_ours,
)
from orchestrator.operations.repair.log import write_down
from outbox import (
    Connection,
    Headers,
    Message,
    count_lanes,
    crash_point,
    enqueue,
    retry_transaction,
    transaction,
)


class Letter(NamedTuple):
    """A dead letter. origin: topic, partition and offset of the record that it was, if it says so.

    origin_id: the same for all letters of that record. action: what a person did about it, `retry` (of
    any of them) or `discard`; None: it waits.
    """

    partition: int
    offset: int
    at: datetime
    reason: str
    origin: str | None
    origin_id: UUID | None
    key: bytes | None
    value: bytes | None
    headers: Headers
    action: str | None = None

    @property
    def place(self) -> Place:
        """Return partition and offset."""
        return self.partition, self.offset


class Letters(NamedTuple):
    """The dead-letter topic as it is at one moment. spans: the part of it to read."""

    settings: Settings
    topic_id: UUID
    spans: Mapping[int, OffsetRange]


def find_letters(settings: Settings, selection: Selection) -> Letters:
    """Look which part of the topic of now holds what is meant. Raises TopicMissing, KafkaException."""
    admin, topic = topics.Admin(settings.kafka), settings.dead_letter_topic
    since_ms = None if selection.since is None else int(selection.since.timestamp() * 1000)
    spans = find_ranges(admin, topic, since_ms)
    if selection.places:
        spans = {p: _narrow(span, selection.places, p) for p, span in spans.items()}
    return Letters(settings, topics.topic_id(admin, topic), spans)


def _narrow(span: OffsetRange, places: frozenset[Place], partition: int) -> OffsetRange:
    """Return the part of a partition between the first and the last place that is wanted."""
    offsets = [offset for number, offset in places if number == partition]
    if not offsets:
        return OffsetRange(span.end, span.end)
    return OffsetRange(max(span.first, min(offsets)), min(span.end, max(offsets) + 1))


def read_letters(
    conn: Connection, letters: Letters, selection: Selection, talk: TextIO | None
) -> Iterator[list[Letter]]:
    """Yield what is meant, in chunks, in order per partition; those that are done with, too."""
    settings = letters.settings
    for chunk in read_ranges(settings.kafka, settings.dead_letter_topic, letters.spans, talk):
        found = [
            letter
            for letter in map(letter_of, chunk)
            if selection.reason in {None, letter.reason}
            and selection.takes(letter.place, letter.at, letter.key)
        ]
        if found:
            actions = read_actions(conn, letters.topic_id, found)
            yield [letter._replace(action=actions[letter.place]) for letter in found]


def letter_of(record: Record) -> Letter:
    """Return a record of the dead-letter topic as a letter."""
    headers = headers_of(record)
    reason, origin = dict(headers).get(REASON), origin_of(headers)
    return Letter(
        cast("int", record.partition()),
        cast("int", record.offset()),
        time_of(record),
        mask(printable(reason or b"unknown")),
        origin and origin.place,
        origin and identity_of(origin, record.key(), record.value()),
        record.key(),
        record.value(),
        headers,
    )


READ_ACTIONS = """
    SELECT letter.partition, letter.record_offset, coalesce(own.action, twin.action)
      FROM unnest(%(partitions)s::int[], %(offsets)s::bigint[], %(origins)s::uuid[])
           AS letter (partition, record_offset, origin)
      LEFT JOIN dead_letters_handled AS own
             ON own.topic_id = %(topic_id)s
            AND own.partition = letter.partition AND own.record_offset = letter.record_offset
      LEFT JOIN dead_letters_handled AS twin
             ON twin.origin = letter.origin AND twin.action = 'retry'
"""


def read_actions(
    conn: Connection, topic_id: UUID, letters: Sequence[Letter]
) -> dict[Place, str | None]:
    """Return what was done about each letter, None: nothing."""
    rows = conn.execute(READ_ACTIONS, _columns(topic_id, letters)).fetchall()
    return {(row[0], row[1]): row[2] for row in cast("list[tuple[int, int, str | None]]", rows)}


COUNT_HANDLED = """
    SELECT count(*)
      FROM dead_letters_handled
      JOIN unnest(%(partitions)s::int[], %(firsts)s::bigint[], %(ends)s::bigint[])
           AS span (partition, first, following) USING (partition)
     WHERE topic_id = %(topic_id)s AND record_offset >= first AND record_offset < following
"""


def count_handled(conn: Connection, letters: Letters) -> int:
    """Count the letters of the spans that a person dealt with; their twins are not counted."""
    values = {
        "topic_id": letters.topic_id,
        "partitions": list(letters.spans),
        "firsts": [span.first for span in letters.spans.values()],
        "ends": [span.end for span in letters.spans.values()],
    }
    return cast("tuple[int]", conn.execute(COUNT_HANDLED, values).fetchone())[0]


# ---- dealing with them ----------------------------------------------------------------------------


# In one order, or two people could wait for each other. A place always has the same origin.
HANDLE = """
    INSERT INTO dead_letters_handled (topic_id, partition, record_offset, action, origin)
    SELECT %(topic_id)s, partition, record_offset, %(action)s, origin
      FROM unnest(%(partitions)s::int[], %(offsets)s::bigint[], %(origins)s::uuid[])
           AS letter (partition, record_offset, origin)
     ORDER BY origin, partition, record_offset
        ON CONFLICT DO NOTHING
 RETURNING partition, record_offset
"""


@retry_transaction
def handle(
    conn: Connection, letters: Letters, chosen: Sequence[Letter], action: str, command: str
) -> int:
    """One Postgres transaction: `retry` or `discard` those that still wait; return how many did."""
    settings = letters.settings
    values = _columns(letters.topic_id, chosen) | {"action": action}
    with transaction(conn):
        rows = conn.execute(HANDLE, values).fetchall()
        taken = set(cast("list[Place]", rows))
        mine = [letter for letter in chosen if letter.place in taken]
        if action == "retry":
            again = [command_again(settings, letters.topic_id, letter) for letter in mine]
            enqueue(conn, again, count_lanes(conn))
        if mine:
            write_down(
                conn,
                command,
                f"dead letters of {settings.dead_letter_topic}",
                action,
                {"topic_id": letters.topic_id, "places": [letter.place for letter in mine]},
                {},
                {"letters": len(mine)},
            )
        crash_point("dlq.handled")
    crash_point("dlq.committed")
    return len(mine)


def command_again(settings: Settings, topic_id: UUID, letter: Letter) -> Message:
    """Return the record that a letter was, byte for byte, with one header that tells where it lay."""
    ours = which_are_ours(letter.headers)
    own = [header for header, is_ours in zip(letter.headers, ours, strict=True) if not is_ours]
    of = f"{topic_id}:{letter.partition}:{letter.offset}".encode()
    return Message(settings.input_topic, letter.key, letter.value, [*own, (RETRY_OF, of)])


def _columns(topic_id: UUID, letters: Sequence[Letter]) -> dict[str, object]:
    return {
        "topic_id": topic_id,
        "partitions": [letter.partition for letter in letters],
        "offsets": [letter.offset for letter in letters],
        "origins": [letter.origin_id for letter in letters],
    }
