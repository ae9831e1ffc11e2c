"""Which rows of the outbox, or parked rows, are in their topic already, by the records alone.

The rows are listed in a table of the session, with what they are matched by; their topics are read, and
each row gets its outcome. Memory is bounded, and no transaction stays open meanwhile.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter
from typing import Literal, NamedTuple, TextIO
from uuid import UUID

from confluent_kafka import Message as Record
from psycopg.rows import args_row

from orchestrator.config.settings import Settings
from orchestrator.contract.records import partition_offset
from orchestrator.errors import NotRepaired
from orchestrator.kafka import topics
from orchestrator.kafka.reader import (
    MAX_CLOCK_SKEW,
    complete_since,
    find_ranges,
    read_ranges,
    time_of,
)
from orchestrator.operations.repair.matching import Kind, Match, Matcher, key_of, match_parked
from outbox import Connection, arrays, query, scalars
from outbox.admin import ParkedRow, RowId, count_lane_rows, read_waiting

IDS_AT_ONCE = 5000  # of published rows


class ForeignRows(NotRepaired):
    """The outbox holds rows for which this service cannot tell whether they were published."""


# ---- the list of rows, in a table of this session -------------------------------------------------


CREATE_LIST = """
    CREATE TEMP TABLE listed_rows (
        parked        BOOLEAN NOT NULL,
        lane          SMALLINT NOT NULL,
        id            BIGINT NOT NULL,
        topic         TEXT NOT NULL,
        kind          TEXT NOT NULL,
        match_key     UUID NOT NULL,
        not_before    TIMESTAMPTZ NOT NULL, -- when it can have been published at the earliest
        outcome       TEXT NOT NULL DEFAULT 'not_published',
        partition     BIGINT,               -- of its record
        record_offset BIGINT,
        PRIMARY KEY (match_key, parked, lane, id)
    )
"""
DISCARD_LIST = "DISCARD TEMP"


@contextmanager
def row_list(conn: Connection) -> Iterator[None]:
    """Have an empty list for the functions below, while the block runs."""
    conn.execute(CREATE_LIST)
    try:
        yield
    finally:
        conn.execute(DISCARD_LIST)


def list_lanes(conn: Connection, settings: Settings, lanes: Sequence[int]) -> None:
    """List the rows of lanes as they are now. Raises ForeignRows."""
    matcher = Matcher(conn, settings)
    for rows in match_lanes(conn, matcher, lanes, {one.topic for one in count_lane_rows(conn, lanes)}):
        insert_rows(conn, rows)


def check_origin(conn: Connection, settings: Settings, lanes: Sequence[int]) -> None:
    """Raise ForeignRows if the lanes hold rows that do not say what they were.

    Reads only the rows for topics that processes with our settings do not write to.
    """
    matcher = Matcher(conn, settings)
    counts = count_lane_rows(conn, lanes)
    unusual = {one.topic for one in counts if not matcher.is_usual(one.topic, one.has_aggregate_id)}
    for _ in match_lanes(conn, matcher, lanes, unusual):
        pass


class ListedRow(NamedTuple):
    """A row to be looked up."""

    parked: bool
    lane: int
    id: int
    topic: str
    match: Match


def match_lanes(
    conn: Connection, matcher: Matcher, lanes: Sequence[int], names: Collection[str]
) -> Iterator[list[ListedRow]]:
    """Yield the rows of lanes for these topics, in pages. Raises ForeignRows after the last one.

    A row cannot have been published before it or its command was made, whichever is earlier: after a
    restore, a command that is read again gets a new row.
    """
    foreign: Counter[tuple[int, str]] = Counter()
    for topic in sorted(names):
        for page in read_waiting(conn, lanes, topic):
            listed = []
            for row, match in zip(page, matcher.match_rows(topic, page), strict=True):
                if match is None:
                    foreign[row.lane, topic] += 1
                else:
                    match = match._replace(created_at=min(match.created_at, row.created_at))
                    listed.append(ListedRow(False, row.lane, row.id, topic, match))
            yield listed
    if foreign:
        raise foreign_rows(foreign)


def foreign_rows(foreign: Mapping[tuple[int, str], int]) -> ForeignRows:
    """Return the error that says what they are not, and what may help."""
    rows = "; ".join(f"lane {lane}: {n} for topic {topic}" for (lane, topic), n in foreign.items())
    return ForeignRows(
        f"rows of the outbox do not say what they were ({rows}): they are neither deploy orders of a"
        " worker, nor dead letters of an input, nor retried commands. If a consumer with other"
        " settings wrote them, repair with its INPUT_TOPIC, OUTPUT_TOPIC and DEAD_LETTER_TOPIC;"
        " otherwise only their writer can tell whether they were published"
    )


def list_parked(conn: Connection, settings: Settings, rows: Sequence[ParkedRow]) -> None:
    """List parked rows; not those whose topic does not exist: their records are nowhere."""
    matcher, admin = Matcher(conn, settings), topics.Admin(settings.kafka)
    for topic, of_topic in groupby(sorted(rows, key=attrgetter("topic")), attrgetter("topic")):
        if topics.exists(admin, topic):
            some = list(of_topic)
            matches = map(match_parked, some, matcher.match_rows(topic, some))
            insert_rows(
                conn,
                [
                    ListedRow(True, row.lane, row.id, topic, match)
                    for row, match in zip(some, matches, strict=True)
                ],
            )


INSERT_ROWS = """
    INSERT INTO pg_temp.listed_rows (parked, lane, id, topic, kind, match_key, not_before)
    SELECT %(parked)s, lane, id, topic, kind, match_key,
           pg_catalog.to_timestamp(not_before_us::float8 / 1e6::float8)
      FROM unnest(%(lanes)b::smallint[], %(ids)b::bigint[], %(topics)b::text[], %(kinds)b::text[],
                  %(match_keys)b::uuid[], %(not_before_us)b::bigint[])
           AS page (lane, id, topic, kind, match_key, not_before_us)
