"""Dead letters, for people: what they are, sending their commands again, being done with them.

Invariant: a letter is dealt with at most once. That it was, its line in `repairs` and, for a retry, the
command in the outbox are one Postgres transaction; the relay then publishes the command to the input
topic exactly once, as all that is in the outbox. So a crash, or a second person, retries nothing twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, TextIO, cast
from uuid import UUID

from confluent_kafka import Message as Record

from orchestrator import topics
from orchestrator.messages import headers_of
from orchestrator.reading import Progress, Span, find_spans, read_spans, time_of
from orchestrator.repairs import write_down
from orchestrator.selection import Place, Selection
from orchestrator.settings import Settings
from outbox import Connection, Headers, Message, count_lanes, enqueue, transaction
from outbox.crashpoints import reached

RETRY_OF = "dlq-retry-of"  # header of a command that was sent again: which dead letter it was
ADDED = ("kafka_dlt-", "dlq-reason", RETRY_OF)  # headers that a dead letter has above its record's own


class Letter(NamedTuple):
    """A dead letter. origin: topic, partition and offset of the record that it was, if it says so.

    action: what a person did about it, `retry` or `discard`; None: it waits.
    """

    partition: int
    offset: int
    at: datetime
    reason: str
    origin: str | None
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
    spans: Mapping[int, Span]


def find_letters(settings: Settings, selection: Selection) -> Letters:
    """Look which part of the topic of now holds what is meant. Raises TopicMissing, KafkaException."""
    admin, topic = topics.Admin(settings.kafka), settings.dead_letter_topic
    since_ms = None if selection.since is None else int(selection.since.timestamp() * 1000)
    spans = find_spans(admin, topic, since_ms)
    if selection.places:
        spans = {p: _narrow(span, selection.places, p) for p, span in spans.items()}
    return Letters(settings, topics.topic_id(admin, topic), spans)


def _narrow(span: Span, places: frozenset[Place], partition: int) -> Span:
    """Return the part of a partition between the first and the last place that is wanted."""
    offsets = [offset for number, offset in places if number == partition]
    if not offsets:
        return Span(span.end, span.end)
    return Span(max(span.first, min(offsets)), min(span.end, max(offsets) + 1))


def read_letters(
    conn: Connection, letters: Letters, selection: Selection, talk: TextIO | None
) -> Iterator[list[Letter]]:
    """Yield what is meant, in chunks, in order per partition; those that are done with, too."""
    topic = letters.settings.dead_letter_topic
    progress = Progress(topic, letters.spans, talk)
    for chunk in read_spans(letters.settings.kafka, topic, letters.spans, progress.advance):
        found = [
            letter
            for letter in map(letter_of, chunk)
            if selection.takes(letter.place, letter.reason, letter.at, letter.key)
        ]
        if found:
            actions = read_actions(conn, letters.topic_id, found)
            yield [letter._replace(action=actions.get(letter.place)) for letter in found]
    progress.finish()


def letter_of(record: Record) -> Letter:
    """Return a record of the dead-letter topic as a letter. Of headers of a name the last counts."""
    headers = headers_of(record)
    last = dict(headers)
    return Letter(
        cast("int", record.partition()),
        cast("int", record.offset()),
        time_of(record),
        (last.get("dlq-reason") or b"unknown").decode("ascii", "replace"),
        origin_of(last),
        record.key(),
        record.value(),
        headers,
    )


def origin_of(headers: Mapping[str, bytes | None]) -> str | None:
    """Return `topic:partition:offset` of the record that a dead letter was; None if it does not say."""
    topic, partition, offset = (
        headers.get(f"kafka_dlt-original-{part}") for part in ("topic", "partition", "offset")
    )
    if topic is None or partition is None or offset is None:
        return None
    place = [int.from_bytes(number, "big", signed=True) for number in (partition, offset)]
    return f"{topic.decode('ascii', 'replace')}:{place[0]}:{place[1]}"


READ_ACTIONS = """
    SELECT partition, record_offset, action
      FROM dead_letters_handled
      JOIN unnest(%(partitions)s::int[], %(offsets)s::bigint[]) AS letter (partition, record_offset)
     USING (partition, record_offset)
     WHERE topic_id = %(topic_id)s
"""


def read_actions(conn: Connection, topic_id: UUID, letters: Sequence[Letter]) -> dict[Place, str]:
    """Return what was done about those letters that are done with."""
    rows = conn.execute(READ_ACTIONS, _places(topic_id, letters)).fetchall()
    return {(row[0], row[1]): row[2] for row in cast("list[tuple[int, int, str]]", rows)}


# ---- dealing with them ----------------------------------------------------------------------------


HANDLE = """
    INSERT INTO dead_letters_handled (topic_id, partition, record_offset, action)
    SELECT %(topic_id)s, partition, record_offset, %(action)s
      FROM unnest(%(partitions)s::int[], %(offsets)s::bigint[]) AS letter (partition, record_offset)
        ON CONFLICT DO NOTHING
 RETURNING partition, record_offset
"""


def handle(
    conn: Connection, letters: Letters, chosen: Sequence[Letter], action: str, command: str
) -> int:
    """One Postgres transaction: `retry` or `discard` those that still wait; return how many did."""
    settings = letters.settings
    values = _places(letters.topic_id, chosen) | {"action": action}
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
        reached("dlq.handled")
    reached("dlq.committed")
    return len(mine)


def command_again(settings: Settings, topic_id: UUID, letter: Letter) -> Message:
    """Return the record that a letter was, byte for byte, with one header that tells where it lay."""
    own = [(name, value) for name, value in letter.headers if not name.startswith(ADDED)]
    of = f"{topic_id}:{letter.partition}:{letter.offset}".encode()
    return Message(settings.input_topic, letter.key, letter.value, [*own, (RETRY_OF, of)])


def _places(topic_id: UUID, letters: Sequence[Letter]) -> dict[str, object]:
    return {
        "topic_id": topic_id,
        "partitions": [letter.partition for letter in letters],
        "offsets": [letter.offset for letter in letters],
    }
