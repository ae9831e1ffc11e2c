"""The lanes that a relay owns: its fair share, taken and given up in one session.

Invariant: a lane is here only with the epoch that was taken in this session, under its advisory lock.
Where its row is found to hold another epoch, the lane is forgotten and the lock released; the session
continues with the other lanes.
"""

import logging
from collections.abc import Callable, Collection
from uuid import UUID

from outbox import lane_rows, membership
from outbox.crash_points import crash_point
from outbox.lane import Lane, LaneState
from outbox.lane_rows import LaneRow
from outbox.postgres import Connection

log = logging.getLogger(__name__)

EVENTS = {
    LaneState.ACTIVE: (logging.INFO, "lane active"),
    LaneState.IN_DOUBT: (logging.WARNING, "lane in doubt"),
    LaneState.BACKING_OFF: (logging.WARNING, "lane backing off"),
    LaneState.REFUSED: (logging.ERROR, "lane refused"),
}


class OwnedLanes:
    """The lanes that are ours, by number. conn: has joined the relays.

    to_release: lanes beyond our share. needs_rebalance: a lane was lost, must be given up, or is free.
    """

    def __init__(self, conn: Connection, identity: UUID, repair_command: Callable[[int], str]) -> None:
        self.lanes: dict[int, Lane] = {}
        self.to_release: Collection[int] = ()
        self.needs_rebalance = False
        self._conn = conn
        self._identity = identity
        self._repair_command = repair_command

    def working(self) -> list[Lane]:
        """Return the lanes that are neither refused nor backing off."""
        return [lane for lane in self.lanes.values() if lane.working]

    def update(self, lane: Lane, **fields: object) -> None:
        """Keep a lane after a step; log a change of its state. fields: for the log."""
        before, status = self.lanes[lane.number], lane.status
        self.lanes[lane.number] = lane
        if status != before.status and status.state in EVENTS:
            level, event = EVENTS[status.state]
            fields = {"lane": lane.number, "epoch": lane.epoch} | fields
            if status.reason is not None:
                fields["reason"] = status.reason
            if lane.refused:
                fields["repair"] = self._repair_command(lane.number)
            log.log(level, event, extra=fields)

    # ---- shares -------------------------------------------------------------------------------------

    def refresh_membership(self) -> membership.Membership:
        """Read which relays and lanes there are, and whether our lanes must change."""
        seen = membership.read_membership(self._conn, self._identity)
        self.to_release = sorted(self.lanes)[seen.fair_share() :]
        may_take = seen.unowned and len(self.lanes) < seen.fair_share()
        self.needs_rebalance |= bool(self.to_release or may_take)
        return seen

    def rebalance(self) -> None:
        """Give up lanes beyond our share, take lanes without an owner up to it."""
        seen = self.refresh_membership()
        for number in self.to_release:
            membership.unlock_lane(self._conn, self._identity, number)
            del self.lanes[number]
        for number in seen.unowned[: max(seen.fair_share() - len(self.lanes), 0)]:
            self.take(number)
        self.to_release, self.needs_rebalance = (), False

    def take(self, number: int) -> None:
        """Become a lane's owner, unless another relay is."""
        if membership.try_lock_lane(self._conn, self._identity, number):
            self.take_epoch(number)
            crash_point("relay.taken")

    def take_epoch(self, number: int) -> None:
        """Become a lane's owner without its advisory lock, which the owner before may still hold."""
        self.lanes[number] = Lane(number, lane_rows.take_lane(self._conn, number))

    # ---- rows ---------------------------------------------------------------------------------------

    def epochs(self, numbers: Collection[int]) -> dict[int, int]:
        """Return the epochs of those of the lanes that are ours."""
        return {number: self.lanes[number].epoch for number in numbers if number in self.lanes}

    def read(self, numbers: Collection[int]) -> dict[int, LaneRow]:
        """Read the rows of lanes, without a lock; drop lanes that are no longer ours."""
        epochs = self.epochs(numbers)
        rows = lane_rows.read_lanes(self._conn, epochs)
        self._drop_lost(epochs.keys() - rows.keys())
        return rows

    def lock(self, numbers: Collection[int]) -> dict[int, LaneRow]:
        """Lock the rows of lanes in the caller's transaction; drop lanes that are no longer ours."""
        epochs = self.epochs(numbers)
        rows = lane_rows.lock_lanes(self._conn, epochs)
        self._drop_lost(epochs.keys() - rows.keys())
        return rows

    def lock_available(self, numbers: Collection[int]) -> dict[int, LaneRow]:
        """Lock like `lock`, but leave out the lanes whose rows another session has locked."""
        epochs = self.epochs(numbers)
        rows = lane_rows.lock_lanes_skip_locked(self._conn, epochs)
        if left_out := epochs.keys() - rows.keys():
            self.read(left_out)
        return rows

    def _drop_lost(self, lost: Collection[int]) -> None:
        for number in sorted(lost):
            lane = self.lanes.pop(number)
            log.warning("lane lost", extra={"lane": number, "epoch": lane.epoch})
            membership.unlock_lane(self._conn, self._identity, number)  # for its new owner
            self.needs_rebalance = True