"""


def insert_rows(conn: Connection, rows: Sequence[ListedRow]) -> None:
    """Insert rows into the list, all of them parked, or none."""
    if not rows:
        return
    conn.execute(
        INSERT_ROWS,
        {
            "parked": rows[0].parked,
            "lanes": arrays.smallints(row.lane for row in rows),
            "ids": arrays.bigints(row.id for row in rows),
            "topics": arrays.texts(row.topic for row in rows),
            "kinds": arrays.texts(row.match.kind for row in rows),
            "match_keys": arrays.uuids(row.match.key for row in rows),
            "not_before_us": arrays.bigints(
                int(row.match.created_at.timestamp() * 1e6) for row in rows
            ),
        },
    )


# ---- looking the rows up --------------------------------------------------------------------------


class TopicRows(NamedTuple):
    """The rows listed for a topic: what they are matched by, and since when they can be there."""

    topic: str
    kinds: Sequence[str]
    not_before: datetime


READ_TOPICS = """
    SELECT topic, pg_catalog.array_agg(DISTINCT kind), min(not_before)
      FROM pg_temp.listed_rows
     GROUP BY topic
     ORDER BY topic
"""
ANALYZE_LIST = "ANALYZE pg_temp.listed_rows"


def look_up(
    conn: Connection, settings: Settings, progress: TextIO | None, whole_topics: bool = True
) -> None:
    """Read the topics up to now, and note the outcome of each listed row.

    Valid only if nothing of the rows can be published any more, or as a preview. whole_topics=False:
    read only what is not older than the oldest row.
    """
    conn.execute(ANALYZE_LIST)
    for rows in query(conn, args_row(TopicRows), READ_TOPICS):
        since = None if whole_topics else rows.not_before - MAX_CLOCK_SKEW
        look_up_in(conn, settings, rows, since, progress)


NOTE_UNKNOWN = """
    UPDATE pg_temp.listed_rows
       SET outcome = 'unknown'
     WHERE topic = %(topic)s AND outcome = 'not_published' AND not_before < %(complete_since)s
"""


def look_up_in(
    conn: Connection,
    settings: Settings,
    rows: TopicRows,
    since: datetime | None,
    progress: TextIO | None,
) -> None:
    """Read a topic; note which rows are there, and which may have been there."""
    admin, topic, kinds = topics.Admin(settings.kafka), rows.topic, [Kind(one) for one in rows.kinds]
    ranges = find_ranges(admin, topic, None if since is None else max(int(since.timestamp() * 1000), 0))
    oldest: dict[int, datetime] = {}
    for chunk in read_ranges(settings.kafka, topic, ranges, progress):
        note_published(conn, topic, [(key_of(kind, one), one) for one in chunk for kind in kinds])
        for record in chunk:
            oldest.setdefault(partition_offset(record)[0], time_of(record))
    complete = complete_since(admin, topic, ranges, oldest, datetime.now(UTC))
    if complete:
        conn.execute(NOTE_UNKNOWN, {"topic": topic, "complete_since": complete + MAX_CLOCK_SKEW})


NOTE_PUBLISHED = """
    UPDATE pg_temp.listed_rows
       SET outcome = 'published', partition = found.partition, record_offset = found.record_offset
      FROM unnest(%(match_keys)b::uuid[], %(partitions)b::bigint[], %(record_offsets)b::bigint[])
           AS found (match_key, partition, record_offset)
     WHERE topic = %(topic)s AND listed_rows.match_key = found.match_key AND outcome <> 'published'
