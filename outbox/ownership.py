"""The lanes that a relay owns: its fair share, taken and given up in one session.

A relay that Kafka does not answer gives its lanes to those that it answers. If there is none, nothing
moves.

Invariant: a lane is here only with the epoch that was taken in this session, under its advisory lock.
Where its row is found to hold another epoch, the lane is forgotten and the lock released; the session
continues with the other lanes.
"""

import logging
import time
from collections.abc import Collection
from uuid import UUID

from outbox import lane_rows, membership
from outbox.crash_points import crash_point
from outbox.errors import LanesGivenUp
from outbox.kafka_answers import KafkaAnswers
from outbox.lane import Lane, LaneState
from outbox.lane_rows import LaneRow
from outbox.options import RelayOptions
from outbox.postgres import Connection

log = logging.getLogger(__name__)

TICK_S = 0.5

EVENTS = {
    LaneState.ACTIVE: (logging.INFO, "lane active"),
    LaneState.WAITING: (logging.WARNING, "lane waiting"),
    LaneState.IN_DOUBT: (logging.WARNING, "lane in doubt"),
    LaneState.BACKING_OFF: (logging.WARNING, "lane backing off"),
    LaneState.REFUSED: (logging.ERROR, "lane refused"),
}


class OwnedLanes:
    """The lanes that are ours, by number. conn: has joined the relays.

    to_release: lanes beyond our share. needs_rebalance: a lane was lost, must be given up, or is free.
    """

    def __init__(
        self, conn: Connection, identity: UUID, answers: KafkaAnswers, options: RelayOptions
    ) -> None:
        self.lanes: dict[int, Lane] = {}
        self.to_release: Collection[int] = ()
        self.needs_rebalance = False
        self._conn = conn
        self._identity = identity
        self._answers = answers
        self._options = options
        self._has_kafka = False  # and the lock that says so
        self._spare_since: float | None = None  # monotonic; None: the lanes are for us, too
        self._without_kafka = 0  # relays, when last seen
        self._next_tick_at = 0.0  # monotonic

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
                fields["repair"] = self._options.repair_command(lane.number)
            log.log(level, event, extra=fields)

    # ---- shares -------------------------------------------------------------------------------------

    def refresh_membership(self) -> membership.Membership:
        """Read which relays and lanes there are, and whether our lanes must change."""
        self._update_kafka_lock()
        seen = membership.read_membership(self._conn, self._identity)
        if seen.without_kafka > self._without_kafka:
            self._answers.wanted.set()  # is it away for us, too?
        self._without_kafka = seen.without_kafka
        self._spare_since = (self._spare_since or time.monotonic()) if seen.is_spare else None
        self.to_release = sorted(self.lanes)[self._keepable(seen) :]
        may_take = seen.unowned and len(self.lanes) < seen.fair_share()
        self.needs_rebalance |= bool(self.to_release or may_take)
        return seen

    def _keepable(self, seen: membership.Membership) -> int:
        """Return how many lanes we need not give up."""
        if self._spare_since is not None:
            spare_s = time.monotonic() - self._spare_since
            return len(self.lanes) if spare_s < self._options.timings.kafka_grace_s else 0
        return seen.fair_share() if seen.with_kafka else len(self.lanes)

    def _update_kafka_lock(self) -> None:
        """Hold the lock that says that Kafka answers us for as long as it does."""
        self._answers.review()
        has_kafka = self._answers.error is None
        if has_kafka != self._has_kafka:
            membership.set_has_kafka(self._conn, self._identity, has_kafka)
            self._has_kafka = has_kafka

    def tick(self) -> None:
        """Keep the session, and its locks, while a call to Kafka waits for an answer.

        Raises InDoubt if our lanes must go to relays that Kafka answers.
        """
        if time.monotonic() < self._next_tick_at:
            return  # a fence of many ids ticks for each
        self._next_tick_at = time.monotonic() + TICK_S
        self._answers.wanted.set()
        self.refresh_membership()
        if self.gives_all_up:
            raise LanesGivenUp("the lanes go to a relay that Kafka answers")

    @property
    def gives_all_up(self) -> bool:
        """Say whether our lanes must go to relays that Kafka answers."""
        return bool(self.to_release) and self._spare_since is not None

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
