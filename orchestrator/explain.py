"""`explain`: the whole life of an order, put together from what each part still knows of it.

Where a command lay is not stored: a worker's id is made of it. So the place is found by trying places
around the time that the id begins with, and a match of the 74 bits proves it without reading a record.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import NamedTuple, TextIO, cast
from uuid import UUID

from confluent_kafka import Message as Record

from orchestrator import offsets, topics
from orchestrator.audit import row_of
from orchestrator.dead_letters import Letter, find_letters, read_letters
from orchestrator.reading import Progress, Span, find_spans, read_spans, time_of, to_time
from orchestrator.selection import Selection
from orchestrator.settings import Settings
from orchestrator.workers import worker_id
from outbox import Connection

CLOCKS = timedelta(minutes=5)  # how far the clocks of API, Postgres and relays may be apart
WORKERS = 10  # of one scenario, the latest
TRIES = 1_000_000  # places to try in a partition, about a microsecond each
UNREAD = 100_000  # records not yet consumed that are looked through


class Place(NamedTuple):
    """A record of a topic. at: its timestamp; None if the record itself is no longer in the log."""

    topic: str
    partition: int
    offset: int
    at: datetime | None


class Waiting(NamedTuple):
    """A row in the outbox or set aside. ahead: rows of its lane before it; in_hand: batch, if begun."""

    table: str
    lane: int
    id: int
    created_at: datetime
    ahead: int
    in_hand: int | None
    reason: str | None


class Life(NamedTuple):
    """An order, from the command to its worker's status of now. Times in UTC."""

    worker_id: UUID
    scenario_uuid: UUID
    status: str
    process_pid: int | None
    created_at: datetime
    updated_at: datetime
    commanded_at: datetime
    command: Place | None
    waiting: Waiting | None
    order: Place | None


class Story(NamedTuple):
    """What is known of an id: orders, dead letters that mention it, commands not yet consumed."""

    id: UUID
    lives: Sequence[Life]
    letters: Sequence[Letter]
    unread: Sequence[Place]

    @property
    def known(self) -> bool:
        """Say whether anybody knows the id."""
        return bool(self.lives or self.letters or self.unread)


FIND_WORKERS = """
    SELECT worker_id, scenario_uuid, status, process_pid,
           created_at AT TIME ZONE 'UTC', updated_at AT TIME ZONE 'UTC'
      FROM workers
     WHERE worker_id = %(id)s OR scenario_uuid = %(id)s
     ORDER BY id DESC
     LIMIT %(limit)s
"""


def explain(settings: Settings, conn: Connection, wanted: UUID, talk: TextIO | None) -> Story:
    """Find out all about a worker or a scenario. Raises psycopg.Error, KafkaException, TopicMissing."""
    values = {"id": wanted, "limit": WORKERS}
    rows = conn.execute(FIND_WORKERS, values).fetchall()
    if not rows:
        letters = find_letters_about(settings, conn, wanted, talk)
        return Story(wanted, [], letters, find_unread(settings, conn, wanted))
    lives = [begin(conn, cast("Row", row)) for row in reversed(rows)]
    lives = find_commands(settings, lives)
    return Story(wanted, find_orders(settings, lives, talk), [], [])


Row = tuple[UUID, UUID, str, int | None, datetime, datetime]


def begin(conn: Connection, row: Row) -> Life:
    """Return what Postgres knows of a worker."""
    commanded_at = to_time(row[0].int >> 80)
    return Life(*row, commanded_at, None, find_row(conn, row[0]), None)


FIND_ROW = """
    SELECT 'outbox', lane, id, created_at,
           (SELECT count(*) FROM outbox AS before
             WHERE before.lane = outbox.lane AND before.id < outbox.id),
           (SELECT seq FROM outbox_lane
             WHERE outbox_lane.lane = outbox.lane AND outbox.id = ANY(inflight)),
           NULL
      FROM outbox
     WHERE subject = %(worker)s
 UNION ALL
    SELECT 'outbox_parked', lane, id, created_at, 0, NULL,
           reason || CASE WHEN discarded_at IS NULL THEN '' ELSE ' (given up by a person)' END
      FROM outbox_parked
     WHERE subject = %(worker)s
     LIMIT 1
"""


def find_row(conn: Connection, worker: UUID) -> Waiting | None:
    """Return the worker's row in the outbox, or the one set aside."""
    row = conn.execute(FIND_ROW, {"worker": worker}).fetchone()
    return None if row is None else Waiting._make(cast("tuple[str]", row))


# ---- the command -----------------------------------------------------------------------------------


