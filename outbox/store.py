"""The Postgres half of the protocol: what each statement does to outbox and outbox_lane.

Invariant: the lane row's lock is taken, under the owner's epoch, before any row of the lane is read,
and `inflight` is committed before Kafka sees the batch. Without the first, a relay that was replaced
could settle or publish rows of its successor's; without the second, recovery could not know which
rows a batch number stands for.

Every function takes the connection first; those that write never commit.
"""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import NamedTuple, cast
from uuid import UUID

import psycopg

from outbox import arrays
from outbox.errors import OwnershipLost, SchemaMismatch
from outbox.message import Message, OutboxRow, encode_headers, lane_of
from outbox.postgres import Connection

# A claim stops growing here: a transaction must fit into the producer's queue and its time-out.
MAX_BATCH_BYTES = 16 * 1024 * 1024

_turn = count()  # rows without a key are dealt to the lanes in turn

ENQUEUE = """
    INSERT INTO outbox (lane, topic, key, value, headers, subject)
    SELECT lane, topic, key, value, headers::json, subject
      FROM unnest(%b::smallint[], %b::text[], %b::bytea[], %b::bytea[], %b::text[], %b::uuid[])
           AS message (lane, topic, key, value, headers, subject)
"""


def enqueue(conn: Connection, messages: Sequence[Message], lanes: int) -> None:
    """Insert messages into the outbox, in their order, inside the caller's transaction.

    lanes: `count_lanes(conn)`, read once at start. One statement for all messages.
    """
    if not messages:
        return
    conn.execute(
        ENQUEUE,
        (
            arrays.smallints(
                next(_turn) % lanes if m.key is None else lane_of(m.key, lanes) for m in messages
            ),
            arrays.texts(m.topic for m in messages),
            arrays.byteas(m.key for m in messages),
            arrays.byteas(m.value for m in messages),
            arrays.texts(encode_headers(m.headers) for m in messages),
            arrays.uuids(m.subject for m in messages),
        ),
        prepare=True,
    )


IDENTITY = "SELECT identity FROM outbox_identity"


def read_identity(conn: Connection) -> UUID:
    """Return the outbox's own name. Raises SchemaMismatch where nobody migrated yet."""
    try:
        row = conn.execute(IDENTITY).fetchone()
    except psycopg.errors.UndefinedTable as error:
        raise SchemaMismatch("table outbox_identity is missing: run the migration first") from error
    if row is None:
        raise SchemaMismatch("table outbox_identity is empty: run the migration first")
    return cast("UUID", row[0])


COUNT_LANES = "SELECT count(*) FROM outbox_lane"


def count_lanes(conn: Connection) -> int:
    """Return the number of lanes; fixed when the schema is made."""
    (lanes,) = cast("tuple[int]", conn.execute(COUNT_LANES).fetchone())
    return lanes


class LaneState(NamedTuple):
    """The lane row: seq is the last batch begun, inflight the ids of its rows not yet settled."""

    seq: int
    inflight: list[int]


TAKE_LANE = "UPDATE outbox_lane SET epoch = epoch + 1 WHERE lane = %(lane)s RETURNING epoch"


def take_lane(conn: Connection, lane: int) -> int:
    """Raise the lane's epoch and return it: from now on no earlier owner can write."""
    (epoch,) = cast("tuple[int]", conn.execute(TAKE_LANE, {"lane": lane}).fetchone())
    return epoch


CHECK_OWNER = "SELECT 1 FROM outbox_lane WHERE lane = %(lane)s AND epoch = %(epoch)s"


def check_owner(conn: Connection, lane: int, epoch: int) -> None:
    """Raise OwnershipLost unless `epoch` is still the lane's. Locks nothing."""
    if conn.execute(CHECK_OWNER, {"lane": lane, "epoch": epoch}).fetchone() is None:
        raise OwnershipLost(lane, epoch)


LOCK_LANE = """
    SELECT seq, inflight
      FROM outbox_lane
     WHERE lane = %(lane)s AND epoch = %(epoch)s
       FOR UPDATE
"""


