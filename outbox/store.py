"""The Postgres half of the protocol: what each statement does to outbox and outbox_lane.

Invariant: a lane row's lock is taken, under the owner's epoch, before any row of the lane is read,
and `inflight` and `transactional_lane` are committed before Kafka sees the batch. Without the first, a relay that
was replaced could acknowledge or publish rows of its successor's; without the others, recovery could not
know which rows a batch number stands for, nor whose transaction might still bring them in.

Every function takes the connection first; those that write never commit.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import LiteralString, NamedTuple, cast
from uuid import UUID

import psycopg

from outbox import arrays
from outbox.errors import DatabaseNotReady, OwnershipLost
from outbox.message import Message, OutboxRow, encode_headers, lane_of
from outbox.postgres import Connection

# A claim stops growing here: a transaction must fit into the producer's queue and its time-out.
MAX_BATCH_BYTES = 16 * 1024 * 1024

ENQUEUE = """
    INSERT INTO outbox (lane, topic, key, value, headers, aggregate_id)
    SELECT lane, topic, key, value, headers::json, aggregate_id
      FROM unnest(%b::smallint[], %b::text[], %b::bytea[], %b::bytea[], %b::text[], %b::uuid[])
           AS message (lane, topic, key, value, headers, aggregate_id)
"""


def enqueue(conn: Connection, messages: Sequence[Message], lanes: int) -> None:
    """Insert messages into the outbox, in their order, inside the caller's transaction.

    lanes: `count_lanes(conn)`, read once at start. One statement for all messages.
    """
    if not messages:
        return
    headers = [encode_headers(m.headers) for m in messages]
    conn.execute(
        ENQUEUE,
        (
            arrays.smallints(
                lane_of(_content(m.value, text) if m.key is None else m.key, lanes)
                for m, text in zip(messages, headers, strict=True)
            ),
            arrays.texts(m.topic for m in messages),
            arrays.byteas(m.key for m in messages),
            arrays.byteas(m.value for m in messages),
            arrays.texts(headers),
            arrays.uuids(m.aggregate_id for m in messages),
        ),
        prepare=True,
    )


def _content(value: bytes | None, headers: str | None) -> bytes:
    """Return what decides the lane of a message without a key.

    Nothing that the process remembers does: after a restore it is written again, and has to come to
    the lane that knows whether it was sent.
    """
    return (headers or "").encode() + (value or b"")


IDENTITY = "SELECT identity FROM outbox_identity"


def read_identity(conn: Connection) -> UUID:
    """Return the outbox's own name. Raises DatabaseNotReady where nobody migrated yet."""
    try:
        row = conn.execute(IDENTITY).fetchone()
    except psycopg.errors.UndefinedTable as error:
        raise DatabaseNotReady("table outbox_identity is missing: run the migration first") from error
    if row is None:
        raise DatabaseNotReady("table outbox_identity is empty: run the migration first")
    return cast("UUID", row[0])


COUNT_LANES = "SELECT count(*) FROM outbox_lane"


def count_lanes(conn: Connection) -> int:
    """Return the number of lanes; fixed when the schema is made."""
    (lanes,) = cast("tuple[int]", conn.execute(COUNT_LANES).fetchone())
    return lanes


class LaneState(NamedTuple):
    """What a lane row says of the batch in hand.

    batch_number: number of the last batch begun. inflight: ids of its rows not yet acknowledged. transactional_lane: the lane
    whose transactional id it goes out under, as does all else that concerns the lane in Kafka.
    maybe_restored: the row was maybe restored, and the transactional_lane is an old one.
    """

    batch_number: int
    inflight: list[int]
    transactional_lane: int
    maybe_restored: bool = False

    def senders(self, lanes: int) -> Iterable[int]:
        """Return the lanes, of so many, under whose ids something of this one may be in the air."""
        return range(lanes) if self.maybe_restored else [self.transactional_lane]


TAKE_LANE = "UPDATE outbox_lane SET epoch = epoch + 1 WHERE lane = %(lane)s RETURNING epoch"


def take_lane(conn: Connection, lane: int) -> int:
    """Raise the lane's epoch and return it: from now on no earlier owner can write."""
    (epoch,) = cast("tuple[int]", conn.execute(TAKE_LANE, {"lane": lane}).fetchone())
    return epoch


# What brings an old row back starts the server, or another one, or puts the row into another file; but
# not if it is written over by hand, or a virtual machine is put back with its memory.
SERVER_RUN = """
    concat(extract(epoch FROM pg_postmaster_start_time()), ' ', pg_relation_filepath('outbox_lane'))
"""

