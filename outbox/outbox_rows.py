"""The statements on `outbox`: claim, acknowledge and park rows of lanes that the caller has locked.

Every function takes the connection first; those that write never commit.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID

from psycopg.rows import args_row

from outbox import arrays
from outbox.columns import hash_of_message
from outbox.errors import RowsSkipped
from outbox.message import OutboxRow, readable_headers
from outbox.postgres import Connection, query, scalar, scalars

# A claim stops growing here: a transaction must fit into the producer's queue and its time-out.
MAX_BATCH_BYTES = 16 * 1024 * 1024

BEFORE_ALL = -(2**63)  # no row has this id

LANES_WITH_ROWS = """
    SELECT lane
      FROM unnest(%(lanes)b::smallint[], %(after_ids)b::bigint[]) AS mine (lane, after_id)
     WHERE EXISTS (SELECT FROM outbox
                    WHERE outbox.lane = mine.lane AND id > mine.after_id
                      AND topic <> ALL(%(left_out)b::text[]))
"""


def lanes_with_rows(
    conn: Connection, after_ids: Mapping[int, int], left_out: Collection[str] = ()
) -> list[int]:
    """Return the lanes that have a row: the idle poll, without a transaction.

    after_ids: for each lane to look at, the id after which it may have rows. left_out: topics whose
    rows do not count.
    """
    values = {
        "lanes": arrays.smallints(after_ids),
        "after_ids": arrays.bigints(after_ids.values()),
        "left_out": arrays.texts(left_out),
    }
    return scalars(conn, int, LANES_WITH_ROWS, values, prepare=True)


class ClaimRequest(NamedTuple):
    """Ask for up to `limit` rows of a lane. after_id: it has none up to this id (ClaimWatermark)."""

    lane: int
    limit: int
    after_id: int = BEFORE_ALL


# Large rows stay where they are until it is known which of them the batch takes.
CLAIM = """
    SELECT claimed.lane, id, topic,
           CASE WHEN size_bytes <= %(small)s THEN key END AS key,
           CASE WHEN size_bytes <= %(small)s THEN value END AS value,
           CASE WHEN size_bytes <= %(small)s THEN headers::text END AS headers,
           message_id::text,
           CASE WHEN isfinite(created_at)
                THEN extract(epoch FROM clock_timestamp() - created_at)::float8 ELSE 0 END AS age_s,
           size_bytes
      FROM unnest(%(lanes)b::smallint[], %(limits)b::bigint[], %(after_ids)b::bigint[])
           AS request (lane, up_to, after_id),
           LATERAL (
               SELECT outbox.lane, id, topic, key, value, headers, message_id, created_at,
                      coalesce(octet_length(key), 0) + coalesce(octet_length(value), 0)
                      + coalesce(octet_length(headers::text), 0) AS size_bytes
                 FROM outbox
                WHERE outbox.lane = request.lane AND id > request.after_id
                  AND topic <> ALL(%(left_out)b::text[])
                ORDER BY id
                LIMIT request.up_to
                  FOR UPDATE SKIP LOCKED
           ) AS claimed
"""


def claim(
    conn: Connection, requests: Sequence[ClaimRequest], largest: int, left_out: Collection[str] = ()
) -> dict[int, list[OutboxRow]]:
    """Lock rows of lanes, each lane's in id order. The caller's transaction holds the locks.

    The lane rows' locks already keep other relays away: SKIP LOCKED passes over a row that another
    session holds, instead of waiting for it with the lanes locked. Memory is bounded by
    MAX_BATCH_BYTES, and one row: a thousand long rows could be a gigabyte. largest: bytes of a row; the
    contents of a larger one stay where they are. left_out: topics whose rows are passed over.
    """
    small = MAX_BATCH_BYTES // sum(request.limit for request in requests)
    values = {
        "lanes": arrays.smallints(request.lane for request in requests),
        "limits": arrays.bigints(request.limit for request in requests),
        "after_ids": arrays.bigints(request.after_id for request in requests),
        "small": small,
        "left_out": arrays.texts(left_out),
    }
    found = query(conn, args_row(_outbox_row), CLAIM, values, prepare=True, binary=True)
    share = MAX_BATCH_BYTES // len(requests)
    return {
        lane: _load_large_rows(conn, lane, _take_up_to_bytes(list(rows), share), small, largest)
        for lane, rows in groupby(found, key=attrgetter("lane"))
    }


class WaitingTopic(NamedTuple):
    """A lane that has a row for a topic."""

    lane: int
    topic: str


FIND_WAITING = """
    SELECT mine.lane, wanted.topic
      FROM pg_catalog.unnest(%(lanes)b::smallint[]) AS mine (lane)
     CROSS JOIN pg_catalog.unnest(%(topics)b::text[]) AS wanted (topic),
           LATERAL (
               SELECT
                 FROM outbox
                WHERE outbox.lane = mine.lane AND outbox.topic = wanted.topic
                ORDER BY id
                LIMIT 1
           ) AS first
     ORDER BY 1, 2
