"""Rows that wait in the outbox: to list, and to park by hand.

Invariant: a row in flight is not parked: it may be in Kafka. Its lane is locked, as it is for a claim,
so no relay claims the row meanwhile.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple
from uuid import UUID

from psycopg.rows import args_row

from outbox.admin.parked import RowId
from outbox.outbox_rows import park
from outbox.postgres import Connection, query


class RowFilter(NamedTuple):
    """All conditions must match; one that is not set matches every row. key: the whole key."""

    row_ids: Collection[RowId] = ()
    topic: str | None = None
    key: bytes | None = None

    def as_values(self) -> dict[str, object]:
        """Return it as parameters of MATCHING."""
        return {
            "lanes": [one.lane for one in self.row_ids],
            "ids": [one.id for one in self.row_ids],
            "topic": self.topic,
            "key": self.key,
        }


class TopicBacklog(NamedTuple):
    """Rows that wait for a topic. oldest_s: the age of the oldest."""

    topic: str
    rows: int
    oldest_s: float


COUNT_BY_TOPIC = """
    SELECT topic, count(*) AS waiting,
           coalesce(extract(epoch FROM max(clock_timestamp() - created_at)
                                       FILTER (WHERE isfinite(created_at))), 0)::float8
      FROM outbox
     WHERE (%(topic)s::text IS NULL OR topic = %(topic)s::text)
       AND (%(key)s::bytea IS NULL OR key = %(key)s::bytea)
       AND (%(ids)s::bigint[] = '{}'
            OR (lane, id) IN (SELECT lane, id
                                FROM unnest(%(lanes)s::smallint[], %(ids)s::bigint[]) AS w (lane, id)))
     GROUP BY topic
     ORDER BY waiting DESC, topic
"""


def count_by_topic(conn: Connection, chosen: RowFilter) -> list[TopicBacklog]:
    """Count the rows by topic. Reads the whole table."""
    return query(conn, args_row(TopicBacklog), COUNT_BY_TOPIC, chosen.as_values())


class ListedRow(NamedTuple):
    """A row of the outbox without its content. batch_number: of the batch that it is in flight with."""

    lane: int
    id: int
    topic: str
    key: bytes | None
    aggregate_id: UUID | None
    age_s: float
    batch_number: int | None

    @property
    def row_id(self) -> RowId:
        """Return what names it."""
        return RowId(self.lane, self.id)


LIST_ROWS = """
    SELECT outbox.lane, id, topic, key, aggregate_id,
           CASE WHEN isfinite(created_at)
                THEN extract(epoch FROM clock_timestamp() - created_at)::float8 ELSE 0 END,
           CASE WHEN id = ANY(inflight) THEN batch_number END
      FROM outbox
      LEFT JOIN outbox_lane ON outbox_lane.lane = outbox.lane
     WHERE (%(topic)s::text IS NULL OR topic = %(topic)s::text)
       AND (%(key)s::bytea IS NULL OR key = %(key)s::bytea)
       AND (%(ids)s::bigint[] = '{}'
            OR (outbox.lane, id) IN (SELECT w.lane, w.id
                                       FROM unnest(%(lanes)s::smallint[], %(ids)s::bigint[])
                                            AS w (lane, id)))
     ORDER BY id
     LIMIT %(limit)s
"""


def list_rows(conn: Connection, chosen: RowFilter, limit: int) -> list[ListedRow]:
    """Return the first rows that match, by id: about the oldest first."""
    return query(conn, args_row(ListedRow), LIST_ROWS, chosen.as_values() | {"limit": limit})


LOCK_LANES = (
    "SELECT lane, inflight FROM outbox_lane WHERE lane = ANY(%(lanes)s) ORDER BY lane FOR UPDATE"
)


class LockedInflight(NamedTuple):
    """A locked lane, and its rows that may be in Kafka."""

    lane: int
    inflight: list[int]


FIND_WAITING = """
    SELECT lane, id
      FROM outbox
      JOIN unnest(%(lanes)s::smallint[], %(ids)s::bigint[]) AS wanted (lane, id) USING (lane, id)
     ORDER BY lane, id
"""


def park_waiting(conn: Connection, row_ids: Sequence[RowId], reason: str) -> list[RowId]:
    """Park rows that still wait and are not in flight; return them. In the caller's transaction."""
    lanes = {"lanes": sorted({one.lane for one in row_ids})}
    locked = {
        one.lane: one.inflight for one in query(conn, args_row(LockedInflight), LOCK_LANES, lanes)
    }
    free = [one for one in row_ids if one.lane in locked and one.id not in locked[one.lane]]
    waiting = query(conn, args_row(RowId), FIND_WAITING, RowFilter(free).as_values())
    for row_id in waiting:
        park(conn, *row_id, reason)
    return waiting
