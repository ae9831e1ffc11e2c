"""Which rows of the outbox are in their topic already, found out from the records alone.

A row is known again by what it is about, whatever became of the databases in between: a deploy order by
its worker, a dead letter by the place and time of the record that it was, a command sent again by the
dead letter that it was. Other rows are not ours to judge: they are named, and nothing is repaired.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple, TextIO, cast
from uuid import UUID

from confluent_kafka import Message as Record

from orchestrator.config.settings import Settings
from orchestrator.contract.messages import record_time_ms
from orchestrator.contract.records import LATEST_MS, headers_of
from orchestrator.errors import NotRepaired
from orchestrator.kafka import topics
from orchestrator.kafka.reader import (
    MAX_CLOCK_SKEW,
    complete_since,
    datetime_from_ms,
    find_ranges,
    read_ranges,
    time_of,
)
from orchestrator.operations.audit import order_ids
from orchestrator.operations.dead_letters.headers import RETRY_OF, Header, hash_parts, origin_of
from outbox import Connection
from outbox.admin import WaitingRow, count_lane_rows, read_waiting

PORTION = 5000  # dead letters looked at together


class ForeignRows(NotRepaired):
    """The outbox holds rows of which nobody here can tell whether they were published."""


class Evidence(NamedTuple):
    """What is known of a lane's rows: `published` and `unsent` for sure, of `undecided` nothing.

    Undecided: not in the topic, but old enough for a record that retention has deleted.
    """

    published: int
    unsent: int
    undecided: int


CREATE_WAITING = """
    CREATE TEMP TABLE waiting (
        lane     SMALLINT NOT NULL,
        id       BIGINT NOT NULL,
        topic    TEXT NOT NULL,
        identity UUID NOT NULL,
        since    TIMESTAMPTZ NOT NULL,
        outcome  TEXT NOT NULL DEFAULT 'unsent',
        PRIMARY KEY (identity, lane, id)
    )
"""
DISCARD = "DISCARD TEMP"


@contextmanager
def waiting_rows(conn: Connection, settings: Settings, lanes: Sequence[int]) -> Iterator[None]:
    """Have a list of the lanes' rows of now, for this session alone. Raises ForeignRows."""
    refuse_foreign(conn, settings, lanes)
    conn.execute(CREATE_WAITING)
    try:
        list_rows(conn, settings.output_topic, lanes, known_as_order)
        list_rows(conn, settings.dead_letter_topic, lanes, lambda row: known_as_letter(row.headers))
        list_rows(conn, settings.input_topic, lanes, lambda row: known_as_command(row.headers))
        conn.execute("ANALYZE waiting")
        yield
    finally:
        conn.execute(DISCARD)


def refuse_foreign(conn: Connection, settings: Settings, lanes: Sequence[int]) -> None:
    """Raise ForeignRows if the lanes hold rows that are not ours."""
    foreign: Counter[tuple[int, str]] = Counter()
    for found in count_lane_rows(conn, lanes):
        is_order = found.topic == settings.output_topic and found.has_aggregate_id
        if not is_order and found.topic not in {settings.dead_letter_topic, settings.input_topic}:
            foreign[found.lane, found.topic] += found.rows
    if foreign:
        rows = "; ".join(f"lane {lane}: {n} for topic {topic}" for (lane, topic), n in foreign.items())
        raise ForeignRows(
            "rows of the outbox that are neither deploy orders, dead letters nor commands sent again"
            f" ({rows}): whether they were published, only their writer can tell"
        )


LIST_ROWS = """
    INSERT INTO waiting (lane, id, topic, identity, since)
    SELECT lane, id, %(topic)s, identity, since
      FROM unnest(%(lanes)s::smallint[], %(ids)s::bigint[], %(identities)s::uuid[],
                  %(sinces)s::timestamptz[])
           AS known (lane, id, identity, since)
"""


def list_rows(
    conn: Connection,
    topic: str,
    lanes: Sequence[int],
    recognise: Callable[[WaitingRow], "Known | None"],
) -> None:
    """List the rows for a topic, with what each is known by. Raises ForeignRows.

    A row may have been published since it or its command was made, whichever is earlier: after a
    restore, a command that is read again gets a new row.
    """
    for page in read_waiting(conn, lanes, topic):
        known = [recognise(row) for row in page]
        if strange := [row.id for row, one in zip(page, known, strict=True) if one is None]:
            raise ForeignRows(f"outbox row {strange[0]} for topic {topic} does not say what it was")
        rows = [(row, one) for row, one in zip(page, known, strict=True) if one]
        conn.execute(
            LIST_ROWS,
            {
                "topic": topic,
                "lanes": [row.lane for row, _ in rows],
                "ids": [row.id for row, _ in rows],
                "identities": [one.identity for _, one in rows],
                "sinces": [min(one.made_at, row.created_at) for row, one in rows],
            },
        )


