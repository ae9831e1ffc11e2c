"""Which rows of the outbox are in their topic already, by the records alone.

A row and its record are matched by what they are about, whatever happened to the databases in
between: a deploy order by its worker, a dead letter by the topic, offset and time of the record that it
was, a retried command by the dead letter that it was. Other rows cannot be matched here: they are
named, and nothing is repaired.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal, NamedTuple, TextIO
from uuid import UUID

from confluent_kafka import Message as Record
from psycopg.rows import args_row

from orchestrator.config.settings import Settings
from orchestrator.contract.messages import order_ids, record_time_ms
from orchestrator.contract.records import LATEST_MS, headers_of, partition_offset
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
from orchestrator.operations.dead_letters.headers import RETRY_OF, Header, hash_parts, origin_of
from outbox import Connection, arrays, query, scalar, scalars
from outbox.admin import WaitingRow, count_lane_rows, read_waiting

IDS_AT_ONCE = 5000  # of published rows


class ForeignRows(NotRepaired):
    """The outbox holds rows for which this service cannot tell whether they were published."""


class RowCounts(NamedTuple):
    """What is known of a lane's rows.

    unknown: not in the topic, but so old that retention may have deleted their records.
    """

    published: int
    not_published: int
    unknown: int


# ---- the list of rows, in a table of this session -------------------------------------------------


CREATE_LIST = """
    CREATE TEMP TABLE listed_rows (
        lane         SMALLINT NOT NULL,
        id           BIGINT NOT NULL,
        topic        TEXT NOT NULL,
        match_key    UUID NOT NULL,
        not_before   TIMESTAMPTZ NOT NULL, -- when it can have been published at the earliest
        outcome      TEXT NOT NULL DEFAULT 'not_published',
        PRIMARY KEY (match_key, lane, id)
    )
"""
ANALYZE_LIST = "ANALYZE listed_rows"
DISCARD_LIST = "DISCARD TEMP"


@contextmanager
def listed_rows(conn: Connection, settings: Settings, lanes: Sequence[int]) -> Iterator[None]:
    """List the lanes' rows as they are now, for the functions below. Raises ForeignRows."""
    check_origin(conn, settings, lanes)
    conn.execute(CREATE_LIST)
    try:
        for topic, match in matchers(settings).items():
            list_rows(conn, topic, lanes, match.key_of_row)
        conn.execute(ANALYZE_LIST)
        yield
    finally:
        conn.execute(DISCARD_LIST)


def check_origin(conn: Connection, settings: Settings, lanes: Sequence[int]) -> None:
    """Raise ForeignRows if the lanes hold rows that this service did not write."""
    foreign: Counter[tuple[int, str]] = Counter()
    for found in count_lane_rows(conn, lanes):
        is_order = found.topic == settings.output_topic and found.has_aggregate_id
        if not is_order and found.topic not in {settings.dead_letter_topic, settings.input_topic}:
            foreign[found.lane, found.topic] += found.rows
    if foreign:
        rows = "; ".join(f"lane {lane}: {n} for topic {topic}" for (lane, topic), n in foreign.items())
        raise ForeignRows(
            "rows of the outbox are neither deploy orders, dead letters nor retried commands"
            f" ({rows}): only their writer can tell whether they were published"
        )


LIST_ROWS = """
    INSERT INTO listed_rows (lane, id, topic, match_key, not_before)
    SELECT lane, id, %(topic)s, match_key, to_timestamp(not_before_us / 1e6)
      FROM unnest(%(lanes)b::smallint[], %(ids)b::bigint[], %(match_keys)b::uuid[],
                  %(not_before_us)b::bigint[])
           AS page (lane, id, match_key, not_before_us)
"""


def list_rows(
    conn: Connection,
    topic: str,
    lanes: Sequence[int],
    key_of_row: Callable[[WaitingRow], "MatchKey | None"],
) -> None:
    """List the rows for a topic, each with its match key. Raises ForeignRows.

    A row cannot have been published before it or its command was made, whichever is earlier: after a
    restore, a command that is read again gets a new row.
    """
    for page in read_waiting(conn, lanes, topic):
        keys = [key_of_row(row) for row in page]
        if foreign := [row.id for row, key in zip(page, keys, strict=True) if key is None]:
            raise ForeignRows(f"outbox row {foreign[0]} for topic {topic} does not say what it was")
        rows = [(row, key) for row, key in zip(page, keys, strict=True) if key]
        conn.execute(
            LIST_ROWS,
            {
                "topic": topic,
                "lanes": arrays.smallints(row.lane for row, _ in rows),
                "ids": arrays.bigints(row.id for row, _ in rows),
                "match_keys": arrays.uuids(key.key for _, key in rows),
                "not_before_us": arrays.bigints(
                    int(min(key.created_at, row.created_at).timestamp() * 1e6) for row, key in rows
                ),
            },
        )


# ---- what a row and its record have in common -----------------------------------------------------


class MatchKey(NamedTuple):
    """What a row and its record have in common, and when that was made."""

    key: UUID
    created_at: datetime


class Matcher(NamedTuple):
    """How the rows for a topic, and its records, are matched; None: neither is one of ours."""

    key_of_row: Callable[[WaitingRow], MatchKey | None]
    key_of_record: Callable[[Record], UUID | None]


