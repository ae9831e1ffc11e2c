"""Parked rows: those that Kafka rejected for themselves, to list, to retry, to discard.

Invariant: a row is in the outbox or parked, never both: each step is one statement of the caller's
transaction. A row that is retried gets a new id, so it goes out after what was enqueued meanwhile, also
of its key. A discarded row stays in the table, marked, as the trace of what became of its message.

After a restore a parked row may be one that was retried and published later. Its writer can find its
record, by `message_id` or by what it is about, and acknowledges the row instead of retrying it.
"""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from psycopg.rows import args_row, scalar_row

from outbox.message import Headers, fault_of, readable_headers
from outbox.postgres import Connection, query, scalar

PARKED_PAGE = 1000  # rows read at once


class RowId(NamedTuple):
    """Names a row, in the outbox or parked: it keeps its lane and id."""

    lane: int
    id: int


class ParkedRow(NamedTuple):
    """A row that Kafka rejected for itself.

    size_bytes: of its value, which `read_parked_value` returns. message_id: the header of its record,
    once that is published. reason: Kafka's, or ours. discarded_at: None while an operator has still to
    decide. fault: why it would be parked again; None: it may be sent.
    """

    lane: int
    id: int
    topic: str
    key: bytes | None
    size_bytes: int
    headers: Headers
    aggregate_id: UUID | None
    message_id: UUID
    created_at: datetime
    reason: str
    parked_at: datetime
    discarded_at: datetime | None
    fault: str | None

    @property
    def row_id(self) -> RowId:
        """Return what names it."""
        return RowId(self.lane, self.id)


LIST_PARKED = """
    SELECT lane, id, topic, key, coalesce(octet_length(value), 0) AS size_bytes,
           headers::text, aggregate_id, message_id,
           greatest(least(created_at, '9999-12-30'), '0001-01-02') AS created_at, reason, parked_at,
           discarded_at
      FROM outbox_parked
     WHERE (lane, id) > (%(lane)s::smallint, %(id)s)
     ORDER BY lane, id
     LIMIT %(page_size)s
"""


def read_parked(conn: Connection, topics: Collection[str] | None = None) -> Iterator[ParkedRow]:
    """Yield all parked rows, discarded ones too, by lane and id, without their values.

    topics: as of the Relay, for the rows' faults.
    """
    after, parse = RowId(-1, 0), args_row(partial(_parked_row, topics))
    while page := query(conn, parse, LIST_PARKED, after._asdict() | {"page_size": PARKED_PAGE}):
        yield from page
        after = page[-1].row_id


def _parked_row(
    topics: Collection[str] | None,
    lane: int,
    number: int,
    topic: str,
    key: bytes | None,
    size_bytes: int,
    headers: str | None,
    *others: Any,
) -> ParkedRow:
    found = readable_headers(headers)
    fault = fault_of(topic, found, topics)
    return ParkedRow._make((lane, number, topic, key, size_bytes, found or (), *others, fault))


READ_PARKED_VALUE = "SELECT value FROM outbox_parked WHERE lane = %(lane)s AND id = %(id)s"


def read_parked_value(conn: Connection, row_id: RowId) -> bytes | None:
    """Return the value of a parked row; None: it has none, or is gone."""
    values: list[bytes | None] = query(conn, scalar_row, READ_PARKED_VALUE, row_id._asdict())
    return values[0] if values else None


# Rows are locked in one order: two operators who want the same ones must not wait for each other.
RETRY = """
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
     RETURNING lane, id, topic, key, value, headers, message_id, aggregate_id
    ), enqueued AS (
        INSERT INTO outbox (lane, topic, key, value, headers, message_id, aggregate_id)
        SELECT lane, topic, key, value, headers, message_id, aggregate_id
          FROM taken
         ORDER BY id
    )
    SELECT lane, id
      FROM taken
     ORDER BY lane, id
"""


def retry_parked(conn: Connection, row_ids: Sequence[RowId]) -> list[RowId]:
    """Put parked rows back into the outbox, to be published; return those that still waited."""
    return query(conn, args_row(RowId), RETRY, _columns(row_ids))


