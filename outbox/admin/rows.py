"""The rows of the outbox as an operator finds them: by what they are about, by topic, all of them.

Reads only; a row that is read here may be published, and gone, at any time.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import LiteralString, NamedTuple
from uuid import UUID

from psycopg.rows import args_row, scalar_row

from outbox.enqueue import count_lanes
from outbox.message import Headers, fault_of, lane_of, readable_headers
from outbox.postgres import Connection, query, scalar, transaction

WAITING_PAGE = 5000  # rows read at once


class RowStatus(NamedTuple):
    """Where the row of a message is, and what it waits for.

    table: `outbox` or `outbox_parked`. rows_ahead: rows of its lane before it. batch_number: of the
    batch that it is in flight with, if it is. reason: why Kafka rejected it, if it is parked.
    discarded: an operator gave it up.
    """

    table: str
    lane: int
    id: int
    created_at: datetime
    rows_ahead: int
    batch_number: int | None
    reason: str | None
    discarded: bool


# Dates that Python's do not reach are shown as the nearest that they do: other writers may set any.
FIND_ROW = """
    SELECT 'outbox', lane, id, greatest(least(created_at, '9999-12-30'), '0001-01-02'),
           (SELECT count(*)
              FROM outbox AS ahead
             WHERE ahead.lane = outbox.lane AND ahead.id < outbox.id) AS rows_ahead,
           (SELECT batch_number
              FROM outbox_lane
             WHERE outbox_lane.lane = outbox.lane AND outbox.id = ANY(inflight)) AS batch_number,
           NULL AS reason, false AS discarded
      FROM outbox
     WHERE aggregate_id = %(aggregate_id)s
 UNION ALL
    SELECT 'outbox_parked', lane, id, greatest(least(created_at, '9999-12-30'), '0001-01-02'),
           0, NULL, reason, discarded_at IS NOT NULL
      FROM outbox_parked
     WHERE aggregate_id = %(aggregate_id)s
     LIMIT 1
"""


def find_row(conn: Connection, aggregate_id: UUID) -> RowStatus | None:
    """Return a row about this, in the outbox or parked. Reads the whole table: no index has it."""
    found = query(conn, args_row(RowStatus), FIND_ROW, {"aggregate_id": aggregate_id})
    return found[0] if found else None


SEARCH_PARKED = """
    SELECT 'outbox_parked', lane, id, greatest(least(created_at, '9999-12-30'), '0001-01-02'),
           0 AS rows_ahead, NULL AS batch_number,
           reason, discarded_at IS NOT NULL AS discarded
      FROM outbox_parked
     WHERE aggregate_id IS NULL
       AND (pg_catalog.encode(key, 'escape') ~* %(pattern)s
            OR pg_catalog.encode(value, 'escape') ~* %(pattern)s)
     ORDER BY parked_at DESC
     LIMIT %(limit)s
"""


def search_parked(conn: Connection, pattern: str, limit: int) -> list[RowStatus]:
    """Return the latest parked rows without an aggregate id whose key or value matches, latest first.

    pattern: a regular expression of Postgres; case is ignored.
    """
    return query(conn, args_row(RowStatus), SEARCH_PARKED, {"pattern": pattern, "limit": limit})


COUNT_ROWS = "SELECT count(*) FROM outbox WHERE topic = %(topic)s"


def count_rows(conn: Connection, topic: str) -> int:
    """Count the rows for a topic that are not yet acknowledged. Reads the whole table."""
    return scalar(conn, int, COUNT_ROWS, {"topic": topic})


READ_LAST_ID = """
    SELECT CASE WHEN pg_catalog.has_sequence_privilege(ids, 'SELECT')
                THEN coalesce(pg_catalog.pg_sequence_last_value(ids), 0) END
      FROM (SELECT pg_catalog.pg_get_serial_sequence('outbox', 'id')::regclass AS ids) AS source
"""


def read_last_id(conn: Connection) -> int | None:
    """Return the highest id given to a row so far: how many rows there ever were; 0 before the first.

    None: this login may not see it.
    """
    last: list[int | None] = query(conn, scalar_row, READ_LAST_ID)
    return last[0]


class RowCount(NamedTuple):
    """Rows of a lane for a topic, with an aggregate id or without one."""

    lane: int
    topic: str
    has_aggregate_id: bool
    rows: int


COUNT_LANE_ROWS = """
    SELECT lane, topic, aggregate_id IS NOT NULL AS has_aggregate_id, count(*)
      FROM outbox
     WHERE lane = ANY(%(lanes)s)
     GROUP BY lane, topic, has_aggregate_id
     ORDER BY lane, topic, has_aggregate_id
"""


def count_lane_rows(conn: Connection, lanes: Sequence[int]) -> list[RowCount]:
    """Count the rows of lanes by topic: whose are they?"""
    return query(conn, args_row(RowCount), COUNT_LANE_ROWS, {"lanes": list(lanes)})


class WaitingRow(NamedTuple):
    """A row of the outbox without its content: what it is about, and what its headers say."""

    lane: int
    id: int
    aggregate_id: UUID | None
    created_at: datetime
    headers: Headers


READ_WAITING = """
    SELECT lane, id, aggregate_id,
           greatest(least(created_at, '9999-12-30'), '0001-01-02'), headers::text
      FROM outbox
     WHERE lane = ANY(%(lanes)s) AND topic = %(topic)s
       AND (lane, id) > (%(lane)s::smallint, %(id)s)
     ORDER BY lane, id
     LIMIT %(page_size)s
