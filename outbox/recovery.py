"""Recovery: find out what became of each lane's batch, and publish what is not in Kafka.

Invariant: the evidence is read after a fence and behind a barrier, and compared with lane rows under
their locks. What is published again was in `inflight` before, under a number and a token of its own.
"""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple
from uuid import uuid4

from outbox import lane_rows, outbox_rows
from outbox.batch import WAIT_LOCKED_S, Batches
from outbox.crash_points import crash_point
from outbox.enqueue import count_lanes
from outbox.errors import InDoubt, LanesGivenUp, RecordRejected
from outbox.evidence import Evidence, Search
from outbox.lane import Lane, LaneState, Outcome, compare, describe_mismatch
from outbox.lane_rows import LaneRow
from outbox.message import OutboxRow
from outbox.options import RelayOptions
from outbox.outbox_rows import ParkedNow
from outbox.output_topics import decode_start, encode_start
from outbox.ownership import OwnedLanes
from outbox.postgres import Connection, retry_transaction
from outbox.publisher import Publisher

log = logging.getLogger(__name__)

WORKED = frozenset({LaneState.ACTIVE, LaneState.WAITING})  # states of a lane whose batches go on
SOLO_FAILURES_ALLOWED = 2  # a lane that fails alone so often backs off


class Decision(NamedTuple):
    """What was decided of a lane.

    outcome: None if it is held up, for that reason, and nothing was decided. row: the lane row from now
    on. rows: to be published as its batch. needs_publish: the batch's marker is not in Kafka. parked:
    rows of it that cannot be sent.
    """

    outcome: Outcome | None
    row: LaneRow
    rows: Sequence[OutboxRow] = ()
    needs_publish: bool = False
    held_up: str | None = None
    parked: Sequence[ParkedNow] = ()


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
        self._held_up_s = options.timings.held_up_s
        self._rejection: RecordRejected | None = None
        self.search_failure: str | None = None  # why Kafka did not let the last recovery search a topic

    def note_rejection(self, error: RecordRejected) -> None:
        """Let the next recovery shrink the batch whose record Kafka rejected."""
        self._rejection = error

    def recover(self) -> None:
        """Decide the outcome of each lane's batch; publish what is not in Kafka.

        The order matters. Ownership before the fence: otherwise two relays fence each other endlessly.
        The fence before the evidence: otherwise an older transaction could commit after it was read.
        The row locks before the comparison: otherwise a successor could go on in between.
        """
        rows = self._owned.read(self._owned.lanes)
        if not rows:
            self._publisher.discard()
            return
        self._end_backoffs()
        crash_point("relay.owner_checked")
        self.fence(rows)
        evidence = self._publisher.read_evidence(self._searches(rows))
        if topics := {topic for one in evidence.values() for topic in one.ends}:
            self._learn_of_topics(topics)
        crash_point("relay.evidence_read")
        failures = [one.held_up for one in evidence.values() if one.has_failed and not one.unusable]
        self.search_failure = failures[0] if failures else None
        rejection = self._rejection
        decisions = self.decide(rows, evidence, rejection)
        self._rejection = None  # it has had its effect, whatever comes next
        crash_point("relay.decided")
        for number, decision in decisions.items():
            self._apply(self._owned.lanes[number], decision, evidence[number])
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

    def _searches(self, rows: Mapping[int, LaneRow]) -> dict[int, Search]:
        """Return what to look for in the log: the rows in flight."""
        return {
            number: Search(
                row,
                outbox_rows.load_rows(self._conn, number, row.inflight) if row.inflight else (),
                decode_start(row.search_start),
            )
            for number, row in rows.items()
        }

    def _learn_of_topics(self, topics: Collection[str]) -> None:
        """Learn which topics cannot be written to now, if Kafka says so soon: else the batch tells."""
        try:
            self._publisher.topics.ends(topics, WAIT_LOCKED_S)
        except LanesGivenUp:
            raise
        except InDoubt:
            pass

    @retry_transaction
    def decide(
        self,
        searched: Mapping[int, LaneRow],
        evidence: Mapping[int, Evidence],
        rejection: RecordRejected | None,
    ) -> dict[int, Decision]:
        """Compare evidence and lane rows; acknowledge, and begin what is sent again. One transaction.

        searched: the lane rows as they were when the evidence was read. Raises InDoubt if one changed.
        """
        with self._batches.deferred.transaction():
            before = self._owned.lock(searched)
            if any(row.batch != searched[number].batch for number, row in before.items()):
                raise InDoubt("outbox_lane changed while the evidence was read")
            decisions = {
                number: self._decide(row, evidence[number], rejection) for number, row in before.items()
            }
            changed = {n: one.row for n, one in decisions.items() if one.row != before[n]}
            lane_rows.begin_batches(self._conn, self._owned.epochs(changed), changed)
            if any(row.inflight != before[number].inflight for number, row in changed.items()):
                crash_point("relay.begun_again")
        return decisions

    def _decide(self, row: LaneRow, evidence: Evidence, rejection: RecordRejected | None) -> Decision:
        """Let the marker say whether both histories are one, and the log which rows are in Kafka."""
        if not evidence.is_final:
            return Decision(None, row, held_up=evidence.held_up)
        outcome = compare(evidence.marker, row._replace(log_refusal=None))
        after = row._replace(
            transactional_lane=self._publisher.transactional_lane,
            token=row.token or uuid4(),
            log_refusal=None,
            maybe_restored=False,
        )
        if outcome.refused:
            return Decision(outcome, after)
        if row.inflight:
            return self._decide_by_log(after, evidence, rejection)
        return Decision(outcome, after, needs_publish=outcome is not Outcome.PUBLISHED)

    def _decide_by_log(
        self, row: LaneRow, evidence: Evidence, rejection: RecordRejected | None
    ) -> Decision:
        """Acknowledge the rows that are in Kafka; begin a batch of the others."""
        if evidence.unusable:
            return Decision(Outcome.LOG_UNUSABLE, row._replace(log_refusal=evidence.unusable))
        if evidence.held_up:
            return Decision(None, row, held_up=evidence.held_up)
        self._batches.acknowledge_rows({row.lane: sorted(evidence.published)})
        rows = [
            one
            for one in outbox_rows.load_rows(self._conn, row.lane, row.inflight)
            if one.id not in evidence.published
        ]
        outcome = Outcome.PARTLY_PUBLISHED if evidence.published else Outcome.NOT_PUBLISHED
        marker_token = evidence.marker and evidence.marker.token
        if not rows:
            outcome = Outcome.PUBLISHED
            after = row._replace(inflight=[], search_start=None, marker_token=marker_token)
            return Decision(outcome, after, needs_publish=row.token != marker_token)
        parked = self._batches.park_faulty({row.lane: rows})
        self._batches.waiting.leave({row.lane: rows})
        if rows and rejection and rejection.lane == row.lane:
            parked += self._shrink(row.lane, rows, rejection)
        after = row._replace(
            batch_number=row.batch_number + 1,
            inflight=[one.id for one in rows],
            token=uuid4(),
            marker_token=marker_token,
            search_start=encode_start(evidence.ends) if rows else None,
        )
        return Decision(outcome, after, rows, needs_publish=True, parked=parked)

    def _shrink(self, lane: int, rows: list[OutboxRow], rejection: RecordRejected) -> list[ParkedNow]:
        """Leave the first row of a batch that Kafka rejected; those after it go out one by one.

        A row that was rejected alone is parked.
        """
        first, *others = rows
        del rows[1:]
        if others:
            self._owned.update(self._owned.lanes[lane].one_by_one(others[-1].id))
            return []
        rows.clear()
        return [outbox_rows.park(self._conn, lane, first.id, str(rejection))]

    def _apply(self, lane: Lane, decision: Decision, evidence: Evidence) -> None:
        """Keep what was decided of a lane, and report it."""
        outcome, row = decision.outcome, decision.row
        self._batches.watermarks.pop(lane.number, None)
        lane = lane.at(row.batch_number, row.token, unacknowledged=bool(row.inflight))
        if outcome is None:
            held_up = lane.backing_off(decision.held_up or "", self._held_up_s)
            self._owned.update(held_up, retry_s=self._held_up_s)
            return
        fields: dict[str, object] = {"batch_number": row.batch_number}
        if outcome.refused:
            fields["mismatch"] = describe_mismatch(evidence.marker, row)
        recovered = lane.recovered(outcome)
        self._owned.update(recovered, **fields)
        if lane.status.state in WORKED and outcome is Outcome.PUBLISHED:
            return  # all was well; only the set of lanes has changed
        self._observer.recovered(outcome)
        fields |= {"lane": lane.number, "epoch": lane.epoch}
        if not outcome.refused:
            log.info("lane recovered", extra=fields | {"outcome": outcome.value})
        self._batches.report_parked(decision.parked)

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
            if self._publisher.needs_renewal:  # after the lane before: not this one's fault
                raise InDoubt("a request may have been repeated: a new producer is needed")
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