READ_LANES = f"""
    SELECT outbox_lane.lane, batch_number, inflight, coalesce(transactional_lane, outbox_lane.lane),
           server_run IS DISTINCT FROM {SERVER_RUN}
      FROM outbox_lane
      JOIN unnest(%(lanes)b::smallint[], %(epochs)b::bigint[]) AS mine (lane, epoch)
        ON outbox_lane.lane = mine.lane AND outbox_lane.epoch = mine.epoch
     ORDER BY outbox_lane.lane
"""  # noqa: S608


def read_lanes(conn: Connection, epochs: Mapping[int, int]) -> dict[int, LaneState]:
    """Return the state of each lane whose epoch is still ours. Locks nothing. epochs: by lane."""
    return _states(conn, READ_LANES, epochs)


LOCK_LANES = READ_LANES + "FOR UPDATE OF outbox_lane"


def lock_lanes(conn: Connection, epochs: Mapping[int, int]) -> dict[int, LaneState]:
    """Lock the rows of lanes, first of all in the caller's transaction; return those still ours.

    Waits for a COMMIT of the same rows that is still running. epochs: by lane.
    """
    return _states(conn, LOCK_LANES, epochs)


LOCK_FREE_LANES = LOCK_LANES + " SKIP LOCKED"


def lock_free_lanes(conn: Connection, epochs: Mapping[int, int]) -> dict[int, LaneState]:
    """Do the same, but wait for nobody: who holds one lane's row holds up no other lane."""
    return _states(conn, LOCK_FREE_LANES, epochs)


def _states(
    conn: Connection, statement: LiteralString, epochs: Mapping[int, int]
) -> dict[int, LaneState]:
    found = conn.execute(statement, _mine(epochs), prepare=True).fetchall()
    rows = cast("list[tuple[int, int, list[int], int, bool]]", found)
    return {row[0]: LaneState(*row[1:]) for row in rows}


def _mine(epochs: Mapping[int, int]) -> dict[str, object]:
    return {"lanes": arrays.smallints(epochs), "epochs": arrays.bigints(epochs.values())}


ACKNOWLEDGE = """
    DELETE FROM outbox
     WHERE lane = %(lane)s AND id = ANY(%(ids)b::bigint[])
 RETURNING aggregate_id
"""


def acknowledge(conn: Connection, lane: int, ids: Sequence[int]) -> list[UUID]:
    """Delete rows that are in Kafka; return their aggregate_ids. An id array, never a range."""
    if not ids:
        return []
    values = {"lane": lane, "ids": arrays.bigints(ids)}
    rows = conn.execute(ACKNOWLEDGE, values, prepare=True, binary=True).fetchall()
    return [
        aggregate_id for (aggregate_id,) in cast("list[tuple[UUID]]", rows) if aggregate_id is not None
    ]


class Claim(NamedTuple):
    """Up to `limit` rows of a lane are wanted. above: an id up to which it has none (LowWater)."""

    lane: int
    limit: int
    above: int = 0


SIZE_BYTES = """
    coalesce(octet_length(key), 0) + coalesce(octet_length(value), 0)
    + coalesce(octet_length(headers::text), 0)
"""

CLAIM = f"""
    SELECT claimed.lane, id, topic,
           CASE WHEN size_bytes <= %(small)s THEN key END AS key,
           CASE WHEN size_bytes <= %(small)s THEN value END AS value,
           CASE WHEN size_bytes <= %(small)s THEN headers END AS headers,
           extract(epoch FROM clock_timestamp() - created_at)::float8 AS age_s,
           size_bytes
      FROM unnest(%(lanes)b::smallint[], %(limits)b::bigint[], %(above)b::bigint[])
           AS mine (lane, up_to, above),
           LATERAL (
               SELECT outbox.lane, id, topic, key, value, headers, created_at, {SIZE_BYTES} AS size_bytes
                 FROM outbox
                WHERE outbox.lane = mine.lane AND id > mine.above
                ORDER BY id
                LIMIT mine.up_to
                  FOR UPDATE SKIP LOCKED
           ) AS claimed
"""  # noqa: S608


def claim(conn: Connection, wanted: Sequence[Claim]) -> dict[int, list[OutboxRow]]:
    """Lock rows of lanes, each lane's in id order. The caller's transaction holds the locks.

    The lane rows' locks already keep other relays away: SKIP LOCKED passes over a row that some
    other session holds, instead of waiting for it with the lanes locked. Large rows stay where they
    are until it is known which of them the batch takes: a thousand could be a gigabyte.
    """
    small = MAX_BATCH_BYTES // sum(one.limit for one in wanted)
    values = {
        "lanes": arrays.smallints(one.lane for one in wanted),
        "limits": arrays.bigints(one.limit for one in wanted),
        "above": arrays.bigints(one.above for one in wanted),
        "small": small,
    }
    found = _rows(conn.execute(CLAIM, values, prepare=True, binary=True))
    share = MAX_BATCH_BYTES // len(wanted)
    return {
        lane: _with_large(conn, lane, _first_bytes(list(rows), share), small)
        for lane, rows in groupby(found, key=attrgetter("lane"))
    }