"""


def find_waiting(
    conn: Connection, lanes: Collection[int], topics: Collection[str]
) -> list[WaitingTopic]:
    """Return which of the lanes have rows for which of the topics.

    Quick where they have: such rows wait at the head of their lane.
    """
    values = {"lanes": arrays.smallints(lanes), "topics": arrays.texts(topics)}
    return query(conn, args_row(WaitingTopic), FIND_WAITING, values)


def _outbox_row(
    lane: int,
    row_id: int,
    topic: str,
    key: bytes | None,
    value: bytes | None,
    headers: str | None,
    *others: Any,
) -> OutboxRow:
    return OutboxRow(
        lane, row_id, topic, key, value, () if headers is None else readable_headers(headers), *others
    )


def _take_up_to_bytes(rows: list[OutboxRow], share: int) -> list[OutboxRow]:
    """Return the first rows, at least one, that have `share` bytes together."""
    size = 0
    for number, row in enumerate(rows):
        size += row.size_bytes
        if size > share and number:
            return rows[:number]
    return rows


def _load_large_rows(
    conn: Connection, lane: int, rows: list[OutboxRow], small: int, largest: int
) -> list[OutboxRow]:
    """Load the contents that the claim left behind, unless no broker would take them."""
    large = [row.id for row in rows if small < row.size_bytes <= largest]
    if not large:
        return rows
    loaded = {row.id: row for row in load_rows(conn, lane, large)}
    return [loaded.get(row.id, row) for row in rows]


LOAD_ROWS = """
    SELECT lane, id, topic, key, value, headers::text, message_id::text,
           CASE WHEN isfinite(created_at)
                THEN extract(epoch FROM clock_timestamp() - created_at)::float8 ELSE 0 END AS age_s,
           coalesce(octet_length(key), 0) + coalesce(octet_length(value), 0)
           + coalesce(octet_length(headers::text), 0) AS size_bytes
      FROM outbox
     WHERE lane = %(lane)s AND id = ANY(%(ids)b::bigint[])
     ORDER BY id
"""


def load_rows(conn: Connection, lane: int, ids: Sequence[int]) -> list[OutboxRow]:
    """Return the rows of a batch that was begun before, in id order."""
    values = {"lane": lane, "ids": arrays.bigints(ids)}
    return query(conn, args_row(_outbox_row), LOAD_ROWS, values, binary=True)


ACKNOWLEDGE = """
    DELETE FROM outbox
     WHERE lane = %(lane)s AND id = ANY(%(ids)b::bigint[])
 RETURNING aggregate_id
"""

COUNT_LEFT = "SELECT count(*) FROM outbox WHERE lane = %(lane)s AND id = ANY(%(ids)b::bigint[])"


def acknowledge(conn: Connection, lane: int, ids: Sequence[int]) -> list[UUID]:
    """Delete rows that are in Kafka; return their aggregate ids. An id array, never a range:

    a range would take a row with a lower id that was committed after the claim. Raises RowsSkipped: a
    row that stays would be published again.
    """
    if not ids:
        return []
    values = {"lane": lane, "ids": arrays.bigints(ids)}
    found = scalars(conn, UUID, ACKNOWLEDGE, values, prepare=True, binary=True)
    if len(found) < len(ids) and (left := scalar(conn, int, COUNT_LEFT, values)):
        raise RowsSkipped("DELETE", "outbox", left)
    return [aggregate_id for aggregate_id in found if aggregate_id is not None]


# An id that is parked already came from a sequence that was set back, or from elsewhere.
PARK = """
    WITH rejected AS (
        DELETE FROM outbox
         WHERE lane = %(lane)s AND id = %(id)s
     RETURNING id, topic, key, value, headers, message_id, aggregate_id, created_at
    ), parked AS (
        INSERT INTO outbox_parked (lane, id, topic, key, value, headers, message_id, aggregate_id,
                                   created_at, reason)
        SELECT %(to_lane)s,
               CASE WHEN EXISTS (SELECT FROM outbox_parked
                                  WHERE lane = %(to_lane)s AND id = rejected.id)
                    THEN (SELECT CASE WHEN min(id) > 1 THEN min(id) - 1 ELSE max(id) + 1 END
                            FROM outbox_parked
                           WHERE lane = %(to_lane)s)
                    ELSE rejected.id END,
               topic, key, value, headers, message_id, aggregate_id, created_at, %(reason)s
          FROM rejected
    )
    SELECT aggregate_id FROM rejected
