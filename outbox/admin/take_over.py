"""Take a refused lane from its owner, to repair it.

Invariant: who repairs a lane owns it as a relay does, under its advisory lock, with a new epoch and
after a fence. So nothing of the lane can be published, nor its row written, until the repair's session
ends; what was published by then is in the topics for good. The count starts again from the marker in
one Postgres transaction, and from then on both histories say `published`.

Which rows are in the topics already, only their writer can know: it finds them between `take_over` and
`reset_batch_number`, and acknowledges them in the transaction of `reset_batch_number`.
"""

from contextlib import suppress
from typing import NamedTuple
from uuid import UUID

import psycopg

from outbox import lane_rows
from outbox.enqueue import count_lanes
from outbox.errors import InDoubt, OutboxError, OwnershipLost
from outbox.evidence import Search
from outbox.kafka_calls import KafkaConfig
from outbox.lane import Outcome, compare
from outbox.lane_rows import LaneRow
from outbox.markers import Marker
from outbox.membership import lock_class
from outbox.postgres import Connection, scalar
from outbox.publisher import Publisher


class LaneBusy(OutboxError):
    """The lane's owner does not release it."""


class LockedLane(NamedTuple):
    """A lane that this session owns, fenced. marker: what Kafka has of it, for good."""

    lane: int
    epoch: int
    marker: Marker | None


def take_over(conn: Connection, kafka: KafkaConfig, marker_topic: str, lane: int) -> LockedLane:
    """Take the lane from its owner until the session of `conn` ends, and fence its producers.

    Raises LaneBusy or InDoubt.
    """
    identity = lane_rows.read_identity(conn)
    _wait_for_lock(conn, identity, lane)
    epoch = lane_rows.take_lane(conn, lane)
    row = lane_rows.read_lanes(conn, {lane: epoch})[lane]
    earlier = set(row.possible_transactional_lanes(count_lanes(conn)))
    publisher = Publisher(kafka, identity, marker_topic, lambda: None)
    try:
        list(publisher.fence(sorted(earlier - {lane})))
        publisher.start(lane)
        evidence = publisher.read_evidence({lane: Search(row, (), {})})[lane]
        if not evidence.is_final:
            raise InDoubt(evidence.held_up or "")
        return LockedLane(lane, epoch, evidence.marker)
    finally:
        publisher.discard()


# An attempt is longer than the time after which an owner sees that it was replaced; all attempts
# together are longer than the time after which Postgres ends the session of an owner that froze.
LOCK_ATTEMPTS, LOCK_TIMEOUT = 5, "6s"
SHOW_LOCK_TIMEOUT = "SHOW lock_timeout"
SET_LOCK_TIMEOUT = "SELECT pg_catalog.set_config('lock_timeout', %(timeout)s, false)"
WAIT_FOR_LOCK = "SELECT pg_catalog.pg_advisory_lock(%(class)s, %(lane)s::int)"


def _wait_for_lock(conn: Connection, identity: UUID, lane: int) -> None:
    """Replace the lane's owner. Raises LaneBusy."""
    usual = scalar(conn, str, SHOW_LOCK_TIMEOUT)
    conn.execute(SET_LOCK_TIMEOUT, {"timeout": LOCK_TIMEOUT})
    for _ in range(LOCK_ATTEMPTS):
        lane_rows.take_lane(conn, lane)  # a refused owner sees the epoch at its next poll, and leaves
        with suppress(psycopg.errors.LockNotAvailable):  # or another owner was faster
            conn.execute(WAIT_FOR_LOCK, {"class": lock_class(identity), "lane": lane})
            conn.execute(SET_LOCK_TIMEOUT, {"timeout": usual})
            return
    raise LaneBusy(f"lane {lane}: its owner does not release it, try again")


class BatchReset(NamedTuple):
    """Why a lane was refused, and its row before and after: the same if it is not refused any more."""

    outcome: Outcome
    before: LaneRow
    after: LaneRow


def reset_batch_number(conn: Connection, locked: LockedLane) -> BatchReset:
    """Start the lane's count from its marker, unless the lane is not refused any more.

    Without a marker the lane is as a new one: the next owner commits marker 0 before it claims. In the
    caller's transaction. Raises OwnershipLost.
    """
    lane, epochs = locked.lane, {locked.lane: locked.epoch}
    before = lane_rows.lock_lanes(conn, epochs).get(lane)
    if before is None:
        raise OwnershipLost([lane])
    marker, outcome = locked.marker, compare(locked.marker, before)
    if not outcome.refused:
        return BatchReset(outcome, before, before)
    after = LaneRow(lane, 0, [], lane)
    if marker is not None:
        after = LaneRow(lane, marker.batch_number, [], lane, marker.token, marker.token)
    lane_rows.begin_batches(conn, epochs, {lane: after})
    return BatchReset(outcome, before, after)