def matchers(settings: Settings) -> dict[str, Matcher]:
    """Return the matcher of each topic that this service writes to."""
    return {
        settings.output_topic: Matcher(order_key, worker_of),
        settings.dead_letter_topic: by_headers(dead_letter_key),
        settings.input_topic: by_headers(retried_command_key),
    }


def order_key(row: WaitingRow) -> MatchKey | None:
    """Return the worker that a deploy order is about; its id begins with the command's time."""
    worker = row.aggregate_id
    return None if worker is None else MatchKey(worker, datetime_from_ms(record_time_ms(worker)))


def worker_of(record: Record) -> UUID | None:
    """Return the worker that a record is about; None if it is no deploy order."""
    return order_ids(record).worker_id


def by_headers(key_of: Callable[[Iterable[Header]], MatchKey | None]) -> Matcher:
    """Return the matcher for rows and records whose headers have the key."""

    def key_of_record(record: Record) -> UUID | None:
        found = key_of(headers_of(record))
        return found and found.key

    return Matcher(lambda row: key_of(row.headers), key_of_record)


def dead_letter_key(headers: Iterable[Header]) -> MatchKey | None:
    """Return the record that a dead letter was; None if its headers do not say."""
    origin = origin_of(headers)
    return origin and MatchKey(hash_parts(origin), origin.created_at)


def retried_command_key(headers: Iterable[Header]) -> MatchKey | None:
    """Return the dead letter that a retried command was; None: it was none, the API sent it."""
    retry_of = dict(headers).get(RETRY_OF)
    if not isinstance(retry_of, bytes):
        return None
    return MatchKey(hash_parts([retry_of]), datetime_from_ms(LATEST_MS))


# ---- looking the rows up --------------------------------------------------------------------------


HAS_ROWS = "SELECT EXISTS (SELECT FROM listed_rows WHERE topic = %(topic)s)"


def look_up(conn: Connection, settings: Settings, progress: TextIO | None) -> None:
    """Read the topics up to now, and note the outcome of each listed row.

    Valid only if nothing of the lanes can be published any more, or as a preview.
    """
    for topic, match in matchers(settings).items():
        if scalar(conn, bool, HAS_ROWS, {"topic": topic}):
            _look_up_in(conn, settings, topic, match.key_of_record, progress)


NOTE_PUBLISHED = """
    UPDATE listed_rows SET outcome = 'published' WHERE match_key = ANY(%(match_keys)b::uuid[])
"""
NOTE_UNKNOWN = """
    UPDATE listed_rows
       SET outcome = 'unknown'
     WHERE topic = %(topic)s AND outcome = 'not_published' AND not_before < %(complete_since)s
"""


def _look_up_in(
    conn: Connection,
    settings: Settings,
    topic: str,
    key_of_record: Callable[[Record], UUID | None],
    progress: TextIO | None,
) -> None:
    admin = topics.Admin(settings.kafka)
    ranges = find_ranges(admin, topic)
    oldest: dict[int, datetime] = {}
    for chunk in read_ranges(settings.kafka, topic, ranges, progress):
        keys = [key for record in chunk if (key := key_of_record(record))]
        conn.execute(NOTE_PUBLISHED, {"match_keys": keys})
        for record in chunk:
            oldest.setdefault(partition_offset(record)[0], time_of(record))
    complete = complete_since(admin, topic, ranges, oldest, datetime.now(UTC))
    if complete:
        conn.execute(NOTE_UNKNOWN, {"topic": topic, "complete_since": complete + MAX_CLOCK_SKEW})


COUNT_OUTCOMES = """
    SELECT count(*) FILTER (WHERE outcome = 'published') AS published,
           count(*) FILTER (WHERE outcome = 'not_published') AS not_published,
           count(*) FILTER (WHERE outcome = 'unknown') AS unknown
      FROM listed_rows
     WHERE lane = %(lane)s
"""


def count_outcomes(conn: Connection, lane: int) -> RowCounts:
    """Count the lane's rows by outcome."""
    (counts,) = query(conn, args_row(RowCounts), COUNT_OUTCOMES, {"lane": lane})
    return counts


TREAT_UNKNOWN = "UPDATE listed_rows SET outcome = %(outcome)s WHERE outcome = 'unknown'"


def treat_unknown(conn: Connection, choice: Literal["publish", "skip"]) -> None:
    """Treat unknown rows as not published, or as published, which skips them."""
    outcome = {"publish": "not_published", "skip": "published"}[choice]
    conn.execute(TREAT_UNKNOWN, {"outcome": outcome})


READ_PUBLISHED = """
    SELECT id
      FROM listed_rows
     WHERE lane = %(lane)s AND outcome = 'published' AND id > %(after_id)s
     ORDER BY id
     LIMIT %(limit)s
"""


def read_published(conn: Connection, lane: int) -> Iterator[list[int]]:
    """Yield the ids of the lane's rows that are in their topic, IDS_AT_ONCE at a time."""
    values = {"lane": lane, "limit": IDS_AT_ONCE}
    ids = [0]
    while ids := scalars(conn, int, READ_PUBLISHED, values | {"after_id": ids[-1]}):
        yield ids