"""


def note_published(conn: Connection, topic: str, found: Iterable[tuple[UUID | None, Record]]) -> None:
    """Note where the records of rows are."""
    keys = [(key, *partition_offset(record)) for key, record in found if key]
    conn.execute(
        NOTE_PUBLISHED,
        {
            "topic": topic,
            "match_keys": arrays.uuids(key for key, _, _ in keys),
            "partitions": arrays.bigints(partition for _, partition, _ in keys),
            "record_offsets": arrays.bigints(offset for _, _, offset in keys),
        },
    )


# ---- the outcomes ---------------------------------------------------------------------------------


class RowCounts(NamedTuple):
    """What is known of a lane's rows.

    unknown: not in the topic, but so old that retention may have deleted their records. parked: parked
    rows whose records are in their topic.
    """

    published: int
    not_published: int
    unknown: int
    parked: int


COUNT_OUTCOMES = """
    SELECT count(*) FILTER (WHERE outcome = 'published' AND NOT parked) AS published,
           count(*) FILTER (WHERE outcome = 'not_published' AND NOT parked) AS not_published,
           count(*) FILTER (WHERE outcome = 'unknown' AND NOT parked) AS unknown,
           count(*) FILTER (WHERE outcome = 'published' AND parked) AS parked
      FROM pg_temp.listed_rows
     WHERE lane = %(lane)s
"""


def count_outcomes(conn: Connection, lane: int) -> RowCounts:
    """Count the lane's rows by outcome."""
    (counts,) = query(conn, args_row(RowCounts), COUNT_OUTCOMES, {"lane": lane})
    return counts


TREAT_UNKNOWN = """
    UPDATE pg_temp.listed_rows SET outcome = %(outcome)s WHERE outcome = 'unknown' AND NOT parked
"""


def treat_unknown(conn: Connection, choice: Literal["publish", "skip"]) -> None:
    """Treat unknown rows as not published, or as published, which skips them."""
    outcome = {"publish": "not_published", "skip": "published"}[choice]
    conn.execute(TREAT_UNKNOWN, {"outcome": outcome})


READ_PUBLISHED = """
    SELECT id
      FROM pg_temp.listed_rows
     WHERE lane = %(lane)s AND outcome = 'published' AND NOT parked AND id > %(after_id)s
     ORDER BY id
     LIMIT %(limit)s
"""


def read_published(conn: Connection, lane: int) -> Iterator[list[int]]:
    """Yield the ids of the lane's rows that are in their topic, IDS_AT_ONCE at a time."""
    values = {"lane": lane, "limit": IDS_AT_ONCE}
    ids = [0]
    while ids := scalars(conn, int, READ_PUBLISHED, values | {"after_id": ids[-1]}):
        yield ids


class FoundRow(NamedTuple):
    """A parked row whose record is in its topic, and where."""

    lane: int
    id: int
    topic: str
    partition: int
    offset: int

    @property
    def row_id(self) -> RowId:
        """Return what names it."""
        return RowId(self.lane, self.id)


READ_PUBLISHED_PARKED = """
    SELECT lane, id, topic, partition, record_offset
      FROM pg_temp.listed_rows
     WHERE parked AND outcome = 'published'
     ORDER BY lane, id
"""


def read_published_parked(conn: Connection) -> list[FoundRow]:
    """Return the parked rows that are in their topic."""
    return query(conn, args_row(FoundRow), READ_PUBLISHED_PARKED)


READ_UNKNOWN_PARKED = """
    SELECT lane, id FROM pg_temp.listed_rows WHERE parked AND outcome = 'unknown' ORDER BY lane, id
"""


def read_unknown_parked(conn: Connection) -> list[RowId]:
    """Return the parked rows that are not in their topic, but whose records it may have lost."""
    return query(conn, args_row(RowId), READ_UNKNOWN_PARKED)