"""


def read_waiting(conn: Connection, lanes: Sequence[int], topic: str) -> Iterator[list[WaitingRow]]:
    """Yield the rows of lanes for a topic, by lane and id, in pages: memory is bounded."""
    values: dict[str, object] = {"lanes": list(lanes), "topic": topic, "page_size": WAITING_PAGE}
    lane, row_id = -1, 0
    while page := query(
        conn, args_row(_waiting_row), READ_WAITING, values | {"lane": lane, "id": row_id}
    ):
        yield page
        lane, row_id = page[-1].lane, page[-1].id


def _waiting_row(
    lane: int,
    row_id: int,
    aggregate_id: UUID | None,
    created_at: datetime,
    headers: str | None,
) -> WaitingRow:
    return WaitingRow(lane, row_id, aggregate_id, created_at, readable_headers(headers) or ())


class HeadRow(NamedTuple):
    """One of the first rows of a lane, without its value; headers: as they are stored."""

    lane: int
    id: int
    topic: str
    key: bytes | None
    headers: str | None
    message_id: UUID


READ_HEADS = """
    SELECT head.lane, id, topic, key, headers::text, message_id
      FROM outbox_lane,
           LATERAL (SELECT lane, id, topic, key, headers, message_id
                      FROM outbox
                     WHERE outbox.lane = outbox_lane.lane
                     ORDER BY id
                     LIMIT %(at_most)s) AS head
 UNION ALL
    (SELECT lane, id, topic, key, headers::text, message_id
       FROM outbox
      WHERE lane < 0 OR lane >= %(lanes)s
      LIMIT %(at_most)s)
"""


class FaultyRow(NamedTuple):
    """A row that cannot be sent, or not in its order."""

    lane: int
    id: int
    fault: str


def find_faulty_rows(
    conn: Connection, at_most: int, topics: Collection[str] | None = None
) -> Iterator[FaultyRow]:
    """Yield what is wrong with the first rows of each lane, and of lanes that do not exist.

    topics: as of the Relay.
    """
    lanes, names = count_lanes(conn), dict[UUID, str]()
    for row in query(conn, args_row(HeadRow), READ_HEADS, {"lanes": lanes, "at_most": at_most}):
        other = names.setdefault(row.message_id, f"{row.lane}:{row.id}")
        fault = fault_of(row.topic, readable_headers(row.headers), topics)
        if not 0 <= row.lane < lanes:
            fault = f"there is no lane {row.lane}"
        elif row.key is not None and (right := lane_of(row.key, lanes)) != row.lane:
            fault = f"its key belongs to lane {right}: the order of the key is not kept"
        elif other != f"{row.lane}:{row.id}":
            fault = f"row {other} has its message id, too"
        if fault:
            yield FaultyRow(row.lane, row.id, fault)


CREATE_UNPUBLISHED = """
    CREATE TEMP TABLE unpublished_messages AS
    SELECT aggregate_id, false AS parked, false AS discarded
      FROM outbox
     WHERE aggregate_id IS NOT NULL
 UNION ALL
    SELECT aggregate_id, true, discarded_at IS NOT NULL
      FROM outbox_parked
     WHERE aggregate_id IS NOT NULL
"""
ANALYZE_UNPUBLISHED = "ANALYZE pg_temp.unpublished_messages"
CREATE_DEFERRED = """
    CREATE TEMP TABLE deferred_aggregates AS
    SELECT aggregate_id, deferred_at
      FROM outbox_deferred
"""


def create_unpublished_messages(conn: Connection) -> None:
    """Note whom a message is about that is not yet published, in a table of this session alone.

    The temporary table unpublished_messages (aggregate_id UUID, parked BOOLEAN, discarded BOOLEAN) has
    a line for each row of the outbox, parked and discarded rows too, as they are at this moment: to be
    compared with the tables of the service, however many rows there are, and to be dropped by the
    caller.
    """
    conn.execute(CREATE_UNPUBLISHED)
    conn.execute(ANALYZE_UNPUBLISHED)


def create_deferred_aggregates(conn: Connection) -> None:
    """Note which aggregates are deferred, in a table of this session alone.

    The temporary table deferred_aggregates (aggregate_id UUID, deferred_at TIMESTAMPTZ): their
    messages were in Kafka at that time.
    """
    conn.execute(CREATE_DEFERRED)


@contextmanager
def snapshot(conn: Connection) -> Iterator[None]:
    """Let all statements of the block see the database as it is at the first of them.

    Vacuum is held up as long as the block takes.
    """
    with transaction(conn, "BEGIN ISOLATION LEVEL REPEATABLE READ"):
        yield


HIGHEST_IDS: Mapping[str, LiteralString] = {
    "outbox_parked": "SELECT max(id) FROM outbox_parked",
    "outbox_deferred": "SELECT max(id) FROM outbox_deferred",
}


def read_highest_id(conn: Connection, table: str) -> int | None:
    """Return the highest id of a row of `outbox_parked` or `outbox_deferred`; None: it has none."""
    return scalar(conn, int, HIGHEST_IDS[table])
