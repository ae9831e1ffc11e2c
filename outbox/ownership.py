"""The lanes that a relay owns: its fair share, taken and given up in one session.

Invariant: a lane is here only with the epoch that was taken in this session, under its advisory lock.
Where its row is found to hold another epoch, the lane is forgotten and the lock let go: the session
lives on with the others.
"""

import logging
from collections.abc import Collection
from uuid import UUID

from outbox import membership as lanes
from outbox import store
from outbox.crash_points import crash_point
from outbox.lane import Lane
from outbox.postgres import Connection
from outbox.store import LaneState

log = logging.getLogger(__name__)


class Ownership:
    """Which lanes are ours. conn: has joined the relays.

    leaving: lanes beyond our share. changed: one was lost, is to be given up, or is free for us.
    """

    def __init__(self, conn: Connection, identity: UUID) -> None:
        self.lanes: dict[int, Lane] = {}
        self.leaving: Collection[int] = ()
        self.changed = False
        self._conn = conn
        self._identity = identity

    def working(self) -> list[Lane]:
        """Return the lanes that neither wait for a person nor rest."""
        return [lane for lane in self.lanes.values() if not (lane.refused or lane.rests_until)]

    def look(self) -> lanes.Survey:
        """See from all relays and lanes whether ours are to change."""
        survey = lanes.survey(self._conn, self._identity)
        self.leaving = sorted(self.lanes)[survey.share() :]
        self.changed |= bool(self.leaving or (survey.free and len(self.lanes) < survey.share()))
        return survey

    def adjust(self) -> None:
        """Give up lanes beyond our share, take free ones up to it."""
        survey = self.look()
        for number in self.leaving:
            lanes.release(self._conn, self._identity, number)
            del self.lanes[number]
        for number in survey.free[: max(survey.share() - len(self.lanes), 0)]:
            self.take(number)
        self.leaving, self.changed = (), False

    def take(self, number: int) -> None:
        """Become a lane's owner, unless another relay is."""
        if lanes.try_lock(self._conn, self._identity, number):
            self.lanes[number] = Lane(number, store.take_lane(self._conn, number))
            crash_point("relay.taken")

    def epochs(self, of: Collection[int]) -> dict[int, int]:
        """Return the epochs of those of the lanes that are ours."""
        return {number: self.lanes[number].epoch for number in of if number in self.lanes}

    def check(self, of: Collection[int]) -> dict[int, LaneState]:
        """Read the rows of lanes, without a lock; forget those that are not ours any more."""
        epochs = self.epochs(of)
        return self._still_ours(epochs, store.read_lanes(self._conn, epochs))

    def lock(self, of: Collection[int]) -> dict[int, LaneState]:
        """Lock rows of lanes in the caller's transaction; forget those that are not ours any more."""
        epochs = self.epochs(of)
        return self._still_ours(epochs, store.lock_lanes(self._conn, epochs))

    def lock_free(self, of: Collection[int]) -> dict[int, LaneState]:
        """Do the same, but leave out the lanes whose rows somebody else holds."""
        epochs = self.epochs(of)
        states = store.lock_free_lanes(self._conn, epochs)
        if left := epochs.keys() - states.keys():
            self.check(left)
        return states

    def _still_ours(self, epochs: dict[int, int], states: dict[int, LaneState]) -> dict[int, LaneState]:
        for number in sorted(epochs.keys() - states.keys()):
            lane = self.lanes.pop(number)
            place = {"lane": number, "epoch": lane.epoch}
            log.warning("lane lost: its epoch is not the owner's any more", extra=place)
            lanes.release(self._conn, self._identity, number)  # for whoever has taken it
            self.changed = True
        return states
