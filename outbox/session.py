"""The work on all lanes that a relay owns in a session: acknowledge, claim, publish; recover after doubts.

Invariant: `run_once` runs only when the batch in each lane row is known to be in Kafka. Then acknowledging
what is in flight is safe, and the next numbers are free. Whatever leaves that state (an error, a
time-out, another set of lanes) leads through `_recover`, which decides from two pieces of evidence, the
markers in Kafka and the lane rows in Postgres, and from nothing that this process remembers.

All lanes go out in one Kafka transaction, under the transactional id of the lowest. What concerns a
lane is sent under no other id than the `transactional_lane` that its row names; a new owner fences that one, or
all where the row may have been restored with an old one.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from threading import Event
from uuid import UUID

from outbox import store
from outbox.backoff import persist
from outbox.crash_points import crash_point
from outbox.errors import InDoubt, RecordRejected
from outbox.lane import RECOVERING, WORKING, Lane, Outcome, compare, disagreement
from outbox.message import OutboxRow
from outbox.observer import Observer
from outbox.ownership import Ownership
from outbox.pacing import Pace
from outbox.postgres import Connection, retry_transaction, transaction
from outbox.publisher import Marker, Publisher
from outbox.recovery import Decision, Refusal, decide
from outbox.store import Claim, LaneState
from outbox.watermark import LowWater, Writers

log = logging.getLogger(__name__)

OnPublished = Callable[[Connection, Sequence[UUID]], None]
Batch = Mapping[int, Sequence[OutboxRow]]  # by lane

SURVEY_S = 0.5  # how soon a lane without an owner is seen
REST_S, RESTS_AFTER = 60.0, 2  # a lane that fails alone, so often, holds up the others no longer
REFUSED_S = 5.0  # how soon it is seen that a refused lane is as it was
LONGEST_PAUSE_S = 0.1  # between two batches of a busy relay
MARKER_REFRESH_S = 6 * 3600.0  # the offsets of a group without members expire after 7 days

# Empty lanes are looked at again after a quarter of the time that the last batch took, or of the time
# since the last row came, within these: the latency of a row against the load on Postgres.
IDLE_FIRST_S, IDLE_LAST_S = 0.002, 0.1
IDLE_SHARE = 4
IDLE_FORGETS_S = 1.0  # what the last batch took says nothing of the next one any more


class Tenure:
    """The lanes of a relay for as long as its session lives.

    conn: has joined; its advisory locks are the ownership. stop: set when the work is to end.
    strict_fencing: every batch gets a producer epoch of its own.
    """

    def __init__(
        self,
        conn: Connection,
        identity: UUID,
        publisher: Publisher,
        on_published: OnPublished,
        batch_size: int,
        stop: Event,
        observer: Observer,
        strict_fencing: bool = False,
    ) -> None:
        self.owned = Ownership(conn, identity)
        self._conn = conn
        self._publisher = publisher
        self._on_acknowledged = on_published
        self._batch_size = batch_size
        self._stop = stop
        self._observer = observer
        self._strict_fencing = strict_fencing
        self._transactional_lane = 0  # the lane whose transactional id all goes out under
        self._look_at = self._refused_at = 0.0  # when to look around, and at refused lanes, monotonic
        self._refusal: Refusal | None = None
        self._writers = Writers()
        self._pace = Pace(LONGEST_PAUSE_S)
        self._batch_s = 0.0  # how long the last batch took
        self._pause_s = 0.0  # after it
        self._rows_at = 0.0  # when it began, monotonic

    def work(self, good: Callable[[], None]) -> None:
        """Take our share of the lanes and work them until `stop` is set; good(): it recovered.

        Raises Stopped, OwnershipLost or psycopg.Error when the tenure is over.
        """

        def session(recovered: Callable[[], None]) -> None:
            while not self._stop.is_set():
                self.owned.adjust()
                self._observer.lanes_owned(frozenset(self.owned.lanes))
                self._recover()
                recovered()
                good()
                self._cycle()

        persist(session, (InDoubt, RecordRejected), self._note, self._stop)

    def _cycle(self) -> None:
        """Batch after batch, until the lanes change or the producer had trouble in silence."""
        while not (self._stop.is_set() or self._publisher.disturbed or self._look_around()):
            if self.run_once():
                self._stop.wait(self._pause_s)
            else:
                self._idle()
            self._observer.tick()
            for lane in self.owned.working():
                self._change_state(lane, WORKING, logging.INFO, "lane works")
        self._acknowledge()

    def _look_around(self) -> bool:
        """Look now and then at all relays and lanes; say whether ours are to change."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + SURVEY_S
            self.owned.look()
            self._look_at_refused()
            self.owned.changed |= any(0 < lane.rests_until <= now for lane in self.owned.lanes.values())
        return self.owned.changed

    def _look_at_refused(self) -> None:
        """Has somebody else taken a refused lane, is its marker back?"""
        refused = [lane.number for lane in self.owned.lanes.values() if lane.refused]
        states = self.owned.check(refused) if refused else {}
        if states and time.monotonic() >= self._refused_at:
            self._refused_at = time.monotonic() + REFUSED_S
            for number, marker in self._publisher.peek_markers(states).items():
                state = states[number]
                self.owned.changed |= not compare(
                    marker, state.batch_number, len(state.inflight)
                ).refused

    # ---- the way of a batch ---------------------------------------------------------------------

    def run_once(self) -> int:
        """Acknowledge the batch before and publish the next one; return the rows published."""
        started = time.monotonic()
        self._writers.tell(self._conn, [lane.low_water for lane in self.owned.working()])
        active = self._active()
        batch = self._acknowledge_and_claim(active) if active else {}
        if not batch:
            return 0
        self._publish({**dict.fromkeys(self._faded(), ()), **batch})
        self._rows_at, self._batch_s = started, time.monotonic() - started
        full = any(len(rows) == self._batch_size for rows in batch.values())
        self._pause_s = 0.0 if full else self._pace.pause_s(self._batch_s)
        return sum(map(len, batch.values()))

    def _active(self) -> list[int]:
        """Return the lanes that have something to acknowledge or to send."""
        working = self.owned.working()
        active = {lane.number for lane in working if lane.unacknowledged}
        quiet = {lane.number: lane.low_water for lane in working if not lane.unacknowledged}
        if quiet:
            above = {number: mark.above() for number, mark in quiet.items()}
            waiting = store.waiting_lanes(self._conn, above)
            for number in quiet.keys() - set(waiting):
                quiet[number].saw(())
            active.update(waiting)
        return sorted(active)

    @retry_transaction
    def _acknowledge_and_claim(
        self, active: Collection[int], claims: bool = True
    ) -> dict[int, list[OutboxRow]]:
        """One Postgres transaction: the batches before are done, the next ones are in hand."""
        started = time.perf_counter()
        with transaction(self._conn):
            before = self.owned.lock_free(active)
            crash_point("relay.locked")
            if any(
                state.batch_number != self.owned.lanes[number].batch_number
                for number, state in before.items()
            ):
                raise InDoubt("outbox_lane does not hold what we wrote: restored?")
            aggregate_ids = [
                aggregate_id
                for number, state in before.items()
                for aggregate_id in store.acknowledge(self._conn, number, state.inflight)
            ]
            if aggregate_ids:
                self._on_acknowledged(self._conn, aggregate_ids)
            crash_point("relay.acknowledged")
            batch = self._claim(before) if claims and before else {}
            after = {
                number: self._following(number, state, batch.get(number, ()))
                for number, state in before.items()
            }
            begun = {number: state for number, state in after.items() if state != before[number]}
            store.begin_batches(self._conn, self.owned.epochs(begun), begun)
            crash_point("relay.claimed")
        crash_point("relay.begun")
        for number, state in after.items():
            lane = self.owned.lanes[number]
            lane.batch_number, lane.unacknowledged = state.batch_number, number in batch
            if number in batch:
                lane.rows = len(state.inflight)
        self._observer.phase("postgres", time.perf_counter() - started)
        return batch

    def _claim(self, of: Collection[int]) -> dict[int, list[OutboxRow]]:
        wanted = [
            Claim(lane.number, 1 if lane.alone_until else self._batch_size, lane.low_water.above())
            for lane in map(self.owned.lanes.__getitem__, of)
        ]
        batch = store.claim(self._conn, wanted)
        for number in of:
            self.owned.lanes[number].low_water.saw([row.id for row in batch.get(number, ())])
        return batch

    def _following(self, number: int, state: LaneState, rows: Sequence[OutboxRow]) -> LaneState:
        """Return a lane's state with these rows in hand, the rows before being acknowledged.

        Nothing of a lane that is left is in the air any more: its next owner need not fence us.
        """
        transactional_lane = number if number in self.owned.leaving else self._transactional_lane
        return LaneState(state.batch_number + bool(rows), [row.id for row in rows], transactional_lane)

    def _acknowledge(self) -> None:
        """Bring to an end what is known to be in Kafka."""
        if self._stop.is_set():
            self.owned.leaving = tuple(self.owned.lanes)
        if self._publisher.disturbed:
            self.owned.leaving = ()  # something may be in the air: the next owner is to fence us
            for lane in self.owned.working():
                lane.state = RECOVERING
        ending = [
            lane.number
            for lane in self.owned.working()
            if lane.unacknowledged or lane.number in self.owned.leaving
        ]
        if ending:
            self._acknowledge_and_claim(ending, claims=False)

    def _publish(self, batch: Batch) -> None:
        """One Kafka transaction: the rows and markers of lanes, all or nothing."""
        started = time.perf_counter()
        if self._strict_fencing and not (batch := self._renew_producer(batch)):
            return
        lanes = {number: self.owned.lanes[number] for number in batch}
        markers = {number: Marker(lane.batch_number, lane.rows) for number, lane in lanes.items()}
        try:
            self._publisher.publish(markers, chain.from_iterable(batch.values()))
        except RecordRejected as error:
            self._refusal = Refusal(min(batch) if len(batch) == 1 else None, error)
            raise
        took_s = time.perf_counter() - started
        self._observer.phase("kafka", took_s)
        for number, lane in lanes.items():
            lane.published(batch[number])
        if sent := [row for rows in batch.values() for row in rows]:
            oldest_s = max(rows[0].age_s for rows in batch.values() if rows)
            self._observer.published(len(sent), oldest_s + took_s)
            self._observer.sent(sent, took_s)

    def _renew_producer(self, batch: Batch) -> Batch:
        """Give the batch in hand a producer epoch of its own: no request of an earlier one can meet it.

        The order matters. Ownership after the fence: or a zombie, whose own fence shuts out the
        successor, would publish what that one has already published.
        """
        self._publisher.start(self._transactional_lane)
        mine = self.owned.check(batch)
        return {number: rows for number, rows in batch.items() if number in mine}

    def _faded(self) -> list[int]:
        """Return the lanes whose marker is to be committed again."""
        since = time.monotonic() - MARKER_REFRESH_S
        return [lane.number for lane in self.owned.working() if lane.marked_at < since]

    def _idle(self) -> None:
        """Wait a little; keep the markers from expiring; notice that Kafka went away."""
        self._publisher.serve()
        if faded := self._faded():
            self._publish(dict.fromkeys(faded, ()))
        self._observer.idle()
        quiet_s = time.monotonic() - self._rows_at
        if quiet_s > IDLE_FORGETS_S:
            self._batch_s = 0.0
        pause_s = max(quiet_s, self._batch_s) / IDLE_SHARE
        self._stop.wait(min(max(pause_s, IDLE_FIRST_S), IDLE_LAST_S))
        self._publisher.serve()  # what was told meanwhile is no trouble of the next batch

    # ---- recovery -------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Find out what became of each lane's batch, and bring it into Kafka if it is not there.

        The order matters. Ownership before the fence: or two relays fence each other for ever. The
        fence before the markers: or an older transaction could still be committed after the look.
        The lane rows' locks before the comparison: or a successor could move on in between.
        """
        states = self.owned.check(self.owned.lanes)
        if not states:
            self._publisher.discard()
            return
        self._end_rests()
        crash_point("relay.owner_checked")
        self._fence(states)
        markers = self._publisher.read_markers(states)
        crash_point("relay.marker_read")
        refusal = self._refusal
        decisions = decide(self._conn, self.owned, markers, self._transactional_lane, refusal)
        self._refusal = None  # it has had its effect, whatever comes next
        crash_point("relay.decided")
        for number, decision in decisions.items():
            self._take_in(self.owned.lanes[number], decision, markers[number], refusal)
        self._publish_again(decisions, refusal)

    def _fence(self, states: Mapping[int, LaneState]) -> None:
        """Shut out all that might still send for these lanes. From now on the lowest carries them.

        An earlier owner's id once, and not again after a doubt: a relay that works may have it now.
        """
        self._transactional_lane = min(states)
        lanes = store.count_lanes(self._conn)
        earlier = {
            transactional_lane
            for number, state in states.items()
            for transactional_lane in state.senders(lanes)
            if transactional_lane not in self.owned.lanes[number].fenced
        }
        for transactional_lane in self._publisher.fence(sorted(earlier - {self._transactional_lane})):
            for number in states:
                self.owned.lanes[number].fenced.add(transactional_lane)
        self._publisher.start(self._transactional_lane)

    def _take_in(
        self, lane: Lane, decision: Decision, marker: Marker | None, refusal: Refusal | None
    ) -> None:
        """Remember what was decided of a lane, and say it."""
        outcome, batch_number = decision.outcome, decision.state.batch_number
        lane.batch_number, lane.unacknowledged, lane.low_water = batch_number, True, LowWater()
        lane.rows = len(decision.state.inflight) if decision.sends or marker is None else marker.rows
        lane.fenced.clear()  # the transactional_lane is ours from now on
        lane.refused = outcome.refused
        place: dict[str, object] = {
            "lane": lane.number,
            "epoch": lane.epoch,
            "batch_number": batch_number,
        }
        if lane.state == WORKING and outcome is Outcome.PUBLISHED:
            return  # all was well; only the lanes have changed
        self._observer.recovered(outcome.value)
        if lane.refused:
            text = disagreement(lane.number, outcome, marker, batch_number)
            text += "; nothing is sent until the lane is repaired"
            self._change_state(lane, f"refused: {outcome.value}", logging.ERROR, text)
            return
        log.info("lane recovered", extra=place | {"outcome": outcome.value})
        if decision.parked and refusal:
            row, aggregate_id = decision.parked
            about = {"row": row, "aggregate_id": aggregate_id, "reason": str(refusal.error)}
            log.error("row parked", extra=place | about)
            self._observer.parked()

    def _end_rests(self) -> None:
        """Try lanes again that have rested, or all where no other would be held up."""
        now, nobody_works = time.monotonic(), not self.owned.working()
        for lane in self.owned.lanes.values():
            if nobody_works or lane.rests_until <= now:
                lane.rests_until = 0.0

    def _publish_again(self, decisions: Mapping[int, Decision], refusal: Refusal | None) -> None:
        """Send what is not in Kafka, rows lane by lane: so it shows whose cannot be sent, if any.

        What failed alone comes last. Lanes without rows have only markers, and none can fail alone.
        """
        again = {number: decision.rows for number, decision in decisions.items() if decision.sends}
        if markers := {number: rows for number, rows in again.items() if not rows}:
            self._publish(markers)
        refused = refusal.lane if refusal else None
        alone = [self.owned.lanes[number] for number in sorted(again.keys() - markers.keys())]
        for lane in sorted(alone, key=lambda lane: (lane.number == refused, lane.failures)):
            if not lane.rests_until:
                self._publish_alone(lane, again[lane.number])

    def _publish_alone(self, lane: Lane, rows: Sequence[OutboxRow]) -> None:
        """Publish the batch of one lane, as long as that does not hold up the others for ever."""
        try:
            self._publish({lane.number: rows})
        except InDoubt as error:
            lane.failures += 1
            if lane.failures >= RESTS_AFTER:
                lane.rests_until = time.monotonic() + REST_S
                state = f"waiting: {error}; sent alone, and again in {REST_S:.0f} s"
                self._change_state(lane, state, logging.WARNING, "lane rests")
            raise

    # ---- what people see ------------------------------------------------------------------------

    def _note(self, error: Exception) -> None:
        """Say a doubt once per change."""
        refused = isinstance(error, RecordRejected)
        state = f"refused record: {error}" if refused else f"waiting: {error}"
        event = "record refused" if refused else "lane in doubt"
        for lane in self.owned.working():
            self._change_state(lane, state, logging.WARNING, event)

    def _change_state(self, lane: Lane, state: str, level: int, event: str) -> None:
        if state != lane.state:
            log.log(level, event, extra={"lane": lane.number, "epoch": lane.epoch, "state": state})
            lane.state = state
