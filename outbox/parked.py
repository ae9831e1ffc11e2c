"""Rows that were set aside: to look at, to send after all, to give up.

Invariant: a row is in the outbox or set aside, never both: each step is one statement of the caller's
transaction. A row that is sent after all gets a new id, so it goes out after what came in meanwhile,
also of its key. One that is given up stays where it is, marked, as the trace of what became of it.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple, cast
from uuid import UUID

from outbox.message import Headers, decode_headers
from outbox.postgres import Connection

PORTION = 1000  # rows read at once


class ParkedRow(NamedTuple):
    """A row that Kafka refused for itself. size_bytes: of its value, which `read_value` returns.

    (lane, id) names it, and is what it had in the outbox.
    """

    lane: int
    id: int
    topic: str
    key: bytes | None
    size_bytes: int
    headers: Headers
    aggregate_id: UUID | None
    created_at: datetime
    reason: str
    parked_at: datetime
    discarded_at: datetime | None


LIST = """
    SELECT lane, id, topic, key, coalesce(octet_length(value), 0) AS size_bytes, headers, aggregate_id,
           created_at, reason, parked_at, discarded_at
      FROM outbox_parked
     WHERE (lane, id) > (%(lane)s::smallint, %(id)s)
     ORDER BY lane, id
     LIMIT %(portion)s
"""


def read_parked(conn: Connection) -> Iterator[ParkedRow]:
    """Yield all rows set aside, by lane and id, without their values."""
    after = {"lane": -1, "id": 0}
    while rows := conn.execute(LIST, after | {"portion": PORTION}).fetchall():
        for row in rows:
            parked = ParkedRow._make(cast("tuple[int]", row))
            stored = cast("list[tuple[str, str | None]]", parked.headers or ())
            yield parked._replace(headers=cast("Headers", decode_headers(stored)))
        after = {"lane": cast("int", rows[-1][0]), "id": cast("int", rows[-1][1])}


READ_VALUE = "SELECT value FROM outbox_parked WHERE lane = %(lane)s AND id = %(id)s"


def read_value(conn: Connection, lane: int, row_id: int) -> bytes | None:
    """Return the value of a row that is set aside; None: it has none, or is gone."""
    row = conn.execute(READ_VALUE, {"lane": lane, "id": row_id}).fetchone()
    return cast("bytes | None", row and row[0])


Places = Sequence[tuple[int, int]]  # (lane, id)

# Rows are locked in one order: two people who want the same ones must not wait for each other.
UNPARK = """
    WITH locked AS (
        SELECT lane, id
          FROM outbox_parked
          JOIN unnest(%(lanes)s::smallint[], %(ids)s::bigint[]) AS wanted (lane, id) USING (lane, id)
         WHERE discarded_at IS NULL
         ORDER BY lane, id
           FOR UPDATE OF outbox_parked
    ), taken AS (
        DELETE FROM outbox_parked
         WHERE (lane, id) IN (SELECT lane, id FROM locked)
     RETURNING lane, id, topic, key, value, headers, aggregate_id
    ), sent AS (
        INSERT INTO outbox (lane, topic, key, value, headers, aggregate_id)
        SELECT lane, topic, key, value, headers, aggregate_id
          FROM taken
         ORDER BY id
    )
    SELECT lane, id
      FROM taken
     ORDER BY lane, id
"""


def unpark(conn: Connection, places: Places) -> Places:
    """Put rows back into the outbox, to be sent; return those that still waited."""
    return cast("Places", conn.execute(UNPARK, _columns(places)).fetchall())


DISCARD = """
    WITH locked AS (
        SELECT lane, id
          FROM outbox_parked
          JOIN unnest(%(lanes)s::smallint[], %(ids)s::bigint[]) AS wanted (lane, id) USING (lane, id)
         WHERE discarded_at IS NULL
         ORDER BY lane, id
           FOR UPDATE OF outbox_parked
    ), given_up AS (
        UPDATE outbox_parked
           SET discarded_at = NOW()
         WHERE (lane, id) IN (SELECT lane, id FROM locked)
     RETURNING lane, id
    )
    SELECT lane, id
      FROM given_up
     ORDER BY lane, id
"""


def discard(conn: Connection, places: Places) -> Places:
    """Give rows up: they are never sent; return those that still waited."""
    return cast("Places", conn.execute(DISCARD, _columns(places)).fetchall())


def _columns(places: Places) -> dict[str, list[int]]:
    return {"lanes": [lane for lane, _ in places], "ids": [row_id for _, row_id in places]}