def lock_lane(conn: Connection, lane: int, epoch: int) -> LaneState:
    """Lock the lane row, first of all in the caller's transaction, and return its state.

    Waits for a COMMIT of the same row that is still running. Raises OwnershipLost.
    """
    row = conn.execute(LOCK_LANE, {"lane": lane, "epoch": epoch}, prepare=True).fetchone()
    if row is None:
        raise OwnershipLost(lane, epoch)
    return LaneState(*cast("tuple[int, list[int]]", row))


SETTLE = """
    DELETE FROM outbox
     WHERE lane = %(lane)s AND id = ANY(%(ids)b::bigint[])
 RETURNING subject
"""


def settle(conn: Connection, lane: int, ids: Sequence[int]) -> list[UUID]:
    """Delete rows that are in Kafka; return their subjects. An id array, never a range."""
    if not ids:
        return []
    rows = conn.execute(SETTLE, {"lane": lane, "ids": arrays.bigints(ids)}, prepare=True, binary=True)
    return [cast("UUID", subject) for (subject,) in rows if subject is not None]


CLAIM = """
    SELECT id, topic, key,
           CASE WHEN octet_length(value) <= %(small)s THEN value END AS value,
           headers,
           extract(epoch FROM clock_timestamp() - created_at)::float8 AS age_s,
           coalesce(octet_length(value), 0) AS octets
      FROM outbox
     WHERE lane = %(lane)s AND id > %(above)s
     ORDER BY id
     LIMIT %(limit)s
       FOR UPDATE SKIP LOCKED
"""


