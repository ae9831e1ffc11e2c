"""The statements on `outbox_lane`: one row a lane, who owns it and which batch is in flight.

Invariant: a lane row is locked, under its owner's epoch, before any outbox row of the lane is read,
and all that names the batch is committed before Kafka sees it. Without the first, a relay that was
replaced could acknowledge or publish its successor's rows. Without the second, recovery could not know
which rows the batch has, where in their topics to look for them, nor under whose transactional id they
may still arrive.

Every function takes the connection first; those that write never commit.
"""

from collections.abc import Iterable, Mapping
from typing import LiteralString, NamedTuple
from uuid import UUID

import psycopg
from psycopg.rows import args_row

from outbox import arrays
from outbox.errors import DatabaseNotReady, OwnershipLost
from outbox.postgres import Connection, query, scalar, scalars

IDENTITY = "SELECT identity FROM outbox_identity"


def read_identity(conn: Connection) -> UUID:
    """Return the outbox's own name. Raises DatabaseNotReady before the first migration."""
    try:
        found = scalars(conn, UUID, IDENTITY)
    except psycopg.errors.UndefinedTable as error:
        raise DatabaseNotReady("table outbox_identity is missing: run the migration first") from error
    if not found:
        raise DatabaseNotReady("table outbox_identity is empty: run the migration first")
    return found[0]


class LaneRow(NamedTuple):
    """A lane's row.

    batch_number, token: of the last batch begun; token None: none yet. inflight: ids of its rows that
    are not yet acknowledged. transactional_lane: the lane under whose transactional id the batch, and
    all else that concerns this lane, goes to Kafka. marker_token: of the marker that was in Kafka when
    the batch was begun. search_start: where its topics ended then, as JSON (output_topics); None if
    nothing is in flight. log_refusal: why the log cannot tell what became of the batch. maybe_restored:
    the row may come from a backup, so that id may be an old one.
    """

    lane: int
    batch_number: int
    inflight: list[int]
    transactional_lane: int
    token: UUID | None = None
    marker_token: UUID | None = None
    search_start: str | None = None
    log_refusal: str | None = None
    maybe_restored: bool = False

    @property
    def batch(self) -> tuple[int, UUID | None, list[int]]:
        """Return what says whether the lane has moved on."""
        return self.batch_number, self.token, self.inflight

    def possible_transactional_lanes(self, lanes: int) -> Iterable[int]:
        """Return the lanes, of so many, under whose ids something of this one may still arrive."""
        return range(lanes) if self.maybe_restored else [self.transactional_lane]


TAKE_LANE = "UPDATE outbox_lane SET epoch = epoch + 1 WHERE lane = %(lane)s RETURNING epoch"


def take_lane(conn: Connection, lane: int) -> int:
    """Raise the lane's epoch and return it: from now on no earlier owner can write."""
    return scalar(conn, int, TAKE_LANE, {"lane": lane})


# server_run names the run of the server and the file of the table that hold the row. Where they are
# others, the row may come from a backup: what brings an old row back starts the server, or another
# server, or puts the row into another file. (Not if the row is written over by hand, or a virtual
# machine goes back with its memory.)
READ_LANES = """
    SELECT outbox_lane.lane, batch_number, inflight, coalesce(transactional_lane, outbox_lane.lane),
           token, marker_token, search_start::text, log_refusal,
           server_run IS DISTINCT FROM
           pg_catalog.concat(extract(epoch FROM pg_postmaster_start_time()), ' ',
                             pg_catalog.pg_relation_filepath('outbox_lane'))
      FROM outbox_lane
      JOIN unnest(%(lanes)b::smallint[], %(epochs)b::bigint[]) AS mine (lane, epoch)
        ON outbox_lane.lane = mine.lane AND outbox_lane.epoch = mine.epoch
     ORDER BY outbox_lane.lane
"""


def read_lanes(conn: Connection, epochs: Mapping[int, int]) -> dict[int, LaneRow]:
    """Return the row of each lane whose epoch is still ours, without a lock. epochs: by lane."""
    return _lane_rows(conn, READ_LANES, epochs)


LOCK_LANES = """
    SELECT outbox_lane.lane, batch_number, inflight, coalesce(transactional_lane, outbox_lane.lane),
           token, marker_token, search_start::text, log_refusal,
           server_run IS DISTINCT FROM
           pg_catalog.concat(extract(epoch FROM pg_postmaster_start_time()), ' ',
                             pg_catalog.pg_relation_filepath('outbox_lane'))
      FROM outbox_lane
      JOIN unnest(%(lanes)b::smallint[], %(epochs)b::bigint[]) AS mine (lane, epoch)
        ON outbox_lane.lane = mine.lane AND outbox_lane.epoch = mine.epoch
     ORDER BY outbox_lane.lane
       FOR UPDATE OF outbox_lane
"""