class AcknowledgedRow(NamedTuple):
    """A parked row that was deleted, because its record is in Kafka."""

    lane: int
    id: int
    aggregate_id: UUID | None


ACKNOWLEDGE = """
    WITH locked AS (
        SELECT lane, id
          FROM outbox_parked
          JOIN unnest(%(lanes)s::smallint[], %(ids)s::bigint[]) AS wanted (lane, id) USING (lane, id)
         WHERE discarded_at IS NULL
         ORDER BY lane, id
           FOR UPDATE OF outbox_parked
    ), acknowledged AS (
        DELETE FROM outbox_parked
         WHERE (lane, id) IN (SELECT lane, id FROM locked)
     RETURNING lane, id, aggregate_id
    )
    SELECT lane, id, aggregate_id
      FROM acknowledged
     ORDER BY lane, id
"""


def acknowledge_parked(conn: Connection, row_ids: Sequence[RowId]) -> list[AcknowledgedRow]:
    """Delete parked rows whose records are in Kafka; return those that still waited."""
    return query(conn, args_row(AcknowledgedRow), ACKNOWLEDGE, _columns(row_ids))


DISCARD = """
    WITH locked AS (
        SELECT lane, id
          FROM outbox_parked
          JOIN unnest(%(lanes)s::smallint[], %(ids)s::bigint[]) AS wanted (lane, id) USING (lane, id)
         WHERE discarded_at IS NULL
         ORDER BY lane, id
           FOR UPDATE OF outbox_parked
    ), discarded AS (
        UPDATE outbox_parked
           SET discarded_at = NOW()
         WHERE (lane, id) IN (SELECT lane, id FROM locked)
     RETURNING lane, id
    )
    SELECT lane, id
      FROM discarded
     ORDER BY lane, id
"""


def discard_parked(conn: Connection, row_ids: Sequence[RowId]) -> list[RowId]:
    """Give parked rows up: they are never published; return those that still waited."""
    return query(conn, args_row(RowId), DISCARD, _columns(row_ids))


# What is left says which message it was, and what became of it.
PURGE = """
    UPDATE outbox_parked
       SET key = NULL, value = NULL, headers = NULL
     WHERE (lane, id) IN (SELECT lane, id
                            FROM unnest(%(lanes)s::smallint[], %(ids)s::bigint[]) AS wanted (lane, id))
       AND discarded_at IS NOT NULL
       AND (key IS NOT NULL OR value IS NOT NULL OR headers IS NOT NULL)
 RETURNING lane, id
"""


def purge_parked(conn: Connection, row_ids: Sequence[RowId]) -> list[RowId]:
    """Delete key, value and headers of discarded rows; return those that still had one of them."""
    return query(conn, args_row(RowId), PURGE, _columns(row_ids))


def _columns(row_ids: Sequence[RowId]) -> dict[str, list[int]]:
    return {"lanes": [lane for lane, _ in row_ids], "ids": [number for _, number in row_ids]}


COUNT_PARKED = """
    SELECT reason, count(*)
      FROM outbox_parked
     WHERE discarded_at IS NULL
     GROUP BY reason
     ORDER BY reason
"""


class ParkedCount(NamedTuple):
    """How many rows Kafka rejected for a reason."""

    reason: str
    rows: int


def count_parked(conn: Connection) -> list[ParkedCount]:
    """Count the parked rows for which an operator has still to decide, by reason."""
    return query(conn, args_row(ParkedCount), COUNT_PARKED)


MAY_READ_TIMES = "SELECT pg_catalog.has_column_privilege('outbox_parked', 'parked_at', 'SELECT')"
FIRST_PARKED = "SELECT min(parked_at) FROM outbox_parked WHERE discarded_at IS NULL"


def read_first_parked(conn: Connection) -> datetime | None:
    """Return since when parked rows wait; None: there are none, or a relay's login asks."""
    if not scalar(conn, bool, MAY_READ_TIMES):
        return None
    first: list[datetime | None] = query(conn, scalar_row, FIRST_PARKED)
    return first[0]
