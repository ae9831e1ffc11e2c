"""The work on all lanes that a relay owns in a session: settle, claim, publish; recover after doubts.

Invariant: `run_once` runs only when the batch in each lane row is known to be in Kafka. Then settling
what is in flight is safe, and the next numbers are free. Whatever leaves that state (an error, a
time-out, another set of lanes) leads through `_recover`, which decides from two pieces of evidence, the
markers in Kafka and the lane rows in Postgres, and from nothing that this process remembers.

All lanes go out in one Kafka transaction, under the transactional id of the lowest. What concerns a
lane is sent under no other id than the `carrier` that its row names; a new owner fences that one.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from threading import Event
from typing import NamedTuple
from uuid import UUID

from outbox import lanes, store
from outbox.crashpoints import reached
from outbox.errors import InDoubt, RecordRefused
from outbox.lane import RECOVERING, WORKING, Lane, Verdict, compare
from outbox.low_water import LowWater, Writers
from outbox.message import OutboxRow
from outbox.observer import Observer
from outbox.pace import Pace
from outbox.patience import persist
from outbox.postgres import Connection, transaction, transaction_again
from outbox.publisher import Publisher
from outbox.store import Claim, LaneState

log = logging.getLogger(__name__)

OnSettled = Callable[[Connection, Sequence[UUID]], None]
Batch = Mapping[int, Sequence[OutboxRow]]  # by lane

SURVEY_S = 0.5  # how soon a lane without an owner is seen
REFUSED_S = 5.0  # how soon it is seen that a refused lane is as it was
LONGEST_PAUSE_S = 0.1  # between two batches of a busy relay
MARKER_REFRESH_S = 6 * 3600.0  # the offsets of a group without members expire after 7 days

# Empty lanes are looked at again after a quarter of the time that the last batch took, or of the time
# since the last row came, within these: the latency of a row against the load on Postgres.
IDLE_FIRST_S, IDLE_LAST_S = 0.002, 0.1
IDLE_SHARE = 4
IDLE_FORGETS_S = 1.0  # what the last batch took says nothing of the next one any more


class Decision(NamedTuple):
    """What the evidence said of a lane. rows: to be published again. parked: (row, subject)."""

    verdict: Verdict
    state: LaneState
    rows: Sequence[OutboxRow] = ()
    parked: tuple[int, UUID | None] | None = None


class Refusal(NamedTuple):
    """Kafka refused a record. lane: whose, None if it was in a transaction of several."""

    lane: int | None
    error: RecordRefused


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
        on_settled: OnSettled,
        batch_size: int,
        stop: Event,
        observer: Observer,
        strict_fencing: bool = False,
    ) -> None:
        self.lanes: dict[int, Lane] = {}
        self._conn = conn
        self._identity = identity
        self._publisher = publisher
        self._on_settled = on_settled
        self._batch_size = batch_size
        self._stop = stop
        self._observer = observer
        self._strict_fencing = strict_fencing
        self._carrier = 0  # the lane whose transactional id all goes out under
        self._leaving: Collection[int] = ()  # lanes beyond our share
        self._changed = False  # a lane was lost, is beyond our share, or is free for us
        self._survey_at = self._refused_at = 0.0  # when to look again, monotonic
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
                self._adjust()
                self._recover()
                recovered()
                good()
                self._cycle()

        persist(session, (InDoubt, RecordRefused), self._note, self._stop)

    def _cycle(self) -> None:
        """Batch after batch, until the lanes change or the producer had trouble in silence."""
        while not (self._stop.is_set() or self._publisher.disturbed or self._look_around()):
            if self.run_once():
                self._stop.wait(self._pause_s)
            else:
                self._idle()
            self._observer.tick()
            for lane in self._working():
                self._change_state(lane, WORKING, logging.INFO, "lane works")
        self._settle()

    def _working(self) -> list[Lane]:
        return [lane for lane in self.lanes.values() if not lane.refused]

    # ---- which lanes ----------------------------------------------------------------------------

    def _look_around(self) -> bool:
        """Look now and then at all relays and lanes; say whether ours are to change."""
        now = time.monotonic()
        if now >= self._survey_at:
            self._survey_at = now + SURVEY_S
            survey = lanes.survey(self._conn, self._identity)
            self._leaving = sorted(self.lanes)[survey.share() :]
            wanted = survey.free and len(self.lanes) < survey.share()
            self._changed |= bool(self._leaving or wanted or self._refused_changed())
        return self._changed

    def _refused_changed(self) -> bool:
        """Look at the refused lanes: has somebody else taken one, is its marker back?"""
        refused = {number: lane.epoch for number, lane in self.lanes.items() if lane.refused}
        states = store.read_lanes(self._conn, refused) if refused else {}
        self._forget(refused.keys() - states.keys())
        if not states or time.monotonic() < self._refused_at:
            return False
        self._refused_at = time.monotonic() + REFUSED_S
        markers = self._publisher.peek_markers(states)
        return any(not compare(seen, states[number].seq).refused for number, seen in markers.items())

    def _adjust(self) -> None:
        """Give up lanes beyond our share, take free ones up to it."""
        survey = lanes.survey(self._conn, self._identity)
        for number in sorted(self.lanes)[survey.share() :]:
            lanes.release(self._conn, self._identity, number)
            del self.lanes[number]
        for number in survey.free[: max(survey.share() - len(self.lanes), 0)]:
            self.take(number)
        self._leaving, self._changed = (), False
        self._survey_at = time.monotonic() + SURVEY_S
        self._observer.lanes_owned(frozenset(self.lanes))

    def take(self, number: int) -> None:
        """Become a lane's owner, unless another relay is."""
        if lanes.try_lock(self._conn, self._identity, number):
            self.lanes[number] = Lane(number, store.take_lane(self._conn, number))
            reached("relay.taken")

    def _epochs(self, of: Collection[int]) -> dict[int, int]:
        return {number: self.lanes[number].epoch for number in of if number in self.lanes}

    def _lock(self, of: Collection[int]) -> dict[int, LaneState]:
        """Lock rows of lanes, in the caller's transaction; forget those that are not ours any more."""
        epochs = self._epochs(of)
        states = store.lock_lanes(self._conn, epochs)
        self._forget(epochs.keys() - states.keys())
        return states

    def _forget(self, lost: Collection[int]) -> None:
        for number in sorted(lost):
            lane = self.lanes.pop(number)
            place = {"lane": number, "epoch": lane.epoch}
            log.warning("lane lost: its epoch is not the owner's any more", extra=place)
            lanes.release(self._conn, self._identity, number)  # for who has taken it
            self._changed = True

    # ---- the way of a batch ---------------------------------------------------------------------

    def run_once(self) -> int:
        """Settle the batch before and publish the next one; return the rows published."""
        started = time.monotonic()
        self._writers.tell(self._conn, [lane.low_water for lane in self._working()])
        active = self._active()
        batch = self._settle_and_claim(active) if active else {}
        if not batch:
            return 0
        self._publish({**dict.fromkeys(self._faded(), ()), **batch})
        self._rows_at, self._batch_s = started, time.monotonic() - started
        full = any(len(rows) == self._batch_size for rows in batch.values())
        self._pause_s = 0.0 if full else self._pace.pause_s(self._batch_s)
        return sum(map(len, batch.values()))

    def _active(self) -> list[int]:
        """Return the lanes that have something to settle or to send."""
        working = self._working()
        active = {lane.number for lane in working if lane.unsettled}
        quiet = {lane.number: lane.low_water for lane in working if not lane.unsettled}
        if quiet:
            above = {number: mark.above() for number, mark in quiet.items()}
            waiting = store.waiting_lanes(self._conn, above)
            for number in quiet.keys() - set(waiting):
                quiet[number].saw(())
            active.update(waiting)
        return sorted(active)

    @transaction_again
    def _settle_and_claim(
        self, active: Collection[int], claims: bool = True
    ) -> dict[int, list[OutboxRow]]:
        """One Postgres transaction: the batches before are done, the next ones are in hand."""
        started = time.perf_counter()
        with transaction(self._conn):
            before = self._lock(active)
            reached("relay.locked")
            subjects = [
                subject
                for number, state in before.items()
                for subject in store.settle(self._conn, number, state.inflight)
            ]
            if subjects:
                self._on_settled(self._conn, subjects)
            reached("relay.settled")
            batch = self._claim(before) if claims and before else {}
            after = {
                number: self._following(number, state, batch.get(number, ()))
                for number, state in before.items()
            }
            begun = {number: state for number, state in after.items() if state != before[number]}
            store.begin_batches(self._conn, self._epochs(begun), begun)
            reached("relay.claimed")
        reached("relay.begun")
        for number, state in after.items():
            lane = self.lanes[number]
            lane.seq, lane.unsettled = state.seq, number in batch
        self._observer.phase("postgres", time.perf_counter() - started)
        return batch

    def _claim(self, of: Collection[int]) -> dict[int, list[OutboxRow]]:
        wanted = [
            Claim(lane.number, 1 if lane.alone_until else self._batch_size, lane.low_water.above())
            for lane in map(self.lanes.__getitem__, of)
        ]
        batch = store.claim(self._conn, wanted)
        for number in of:
            self.lanes[number].low_water.saw([row.id for row in batch.get(number, ())])
        return batch

    def _following(self, number: int, state: LaneState, rows: Sequence[OutboxRow]) -> LaneState:
        """Return a lane's state with these rows in hand, the rows before being settled.

        Nothing of a lane that is left is in the air any more: its next owner need not fence us.
        """
        carrier = number if number in self._leaving else self._carrier
        return LaneState(state.seq + bool(rows), [row.id for row in rows], carrier)

    def _settle(self) -> None:
        """Bring to an end what is known to be in Kafka."""
        if self._stop.is_set():
            self._leaving = tuple(self.lanes)
        if self._publisher.disturbed:
            self._leaving = ()  # something may be in the air: the next owner is to fence us
            for lane in self._working():
                lane.state = RECOVERING
        ending = [
            lane.number for lane in self._working() if lane.unsettled or lane.number in self._leaving
        ]
        if ending:
            self._settle_and_claim(ending, claims=False)

    def _publish(self, batch: Batch) -> None:
        """One Kafka transaction: the rows and markers of lanes, all or nothing."""
        started = time.perf_counter()
        if self._strict_fencing and not (batch := self._renew_producer(batch)):
            return
        markers = {number: self.lanes[number].seq for number in batch}
        try:
            self._publisher.publish(markers, chain.from_iterable(batch.values()))
        except RecordRefused as error:
            self._refusal = Refusal(min(batch) if len(batch) == 1 else None, error)
            raise
        took_s = time.perf_counter() - started
        self._observer.phase("kafka", took_s)
        for number, rows in batch.items():
            self.lanes[number].published(rows)
        if sent := [row for rows in batch.values() for row in rows]:
            oldest_s = max(rows[0].age_s for rows in batch.values() if rows)
            self._observer.published(len(sent), oldest_s + took_s)
            self._observer.sent(sent, took_s)

    def _renew_producer(self, batch: Batch) -> Batch:
        """Give the batch in hand a producer epoch of its own: no request of an earlier one can meet it.

        The order matters. Ownership after the fence: or a zombie, whose own fence shuts out the
        successor, would publish what that one has already published.
        """
        self._publisher.start(self._carrier)
        mine = store.read_lanes(self._conn, self._epochs(batch))
        self._forget(batch.keys() - mine.keys())
        return {number: rows for number, rows in batch.items() if number in mine}

    def _faded(self) -> list[int]:
        """Return the lanes whose marker is to be committed again."""
        since = time.monotonic() - MARKER_REFRESH_S
        return [lane.number for lane in self._working() if lane.marked_at < since]

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
        states = store.read_lanes(self._conn, self._epochs(self.lanes))
        self._forget(self.lanes.keys() - states.keys())
        if not states:
            self._publisher.discard()
            return
        reached("relay.owner_checked")
        self._fence(states)
        markers = self._publisher.read_markers(states)
        reached("relay.marker_read")
        decisions = self._decide(markers)
        reached("relay.decided")
        for number, decision in decisions.items():
            self._take_in(self.lanes[number], decision, markers[number])
        self._publish_again(decisions)
        self._refusal = None

    def _fence(self, states: Mapping[int, LaneState]) -> None:
        """Shut out all that might still send for these lanes. From now on the lowest carries them.

        An earlier owner's id once, and not again after a doubt: a relay that works may have it now.
        """
        self._carrier = min(states)
        earlier = {
            state.carrier
            for number, state in states.items()
            if state.carrier not in (self._carrier, self.lanes[number].fenced)
        }
        self._publisher.start(self._carrier, sorted(earlier))
        for number, state in states.items():
            self.lanes[number].fenced = state.carrier

    @transaction_again
    def _decide(self, markers: Mapping[int, int | None]) -> dict[int, Decision]:
        """Compare markers and lane rows under their locks; say which rows must go out again."""
        with transaction(self._conn):
            before = self._lock(self.lanes)
            decisions = {
                number: self._decide_lane(number, markers[number], state)
                for number, state in before.items()
            }
            begun = {n: one.state for n, one in decisions.items() if one.state != before[n]}
            store.begin_batches(self._conn, self._epochs(begun), begun)
            if any(state.inflight != before[number].inflight for number, state in begun.items()):
                reached("relay.narrowed")
        return decisions

    def _decide_lane(self, number: int, marker: int | None, state: LaneState) -> Decision:
        verdict, state = compare(marker, state.seq), state._replace(carrier=self._carrier)
        if verdict is not Verdict.NOT_PUBLISHED:
            return Decision(verdict, state)
        if self._refusal and self._refusal.lane == number and state.inflight:
            return self._narrow(number, state, self._refusal.error)
        return Decision(verdict, state, store.load(self._conn, number, state.inflight))

    def _narrow(self, number: int, state: LaneState, refused: RecordRefused) -> Decision:
        """Narrow a batch that Kafka refused, durably and under the same number.

        A batch of several rows shrinks to its first, and those after it go out one by one; a row
        that was refused alone is parked.
        """
        row, *more = state.inflight
        if more:
            self.lanes[number].alone_until = max(more)
            rows = store.load(self._conn, number, [row])
            return Decision(Verdict.NOT_PUBLISHED, state._replace(inflight=[row]), rows)
        subject = store.park(self._conn, number, row, str(refused))
        empty = state._replace(inflight=[])
        return Decision(Verdict.NOT_PUBLISHED, empty, parked=(row, subject))

    def _take_in(self, lane: Lane, decision: Decision, marker: int | None) -> None:
        """Remember what was decided of a lane, and say it."""
        verdict, seq = decision.verdict, decision.state.seq
        lane.seq, lane.unsettled, lane.low_water = seq, True, LowWater()
        lane.fenced = None  # the carrier is ours from now on
        lane.refused = verdict.refused
        place: dict[str, object] = {"lane": lane.number, "epoch": lane.epoch, "seq": seq}
        if lane.state == WORKING and verdict is Verdict.PUBLISHED:
            return  # all was well; only the lanes have changed
        self._observer.recovered(verdict.value)
        if lane.refused:
            text = (
                f"lane {lane.number}: {verdict.value}: the marker in Kafka is {marker}, the batch in"
                f" Postgres is {seq}; nothing is sent until the lane is repaired"
            )
            self._change_state(lane, f"refused: {verdict.value}", logging.ERROR, text)
            return
        log.info("lane recovered", extra=place | {"verdict": verdict.value})
        if decision.parked and self._refusal:
            row, subject = decision.parked
            about = {"row": row, "subject": subject, "reason": str(self._refusal.error)}
            log.error("row parked", extra=place | about)
            self._observer.parked()

    def _publish_again(self, decisions: Mapping[int, Decision]) -> None:
        """Send what is not in Kafka; lane by lane if a record was refused, to find out whose it is."""
        again = {
            number: decision.rows
            for number, decision in decisions.items()
            if decision.verdict in (Verdict.NOT_PUBLISHED, Verdict.NEW_LANE)
        }
        if self._refusal:
            suspect = self._refusal.lane
            for number in sorted(again, key=lambda number: number == suspect):
                self._publish({number: again[number]})
        elif again:
            self._publish(again)

    # ---- what people see ------------------------------------------------------------------------

    def _note(self, error: Exception) -> None:
        """Say a doubt once per change."""
        refused = isinstance(error, RecordRefused)
        state = f"refused record: {error}" if refused else f"waiting: {error}"
        event = "record refused" if refused else "lane in doubt"
        for lane in self._working():
            self._change_state(lane, state, logging.WARNING, event)

    def _change_state(self, lane: Lane, state: str, level: int, event: str) -> None:
        if state != lane.state:
            log.log(level, event, extra={"lane": lane.number, "epoch": lane.epoch, "state": state})
            lane.state = state
