"""The statements on `outbox_deferred`: aggregates for which `on_published` must be called again.

Every function takes the connection first; those that write never commit.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from psycopg.rows import args_row

from outbox import arrays
from outbox.errors import RowsSkipped
from outbox.postgres import Connection, query, scalars

LOCKED = "locked by another session"

DEFER = """
    INSERT INTO outbox_deferred (aggregate_id, reason)
    SELECT aggregate_id, reason
      FROM unnest(%(aggregate_ids)b::uuid[], %(reasons)b::text[]) AS new (aggregate_id, reason)
"""


def defer(conn: Connection, reasons: Mapping[UUID, str]) -> None:
    """Write aggregates to the list, in the transaction that deletes their outbox rows.

    reasons: by aggregate id, why `on_published` could not do them. Raises RowsSkipped.
    """
    values = {"aggregate_ids": arrays.uuids(reasons), "reasons": arrays.texts(reasons.values())}
    if (inserted := conn.execute(DEFER, values).rowcount) != len(reasons):
        raise RowsSkipped("INSERT", "outbox_deferred", len(reasons) - inserted)


# NOT BETWEEN: a clock that was set back must not postpone an attempt.
FIND_DUE = """
    SELECT id
      FROM outbox_deferred
     WHERE clock_timestamp() NOT BETWEEN last_attempt_at AND last_attempt_at
           + %(retry_s)s::float8 * 2::float8 ^ least(attempts - 1, %(doublings)s)::float8
             * interval '1 second'
     ORDER BY last_attempt_at
     LIMIT %(limit)s
"""
DOUBLINGS = 5  # the longest pause is 32 times the first one


def find_due(conn: Connection, retry_s: float, limit: int) -> list[int]:
    """Return the ids of rows that must be tried again now, the least recently tried first.

    retry_s: the pause after the first attempt; after each further one it is twice as long.
    """
    values = {"retry_s": retry_s, "doublings": DOUBLINGS, "limit": limit}
    return scalars(conn, int, FIND_DUE, values, prepare=True)


class DeferredRow(NamedTuple):
    """A row of the list."""

    id: int
    aggregate_id: UUID


LOCK = """
    SELECT id, aggregate_id
      FROM outbox_deferred
     WHERE id = ANY(%(ids)b::bigint[])
       FOR UPDATE SKIP LOCKED
"""


def lock(conn: Connection, ids: Sequence[int]) -> list[DeferredRow]:
    """Lock rows of the list, but for those that another relay has just taken."""
    return query(conn, args_row(DeferredRow), LOCK, {"ids": arrays.bigints(ids)}, binary=True)


DELETE = "DELETE FROM outbox_deferred WHERE id = ANY(%(ids)b::bigint[])"


def delete(conn: Connection, ids: Collection[int]) -> None:
    """Delete rows whose aggregates are done."""
    conn.execute(DELETE, {"ids": arrays.bigints(ids)})


POSTPONE = """
    UPDATE outbox_deferred
       SET attempts = attempts + 1, last_attempt_at = clock_timestamp(), reason = %(reason)s
     WHERE id = ANY(%(ids)b::bigint[])
"""


def postpone(conn: Connection, ids: Collection[int], reason: str) -> None:
    """Note one more attempt without success."""
    conn.execute(POSTPONE, {"ids": arrays.bigints(ids), "reason": reason})


class DeferredBacklog(NamedTuple):
    """Rows of the list, and the age of the oldest in seconds; 0 if there is none."""

    rows: int
    oldest_s: float


BACKLOG = """
    SELECT count(*),
           coalesce(extract(epoch FROM clock_timestamp() - min(deferred_at)), 0)::float8
      FROM outbox_deferred
"""


def read_deferred_backlog(conn: Connection) -> DeferredBacklog:
    """Count the list, which is short unless the service's table refuses everything."""
    (backlog,) = query(conn, args_row(DeferredBacklog), BACKLOG)
    return backlog


class DeferredReason(NamedTuple):
    """Why aggregates are on the list: how many, and the first of them."""

    reason: str
    rows: int
    oldest_s: float
    aggregate_ids: Sequence[UUID]


FIND = "SELECT reason FROM outbox_deferred WHERE aggregate_id = %(aggregate_id)s LIMIT 1"


def find_deferred(conn: Connection, aggregate_id: UUID) -> str | None:
    """Return why an aggregate is deferred; None if it is not. Reads the whole list."""
    return next(iter(scalars(conn, str, FIND, {"aggregate_id": aggregate_id})), None)


# Of a list of any length the oldest rows say why.
READ_REASONS = """
    SELECT reason, count(*),
           extract(epoch FROM clock_timestamp() - min(deferred_at))::float8,
           (pg_catalog.array_agg(aggregate_id ORDER BY id))[:%(examples)s]
      FROM (SELECT id, aggregate_id, reason, deferred_at, attempts
              FROM outbox_deferred
             ORDER BY id
             LIMIT 1000) AS oldest
     WHERE attempts >= %(attempts)s
     GROUP BY reason
     ORDER BY min(id)
"""
EXAMPLES = 10  # aggregates that are named


def read_deferred_reasons(conn: Connection, attempts: int = 1) -> list[DeferredReason]:
    """Return why the oldest 1000 rows are on the list. attempts: leave out rows that had fewer."""
    values = {"attempts": attempts, "examples": EXAMPLES}
    return query(conn, args_row(DeferredReason), READ_REASONS, values)