def lock_lanes(conn: Connection, epochs: Mapping[int, int]) -> dict[int, LaneRow]:
    """Lock the rows of lanes, first of all in the caller's transaction; return those still ours.

    Waits for a COMMIT of the same rows that is still running. epochs: by lane.
    """
    return _lane_rows(conn, LOCK_LANES, epochs)


LOCK_LANES_SKIP_LOCKED = """
    SELECT outbox_lane.lane, batch_number, inflight, coalesce(transactional_lane, outbox_lane.lane),
           token, marker_token, search_start::text, log_refusal,
           server_run IS DISTINCT FROM
           pg_catalog.concat(extract(epoch FROM pg_postmaster_start_time()), ' ',
                             pg_catalog.pg_relation_filepath('outbox_lane'))
      FROM outbox_lane
      JOIN unnest(%(lanes)b::smallint[], %(epochs)b::bigint[]) AS mine (lane, epoch)
        ON outbox_lane.lane = mine.lane AND outbox_lane.epoch = mine.epoch
     ORDER BY outbox_lane.lane
       FOR UPDATE OF outbox_lane SKIP LOCKED
"""


def lock_lanes_skip_locked(conn: Connection, epochs: Mapping[int, int]) -> dict[int, LaneRow]:
    """Lock like `lock_lanes`, but skip locked rows: a lock on one lane does not block the others."""
    return _lane_rows(conn, LOCK_LANES_SKIP_LOCKED, epochs)


def _lane_rows(
    conn: Connection, statement: LiteralString, epochs: Mapping[int, int]
) -> dict[int, LaneRow]:
    rows = query(conn, args_row(LaneRow), statement, _lanes_and_epochs(epochs), prepare=True)
    return {row.lane: row for row in rows}


def _lanes_and_epochs(epochs: Mapping[int, int]) -> dict[str, object]:
    return {"lanes": arrays.smallints(epochs), "epochs": arrays.bigints(epochs.values())}


BEGIN_BATCHES = """
    UPDATE outbox_lane
       SET batch_number = mine.batch_number,
           inflight = mine.inflight::bigint[],
           transactional_lane = mine.transactional_lane,
           token = mine.token,
           marker_token = mine.marker_token,
           search_start = mine.search_start::json,
           log_refusal = mine.log_refusal,
           server_run =
           pg_catalog.concat(extract(epoch FROM pg_postmaster_start_time()), ' ',
                             pg_catalog.pg_relation_filepath('outbox_lane'))
      FROM unnest(%(lanes)b::smallint[], %(epochs)b::bigint[], %(batch_numbers)b::bigint[],
                  %(inflight)b::text[], %(transactional_lanes)b::smallint[], %(tokens)b::uuid[],
                  %(marker_tokens)b::uuid[], %(search_starts)b::text[], %(log_refusals)b::text[])
           AS mine (lane, epoch, batch_number, inflight, transactional_lane, token, marker_token,
                    search_start, log_refusal)
     WHERE outbox_lane.lane = mine.lane AND outbox_lane.epoch = mine.epoch
"""


def begin_batches(conn: Connection, epochs: Mapping[int, int], rows: Mapping[int, LaneRow]) -> None:
    """Write which outbox rows each lane's batch number stands for. Raises OwnershipLost.

    epochs, rows: by lane.
    """
    if not rows:
        return
    values = _lanes_and_epochs({lane: epochs[lane] for lane in rows}) | {
        "batch_numbers": arrays.bigints(row.batch_number for row in rows.values()),
        "inflight": arrays.texts("{" + ",".join(map(str, row.inflight)) + "}" for row in rows.values()),
        "transactional_lanes": arrays.smallints(row.transactional_lane for row in rows.values()),
        "tokens": arrays.uuids(row.token for row in rows.values()),
        "marker_tokens": arrays.uuids(row.marker_token for row in rows.values()),
        "search_starts": arrays.texts(row.search_start for row in rows.values()),
        "log_refusals": arrays.texts(row.log_refusal for row in rows.values()),
    }
    if conn.execute(BEGIN_BATCHES, values, prepare=True).rowcount != len(rows):
        raise OwnershipLost(sorted(rows))
