"""Recovery: find out what became of each lane's batch, and publish it if it is not in Kafka.

Invariant: markers are compared with lane rows only after a fence, and under the rows' locks. What is
published again was in `inflight` before: never other rows under the same number.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from outbox import lane_rows, outbox_rows
from outbox.batch import Batches
from outbox.crash_points import crash_point
from outbox.enqueue import count_lanes
from outbox.errors import InDoubt, RecordRejected
from outbox.lane import Lane, LaneState, Outcome, compare, describe_mismatch
from outbox.lane_rows import LaneRow
from outbox.markers import Marker
from outbox.message import OutboxRow
from outbox.options import RelayOptions
from outbox.ownership import OwnedLanes
from outbox.postgres import Connection, retry_transaction, transaction
from outbox.publisher import Publisher

log = logging.getLogger(__name__)

SOLO_FAILURES_ALLOWED = 2  # a lane that fails alone so often backs off


class Decision(NamedTuple):
    """What was decided of a lane.

    row: the lane row from now on. rows: to be published under its batch number. parked: the id and
    aggregate id of an outbox row that was parked.
    """

    outcome: Outcome
    row: LaneRow
    rows: Sequence[OutboxRow] = ()
    parked: tuple[int, UUID | None] | None = None

    @property
    def needs_publish(self) -> bool:
        """Say whether the batch, or a new lane's first marker, is not yet in Kafka."""
        return self.outcome in (Outcome.NOT_PUBLISHED, Outcome.NEW_LANE)