def claim(conn: Connection, lane: int, limit: int, above: int = 0) -> list[OutboxRow]:
    """Lock up to `limit` rows of `lane` in id order. The caller's transaction holds the locks.

    above: an id up to which the lane has no rows (LowWater).

    The lane row's lock already keeps other relays away: SKIP LOCKED passes over a row that some
    other session holds, instead of waiting for it with the lane locked. Large values stay where they
    are until it is known which of them the batch takes: a thousand could be a gigabyte.
    """
    values = {"lane": lane, "above": above, "limit": limit, "small": MAX_BATCH_BYTES // limit}
    cursor = conn.execute(CLAIM, values, prepare=True, binary=True)
    rows = _first_bytes([OutboxRow._make(cast("tuple[int]", row)) for row in cursor.fetchall()])
    if large := [row.id for row in rows if row.value is None and row.octets]:
        loaded = {row.id: row for row in load(conn, lane, large)}
        rows = [loaded.get(row.id, row) for row in rows]
    return rows


def _first_bytes(rows: list[OutboxRow]) -> list[OutboxRow]:
    """Keep the first rows, at least one, that are MAX_BATCH_BYTES together."""
    size = 0
    for number, row in enumerate(rows):
        size += row.octets
        if size > MAX_BATCH_BYTES and number:
            return rows[:number]
    return rows


LOAD = """
    SELECT id, topic, key, value, headers,
           extract(epoch FROM clock_timestamp() - created_at)::float8 AS age_s,
           coalesce(octet_length(value), 0) AS octets
      FROM outbox
     WHERE lane = %(lane)s AND id = ANY(%(ids)b::bigint[])
     ORDER BY id
"""


def load(conn: Connection, lane: int, ids: Sequence[int]) -> list[OutboxRow]:
    """Return the rows of a batch that was begun before, in id order."""
    cursor = conn.execute(LOAD, {"lane": lane, "ids": arrays.bigints(ids)}, binary=True)
    return [OutboxRow._make(cast("tuple[int]", row)) for row in cursor.fetchall()]


BEGIN_BATCH = """
    UPDATE outbox_lane
       SET seq = %(seq)s, inflight = %(ids)b::bigint[]
     WHERE lane = %(lane)s AND epoch = %(epoch)s
"""


def begin_batch(conn: Connection, lane: int, epoch: int, state: LaneState) -> None:
    """Write which rows batch `seq` stands for. Raises OwnershipLost."""
    values = {"lane": lane, "epoch": epoch, "seq": state.seq, "ids": arrays.bigints(state.inflight)}
    if conn.execute(BEGIN_BATCH, values, prepare=True).rowcount != 1:
        raise OwnershipLost(lane, epoch)


PARK = """
    WITH refused AS (
        DELETE FROM outbox
         WHERE lane = %(lane)s AND id = %(id)s
     RETURNING lane, id, topic, key, value, headers, subject, created_at
    ), parked AS (
        INSERT INTO outbox_parked (lane, id, topic, key, value, headers, subject, created_at, reason)
        SELECT lane, id, topic, key, value, headers, subject, created_at, %(reason)s
          FROM refused
    )
    SELECT subject FROM refused
"""


def park(conn: Connection, lane: int, row_id: int, reason: str) -> UUID | None:
    """Move one row out of the way, to be looked at by a person; return its subject."""
    row = conn.execute(PARK, {"lane": lane, "id": row_id, "reason": reason}).fetchone()
    return cast("UUID | None", row and row[0])


ANY_WAITING = "SELECT 1 FROM outbox WHERE lane = %(lane)s AND id > %(above)s LIMIT 1"


def any_waiting(conn: Connection, lane: int, above: int) -> bool:
    """Say whether the lane has a row above an id: the idle poll, without a transaction."""
    found = conn.execute(ANY_WAITING, {"lane": lane, "above": above}, prepare=True)
    return found.fetchone() is not None


WAITING_LANES = """
    SELECT lane
      FROM unnest(%(lanes)b::smallint[], %(above)b::bigint[]) AS idle (lane, above)
     WHERE EXISTS (SELECT FROM outbox WHERE outbox.lane = idle.lane AND id > idle.above)
"""


def waiting_lanes(conn: Connection, idle: Mapping[int, int]) -> list[int]:
    """Return the lanes that have a row: one question for all idle lanes of a relay.

    idle: for each of them the id above which its rows are.
    """
    values = {"lanes": arrays.smallints(idle), "above": arrays.bigints(idle.values())}
    found = conn.execute(WAITING_LANES, values, prepare=True)
    return [lane for (lane,) in cast("list[tuple[int]]", found.fetchall())]


PREPARED = "prepared"  # stands for all prepared transactions: PREPARE gives one another name

WRITERS = """
    SELECT CASE WHEN pid IS NULL THEN %(prepared)s ELSE virtualtransaction END
      FROM pg_locks
     WHERE locktype = 'relation' AND relation = 'outbox'::regclass AND granted
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND mode IN ('RowExclusiveLock', 'RowShareLock')
"""


def writers(conn: Connection) -> frozenset[str]:
    """Return the transactions that write to the outbox, or lock rows of it, and have not ended.

    What one of them wrote is visible before its name is gone from here.
    """
    found = conn.execute(WRITERS, {"prepared": PREPARED}, prepare=True)
    return frozenset(name for (name,) in cast("list[tuple[str]]", found.fetchall()))


BACKLOG = """
    SELECT lane, count(*) AS pending,
           coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8 AS oldest_s
      FROM outbox
     WHERE lane = ANY(%(lanes)b::smallint[])
     GROUP BY lane
"""


class Backlog(NamedTuple):
    """Rows waiting in a lane, and the age of the oldest in seconds."""

    pending: int
    oldest_s: float


def read_backlog(conn: Connection, lanes: Sequence[int]) -> dict[int, Backlog]:
    """Count the rows of `lanes`; reads all of them, so not for the hot path."""
    waiting = {
        lane: Backlog(pending, oldest)
        for lane, pending, oldest in cast(
            "list[tuple[int, int, float]]", conn.execute(BACKLOG, {"lanes": lanes}).fetchall()
        )
    }
    return {lane: waiting.get(lane, Backlog(0, 0.0)) for lane in lanes}