def find_commands(settings: Settings, lives: Sequence[Life]) -> list[Life]:
    """Find the records that the workers were made of."""
    admin, topic = topics.Admin(settings.kafka), settings.input_topic
    topic_id = topics.topic_id(admin, topic)
    found = []
    for life in lives:
        time_ms = life.worker_id.int >> 80
        place = _try_places(life.worker_id, topic_id, time_ms, find_spans(admin, topic, time_ms))
        if place is None:  # deleted by retention, perhaps: what the log held before
            firsts = find_spans(admin, topic)
            older = {p: Span(max(s.first - TRIES, 0), s.first) for p, s in firsts.items()}
            place = _try_places(life.worker_id, topic_id, time_ms, older)
            command = place and Place(topic, *place, None)
        else:
            command = Place(topic, *place, life.commanded_at)
        found.append(life._replace(command=command))
    return found


def _try_places(
    worker: UUID, topic_id: UUID, time_ms: int, spans: Mapping[int, Span]
) -> tuple[int, int] | None:
    """Return partition and offset of which the worker's id is made."""
    for partition, span in spans.items():
        for offset in range(span.first, min(span.end, span.first + TRIES)):
            if worker_id(topic_id, partition, offset, time_ms) == worker:
                return partition, offset
    return None


# ---- the order --------------------------------------------------------------------------------------


def find_orders(settings: Settings, lives: Sequence[Life], talk: TextIO | None) -> list[Life]:
    """Find the deploy orders: read the output from the commands' time on, until all are found."""
    wanted = {life.worker_id for life in lives if life.waiting is None or life.waiting.in_hand}
    found: dict[UUID, Place] = {}
    if wanted:
        since = min(life.created_at for life in lives if life.worker_id in wanted) - CLOCKS
        for record in _read_since(settings, since, talk):
            worker = row_of(record)[2]
            if worker in wanted:
                found.setdefault(worker, place_of(record))
                if len(found) == len(wanted):
                    break
    return [life._replace(order=found.get(life.worker_id)) for life in lives]


def _read_since(settings: Settings, since: datetime, talk: TextIO | None) -> Iterator[Record]:
    admin, topic = topics.Admin(settings.kafka), settings.output_topic
    spans = find_spans(admin, topic, int(since.timestamp() * 1000))
    progress = Progress(topic, spans, talk)
    for chunk in read_spans(settings.kafka, topic, spans, progress.advance):
        yield from chunk
    progress.finish()


def place_of(record: Record) -> Place:
    """Return where a record lies."""
    topic, partition, offset = record.topic(), record.partition(), record.offset()
    return Place(cast("str", topic), cast("int", partition), cast("int", offset), time_of(record))


# ---- what never became a worker ----------------------------------------------------------------------


def mentions(wanted: UUID, key: bytes | None, value: bytes | None) -> bool:
    """Say whether a record is about the id, however broken it may be."""
    text = str(wanted).encode()
    return text in (key or b"").lower() or text in (value or b"").lower()


def find_letters_about(
    settings: Settings, conn: Connection, wanted: UUID, talk: TextIO | None
) -> list[Letter]:
    """Find the dead letters that mention the id, the latest WORKERS of them."""
    everything = Selection()
    chunks = read_letters(conn, find_letters(settings, everything), everything, talk)
    about = [
        letter for chunk in chunks for letter in chunk if mentions(wanted, letter.key, letter.value)
    ]
    return about[-WORKERS:]


def find_unread(settings: Settings, conn: Connection, wanted: UUID) -> list[Place]:
    """Find commands about the id among the next UNREAD that the consumer has not taken yet."""
    topic = settings.input_topic
    stored = offsets.read(conn, settings.consumer_group, topic)
    nexts = {partition: position.next_offset for partition, position in stored.items()}
    spans = {
        p: Span(max(span.first, min(nexts.get(p, 0), span.end)), span.end)
        for p, span in find_spans(topics.Admin(settings.kafka), topic).items()
    }
    chunks = read_spans(settings.kafka, topic, spans)
    records = islice((record for chunk in chunks for record in chunk), UNREAD)
    return [place_of(r) for r in records if mentions(wanted, r.key(), r.value())][:WORKERS]


def as_fields(story: Story) -> dict[str, object]:
    """Return the story for a script; of dead letters all but their content."""
    return {
        "id": story.id,
        "known": story.known,
        "orders": [
            {
                **life._asdict(),
                "command": life.command and life.command._asdict(),
                "waiting": life.waiting and life.waiting._asdict(),
                "order": life.order and life.order._asdict(),
            }
            for life in story.lives
        ],
        "dead_letters": [
            {
                "partition": letter.partition,
                "offset": letter.offset,
                "at": letter.at,
                "reason": letter.reason,
                "origin": letter.origin,
                "action": letter.action,
            }
            for letter in story.letters
        ],
        "not_yet_consumed": [place._asdict() for place in story.unread],
    }