"""


class ParkedNow(NamedTuple):
    """A row that was parked in this transaction."""

    lane: int
    id: int
    aggregate_id: UUID | None
    reason: str


def park(
    conn: Connection, lane: int, row_id: int, reason: str, to_lane: int | None = None
) -> ParkedNow:
    """Move a row that cannot be sent to `outbox_parked`, for an operator. to_lane: if not its own."""
    values = {
        "lane": lane,
        "id": row_id,
        "to_lane": lane if to_lane is None else to_lane,
        "reason": reason,
    }
    aggregate_id = next(iter(scalars(conn, UUID, PARK, values)), None)
    return ParkedNow(lane, row_id, aggregate_id, reason)


class StrayRow(NamedTuple):
    """A row of a lane that does not exist, and what decides which one it belongs to."""

    lane: int
    id: int
    key: bytes | None
    value: bytes | None
    headers: str | None


FIND_STRAYS = """
    SELECT lane, id, key,
           CASE WHEN key IS NULL THEN value END,
           CASE WHEN key IS NULL THEN headers::text END
      FROM outbox
     WHERE lane < 0 OR lane >= %(lanes)s
     LIMIT %(limit)s
       FOR UPDATE SKIP LOCKED
"""
STRAYS_AT_ONCE = 100


def park_strays(conn: Connection, lanes: int) -> list[ParkedNow]:
    """Park some rows of lanes that do not exist, in the lanes that their keys belong to."""
    values = {"lanes": lanes, "limit": STRAYS_AT_ONCE}
    return [
        park(
            conn,
            row.lane,
            row.id,
            f"there is no lane {row.lane}",
            hash_of_message(row.key, row.value, row.headers) % lanes,
        )
        for row in query(conn, args_row(StrayRow), FIND_STRAYS, values)
    ]


PREPARED_TRANSACTION = "prepared"  # stands for all of them: PREPARE gives a transaction another name

OPEN_WRITERS = """
    SELECT CASE WHEN pid IS NULL THEN %(prepared)s ELSE virtualtransaction END
      FROM pg_locks
     WHERE locktype = 'relation' AND relation = 'outbox'::regclass::oid AND granted
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND mode IN ('RowExclusiveLock', 'RowShareLock')
"""


def open_writers(conn: Connection) -> frozenset[str]:
    """Return the transactions that write to the outbox, or lock rows of it, and have not ended.

    What one of them wrote is visible before its name is gone from here.
    """
    return frozenset(scalars(conn, str, OPEN_WRITERS, {"prepared": PREPARED_TRANSACTION}, prepare=True))


class Backlog(NamedTuple):
    """Rows waiting in a lane, and the age of the oldest in seconds."""

    lane: int
    pending: int
    oldest_s: float


BACKLOG = """
    SELECT lane, count(*) AS pending,
           coalesce(extract(epoch FROM max(clock_timestamp() - created_at)
                                       FILTER (WHERE isfinite(created_at))), 0)::float8 AS oldest_s
      FROM outbox
     WHERE lane = ANY(%(lanes)b::smallint[])
     GROUP BY lane
"""


def read_backlog(conn: Connection, lanes: Sequence[int]) -> dict[int, Backlog]:
    """Count the rows of `lanes`; reads all of them, so not for the hot path."""
    values = {"lanes": arrays.smallints(lanes)}
    found = {row.lane: row for row in query(conn, args_row(Backlog), BACKLOG, values)}
    return {lane: found.get(lane, Backlog(lane, 0, 0.0)) for lane in lanes}