class Known(NamedTuple):
    """What a row is known again by, and when that was made."""

    identity: UUID
    made_at: datetime


def known_as_order(row: WaitingRow) -> Known | None:
    """Return the worker that a deploy order is about; the worker's id begins with the command's time."""
    worker = row.aggregate_id
    return None if worker is None else Known(worker, datetime_from_ms(record_time_ms(worker)))


def known_as_letter(headers: Iterable[Header]) -> Known | None:
    """Return what a dead letter is known by: the record that it was; None if its headers do not say."""
    origin = origin_of(headers)
    return origin and Known(hash_parts(origin), origin.created_at)


def known_as_command(headers: Iterable[Header]) -> Known | None:
    """Return what a command sent again is known by: the dead letter that it was."""
    letter = dict(headers).get(RETRY_OF)
    return (
        Known(hash_parts([letter]), datetime_from_ms(LATEST_MS)) if isinstance(letter, bytes) else None
    )


def identify_order(record: Record) -> UUID | None:
    """Return the worker of a deploy order; None if the record is none."""
    return order_ids(record).worker_id


def identify_letter(record: Record) -> UUID | None:
    """Return the origin of a dead letter; None if the record is a stranger's."""
    known = known_as_letter(headers_of(record))
    return known and known.identity


def identify_command(record: Record) -> UUID | None:
    """Return the dead letter that a command sent again was; None if the API sent it."""
    known = known_as_command(headers_of(record))
    return known and known.identity


HAS_WAITING = "SELECT 1 FROM waiting WHERE topic = %(topic)s LIMIT 1"


def look_up(conn: Connection, settings: Settings, talk: TextIO | None) -> None:
    """Read the topics up to now and note of each waiting row what they tell.

    Sound only if nothing of the lanes can be published any more, or as a preview.
    """
    kinds: Mapping[str, Callable[[Record], UUID | None]] = {
        settings.output_topic: identify_order,
        settings.dead_letter_topic: identify_letter,
        settings.input_topic: identify_command,
    }
    for topic, identify in kinds.items():
        if conn.execute(HAS_WAITING, {"topic": topic}).fetchone():
            _look_up_in(conn, settings, topic, identify, talk)


NOTE_PUBLISHED = "UPDATE waiting SET outcome = 'published' WHERE identity = ANY(%(seen)b::uuid[])"
NOTE_UNDECIDED = """
    UPDATE waiting
       SET outcome = 'undecided'
     WHERE topic = %(topic)s AND outcome = 'unsent' AND since < %(complete_since)s
"""


def _look_up_in(
    conn: Connection,
    settings: Settings,
    topic: str,
    identify: Callable[[Record], UUID | None],
    talk: TextIO | None,
) -> None:
    admin = topics.Admin(settings.kafka)
    spans = find_ranges(admin, topic)
    oldest: dict[int, datetime] = {}
    for chunk in read_ranges(settings.kafka, topic, spans, talk):
        identities = [identity for record in chunk if (identity := identify(record))]
        conn.execute(NOTE_PUBLISHED, {"seen": identities})
        for record in chunk:
            oldest.setdefault(cast("int", record.partition()), time_of(record))
    kept = complete_since(admin, topic, spans, oldest, datetime.now(UTC))
    if kept:
        conn.execute(NOTE_UNDECIDED, {"topic": topic, "complete_since": kept + MAX_CLOCK_SKEW})


COUNT = """
    SELECT count(*) FILTER (WHERE outcome = 'published') AS published,
           count(*) FILTER (WHERE outcome = 'unsent') AS unsent,
           count(*) FILTER (WHERE outcome = 'undecided') AS undecided
      FROM waiting
     WHERE lane = %(lane)s
"""


def count(conn: Connection, lane: int) -> Evidence:
    """Count the lane's rows by what is known of them."""
    return Evidence(*cast("tuple[int, int, int]", conn.execute(COUNT, {"lane": lane}).fetchone()))


DECIDE = "UPDATE waiting SET outcome = %(outcome)s WHERE outcome = 'undecided'"


def decide(conn: Connection, outcome: str) -> None:
    """Take the undecided rows for `published` or `unsent`, as a person says."""
    conn.execute(DECIDE, {"outcome": outcome})


PUBLISHED = """
    SELECT id
      FROM waiting
     WHERE lane = %(lane)s AND outcome = 'published' AND id > %(after)s
     ORDER BY id
     LIMIT %(portion)s
"""


def published(conn: Connection, lane: int) -> Iterator[list[int]]:
    """Yield the ids of the lane's rows that are in their topic, in portions."""
    after = 0
    while rows := conn.execute(
        PUBLISHED, {"lane": lane, "after": after, "portion": PORTION}
    ).fetchall():
        ids = [cast("int", row[0]) for row in rows]
        yield ids
        after = ids[-1]