def _first_bytes(rows: list[OutboxRow], share: int) -> list[OutboxRow]:
    """Keep the first rows, at least one, that are `share` bytes together."""
    size = 0
    for number, row in enumerate(rows):
        size += row.size_bytes
        if size > share and number:
            return rows[:number]
    return rows


def _with_large(conn: Connection, lane: int, rows: list[OutboxRow], small: int) -> list[OutboxRow]:
    """Load what the claim left behind."""
    large = [row.id for row in rows if row.size_bytes > small]
    if not large:
        return rows
    loaded = {row.id: row for row in load(conn, lane, large)}
    return [loaded.get(row.id, row) for row in rows]


LOAD = f"""
    SELECT lane, id, topic, key, value, headers,
           extract(epoch FROM clock_timestamp() - created_at)::float8 AS age_s,
           {SIZE_BYTES} AS size_bytes
      FROM outbox
     WHERE lane = %(lane)s AND id = ANY(%(ids)b::bigint[])
     ORDER BY id
"""  # noqa: S608


def load(conn: Connection, lane: int, ids: Sequence[int]) -> list[OutboxRow]:
    """Return the rows of a batch that was begun before, in id order."""
    return _rows(conn.execute(LOAD, {"lane": lane, "ids": arrays.bigints(ids)}, binary=True))


def _rows(cursor: psycopg.Cursor[tuple[object, ...]]) -> list[OutboxRow]:
    return [*map(OutboxRow._make, cast("list[tuple[int]]", cursor.fetchall()))]


BEGIN_BATCHES = f"""
    UPDATE outbox_lane
       SET batch_number = mine.batch_number, inflight = mine.inflight::bigint[], transactional_lane = mine.transactional_lane,
           server_run = {SERVER_RUN}
      FROM unnest(%(lanes)b::smallint[], %(epochs)b::bigint[],
                  %(batch_numbers)b::bigint[], %(inflight)b::text[], %(transactional_lanes)b::smallint[])
           AS mine (lane, epoch, batch_number, inflight, transactional_lane)
     WHERE outbox_lane.lane = mine.lane AND outbox_lane.epoch = mine.epoch
"""  # noqa: S608


def begin_batches(conn: Connection, epochs: Mapping[int, int], states: Mapping[int, LaneState]) -> None:
    """Write which rows each lane's batch `batch_number` stands for. Raises OwnershipLost."""
    if not states:
        return
    values = _mine({lane: epochs[lane] for lane in states}) | {
        "batch_numbers": arrays.bigints(state.batch_number for state in states.values()),
        "inflight": arrays.texts(
            "{" + ",".join(map(str, state.inflight)) + "}" for state in states.values()
        ),
        "transactional_lanes": arrays.smallints(state.transactional_lane for state in states.values()),
    }
    if conn.execute(BEGIN_BATCHES, values, prepare=True).rowcount != len(states):
        raise OwnershipLost(sorted(states))


PARK = """
    WITH refused AS (
        DELETE FROM outbox
         WHERE lane = %(lane)s AND id = %(id)s
     RETURNING lane, id, topic, key, value, headers, aggregate_id, created_at
    ), parked AS (
        INSERT INTO outbox_parked (lane, id, topic, key, value, headers, aggregate_id, created_at, reason)
        SELECT lane, id, topic, key, value, headers, aggregate_id, created_at, %(reason)s
          FROM refused
    )
    SELECT aggregate_id FROM refused
"""


def park(conn: Connection, lane: int, row_id: int, reason: str) -> UUID | None:
    """Move one row out of the way, to be looked at by a person; return its aggregate_id."""
    row = conn.execute(PARK, {"lane": lane, "id": row_id, "reason": reason}).fetchone()
    return cast("UUID | None", row and row[0])


WAITING_LANES = """
    SELECT lane
      FROM unnest(%(lanes)b::smallint[], %(above)b::bigint[]) AS mine (lane, above)
     WHERE EXISTS (SELECT FROM outbox WHERE outbox.lane = mine.lane AND id > mine.above)
"""


def waiting_lanes(conn: Connection, above: Mapping[int, int]) -> list[int]:
    """Return the lanes that have a row: the idle poll, without a transaction.

    above: for each lane to look at, the id above which its rows are.
    """
    values = {"lanes": arrays.smallints(above), "above": arrays.bigints(above.values())}
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