class Recovery:
    """Brings all owned lanes to where their last batch is known to be in Kafka."""

    def __init__(
        self,
        conn: Connection,
        owned: OwnedLanes,
        publisher: Publisher,
        batches: Batches,
        options: RelayOptions,
    ) -> None:
        self._conn = conn
        self._owned = owned
        self._publisher = publisher
        self._batches = batches
        self._observer = options.observer
        self._backoff_s = options.timings.lane_backoff_s
        self._rejection: RecordRejected | None = None

    def note_rejection(self, error: RecordRejected) -> None:
        """Let the next recovery shrink the batch whose record Kafka rejected."""
        self._rejection = error

    def recover(self) -> None:
        """Decide the outcome of each lane's batch; publish what is not in Kafka.

        The order matters. Ownership before the fence: otherwise two relays fence each other endlessly.
        The fence before the markers: otherwise an older transaction could commit after they were read.
        The row locks before the comparison: otherwise a successor could go on in between.
        """
        rows = self._owned.read(self._owned.lanes)
        if not rows:
            self._publisher.discard()
            return
        self._end_backoffs()
        crash_point("relay.owner_checked")
        self.fence(rows)
        markers = self._publisher.read_markers(rows)
        crash_point("relay.marker_read")
        rejection = self._rejection
        decisions = self.decide(markers, rejection)
        self._rejection = None  # it has had its effect, whatever comes next
        crash_point("relay.decided")
        for number, decision in decisions.items():
            self._apply(self._owned.lanes[number], decision, markers[number], rejection)
        self._publish_again(decisions, rejection)

    def _end_backoffs(self) -> None:
        """Retry lanes whose back-off has ended; all of them if no other lane would have to wait."""
        now, none_working = time.monotonic(), not self._owned.working()
        for lane in tuple(self._owned.lanes.values()):
            if lane.backoff_until and (none_working or lane.backoff_until <= now):
                self._owned.update(lane.without_backoff())

    def fence(self, rows: Mapping[int, LaneRow]) -> None:
        """Fence all that may still publish these lanes; the lowest lane's id is then ours.

        An earlier owner's id is fenced once, not again after a doubt: another relay may use it now.
        """
        ours, lanes = min(rows), count_lanes(self._conn)
        earlier = {
            transactional_lane
            for number, row in rows.items()
            for transactional_lane in row.possible_transactional_lanes(lanes)
            if transactional_lane not in self._owned.lanes[number].fenced
        }
        fenced: set[int] = set()
        try:
            for transactional_lane in self._publisher.fence(sorted(earlier - {ours})):
                fenced.add(transactional_lane)
        finally:  # one that fails does not undo the others
            for number in rows:
                self._owned.update(self._owned.lanes[number].with_fenced(fenced))
        self._publisher.start(ours)

    @retry_transaction
    def decide(
        self, markers: Mapping[int, Marker | None], rejection: RecordRejected | None
    ) -> dict[int, Decision]:
        """Compare markers and lane rows; write under which id each lane goes out. One transaction."""
        with transaction(self._conn):
            before = self._owned.lock(markers)
            decisions = {
                number: self._decide(row, markers[number], rejection) for number, row in before.items()
            }
            changed = {n: one.row for n, one in decisions.items() if one.row != before[n]}
            lane_rows.begin_batches(self._conn, self._owned.epochs(changed), changed)
            if any(row.inflight != before[number].inflight for number, row in changed.items()):
                crash_point("relay.shrunk")
        return decisions

    def _decide(
        self, row: LaneRow, marker: Marker | None, rejection: RecordRejected | None
    ) -> Decision:
        outcome = compare(marker, row.batch_number, len(row.inflight))
        row = row._replace(transactional_lane=self._publisher.transactional_lane, maybe_restored=False)
        if outcome is not Outcome.NOT_PUBLISHED:
            return Decision(outcome, row)
        if rejection and rejection.lane == row.lane and row.inflight:
            return self._shrink(row, rejection)
        return Decision(outcome, row, outbox_rows.load_rows(self._conn, row.lane, row.inflight))

    def _shrink(self, row: LaneRow, rejection: RecordRejected) -> Decision:
        """Shrink a batch that Kafka rejected, durably and under the same number.

        A batch of several rows shrinks to its first, and those after it go out one by one. A row that
        was rejected alone is parked.
        """
        first, *others = row.inflight
        if others:
            lane = self._owned.lanes[row.lane]
            self._owned.update(lane.one_by_one(max(others)))
            rows = outbox_rows.load_rows(self._conn, row.lane, [first])
            return Decision(Outcome.NOT_PUBLISHED, row._replace(inflight=[first]), rows)
        aggregate_id = outbox_rows.park(self._conn, row.lane, first, str(rejection))
        empty = row._replace(inflight=[])
        return Decision(Outcome.NOT_PUBLISHED, empty, parked=(first, aggregate_id))

    def _apply(
        self,
        lane: Lane,
        decision: Decision,
        marker: Marker | None,
        rejection: RecordRejected | None,
    ) -> None:
        """Keep what was decided of a lane, and report it."""
        outcome, batch_number = decision.outcome, decision.row.batch_number
        batch_rows: int | None = len(decision.row.inflight)
        if marker is not None and not decision.needs_publish:
            batch_rows = marker.rows  # noted there when the batch was published
        fields: dict[str, object] = {"batch_number": batch_number}
        if outcome.refused:
            fields["mismatch"] = describe_mismatch(marker, batch_number)
        self._batches.watermarks.pop(lane.number, None)
        self._owned.update(lane.recovered(outcome, batch_number, batch_rows), **fields)
        if lane.status.state is LaneState.ACTIVE and outcome is Outcome.PUBLISHED:
            return  # all was well; only the set of lanes has changed
        self._observer.recovered(outcome)
        fields |= {"lane": lane.number, "epoch": lane.epoch}
        if not outcome.refused:
            log.info("lane recovered", extra=fields | {"outcome": outcome.value})
        if decision.parked and rejection:
            row, aggregate_id = decision.parked
            about = {"row": row, "aggregate_id": aggregate_id, "reason": str(rejection)}
            log.error("row parked", extra=fields | about)
            self._observer.parked()

    def _publish_again(
        self, decisions: Mapping[int, Decision], rejection: RecordRejected | None
    ) -> None:
        """Publish what is not in Kafka, rows lane by lane: that shows which lane cannot be sent.

        A lane that failed alone comes last. Lanes without rows have only markers, none fails alone.
        """
        again = {number: one.rows for number, one in decisions.items() if one.needs_publish}
        if markers := {number: rows for number, rows in again.items() if not rows}:
            self._batches.publish(markers)
        rejected = rejection.lane if rejection else None
        lanes = [self._owned.lanes[number] for number in sorted(again.keys() - markers.keys())]
        for lane in sorted(lanes, key=lambda lane: (lane.number == rejected, lane.solo_failures)):
            if not lane.backoff_until:
                self._publish_lane(lane.number, again[lane.number])

    def _publish_lane(self, number: int, rows: Sequence[OutboxRow]) -> None:
        """Publish the batch of one lane; a lane that keeps failing backs off."""
        try:
            self._batches.publish({number: rows})
        except InDoubt as error:
            lane = self._owned.lanes[number]
            failed = lane.failed_alone(str(error), self._backoff_s, SOLO_FAILURES_ALLOWED)
            self._owned.update(failed, retry_s=self._backoff_s)
            raise
