"""A relay session: the work on all lanes that a relay owns while one connection to Postgres lives.

Invariant: `run_once` runs only when the batch in each lane row is known to be in Kafka. Then
acknowledging what is in flight is safe, and the next batch numbers are free. Whatever leaves that state
(an error, a time-out, another set of lanes) leads through `Recovery`, which decides from the lane rows
in Postgres and from the markers and the log in Kafka, and from nothing that this process remembers.
"""

import logging
import time
from collections.abc import Callable
from threading import Event

from outbox.backoff import Backoff
from outbox.batch import Batches
from outbox.errors import InDoubt, RecordRejected
from outbox.kafka_answers import KafkaAnswers
from outbox.lane import LaneState, LaneStatus, compare
from outbox.options import RelayOptions
from outbox.ownership import OwnedLanes
from outbox.pacing import AdaptivePause
from outbox.postgres import Connection
from outbox.publisher import Publisher
from outbox.recovery import Recovery

log = logging.getLogger(__name__)

MAX_RECOVERY_PAUSE_S = 2.0  # between two recoveries that fail: the shares are looked at in between
MAX_PAUSE_S = 0.1  # between two batches of a busy relay

# Empty lanes are polled again after a quarter of the time that the last batch took, or of the time
# since the last row came, within these limits: the latency of a row against the load on Postgres.
MIN_IDLE_S, MAX_IDLE_S = 0.002, 0.1
IDLE_FRACTION = 4
BUSY_MEMORY_S = 1.0  # after so long, what the last batch took says nothing about the next one


class RelaySession:
    """The lanes of a relay for as long as its connection lives.

    conn: has joined the relays; its advisory locks are the ownership. answers: learns what the work
    met. stop: set when the work must end.
    """

    def __init__(
        self,
        conn: Connection,
        owned: OwnedLanes,
        publisher: Publisher,
        answers: KafkaAnswers,
        options: RelayOptions,
        stop: Event,
    ) -> None:
        self.owned = owned
        self.batches = Batches(conn, self.owned, publisher, options)
        self.recovery = Recovery(conn, self.owned, publisher, self.batches, options)
        self._publisher = publisher
        self._answers = answers
        self._options = options
        self._stop = stop
        self._next_poll_at = self._recheck_at = 0.0  # of all relays, of refused lanes, monotonic
        self._pause = AdaptivePause(MAX_PAUSE_S)
        self._pause_s = 0.0  # after the last batch
        self._batch_s = 0.0  # how long it took
        self._last_rows_at = 0.0  # when it began, monotonic
        self._work_began_at = 0.0  # of a batch or a recovery, monotonic

    def run(self, on_healthy: Callable[[], None]) -> None:
        """Take our share of the lanes and work them until `stop` is set; on_healthy(): it recovered.

        Raises Stopped, OwnershipLost or psycopg.Error when the session is over.
        """
        backoff = Backoff(self._stop, max_s=MAX_RECOVERY_PAUSE_S)
        while not self._stop.is_set():
            try:
                self.owned.rebalance()
                self._options.observer.lanes_owned(frozenset(self.owned.lanes))
                self.batches.deferred.retry()  # also while Kafka is away
                self._work_began_at = time.monotonic()
                self.recovery.recover()
                self._note_recovery()
                backoff.healthy()
                on_healthy()
                self._run_batches()
            except (InDoubt, RecordRejected) as error:
                self._note_doubt(error)
                if not self.owned.gives_all_up:
                    backoff.wait()

    def _note_doubt(self, error: InDoubt | RecordRejected) -> None:
        """Let recovery decide what became of the batch; log a doubt once per change."""
        reason = str(error)
        if isinstance(error, RecordRejected):
            self.recovery.note_rejection(error)
            reason = f"record rejected: {error}"
        elif not self.owned.gives_all_up:
            self._answers.failed(self._work_began_at, reason)
        for lane in self.owned.working():
            self.owned.update(lane.with_status(LaneState.IN_DOUBT, reason))

    def _note_recovery(self) -> None:
        """Note that Kafka has taken all that it had not taken, unless a lane still fails."""
        lanes = self.owned.lanes.values()
        if failure := self.recovery.search_failure:
            self._answers.failed(self._work_began_at, failure)
        elif lanes and not any(lane.solo_failures for lane in lanes):
            self._answers.recovered()

    def _run_batches(self) -> None:
        """Batch after batch, until the lanes must change or the producer must be renewed."""
        while not (self._stop.is_set() or self._publisher.needs_renewal or self._poll_membership()):
            if self.run_once():
                self._stop.wait(self._pause_s)
            else:
                self.idle()
            self.batches.deferred.retry()
            self._options.observer.tick()
            self._note_work()
        self.finish()

    def _note_work(self) -> None:
        """Note which lanes are active, and which of them have rows whose topic cannot be written to."""
        began, waiting = time.monotonic(), self.batches.waiting
        if waiting.look(self.owned.lanes) and waiting.forbidden:
            self._answers.failed(began, waiting.forbidden)
        for lane in self.owned.working():
            why = waiting.by_lane.get(lane.number)
            status = LaneStatus(LaneState.WAITING if why else LaneState.ACTIVE, why)
            if lane.status != status:
                self.owned.update(lane.with_status(*status))

    # ---- one batch ----------------------------------------------------------------------------------

    def run_once(self) -> int:
        """Acknowledge the batch before and publish the next one; return the rows published."""
        self._work_began_at = started = time.monotonic()
        numbers = self.batches.lanes_with_work()
        batch = self.batches.acknowledge_and_claim(numbers) if numbers else {}
        if not batch:
            return 0
        self.batches.publish(batch)
        if not self.batches.waiting.forbidden:  # else another relay may be able to do more
            self._answers.published()
        self._last_rows_at, self._batch_s = started, time.monotonic() - started
        full = any(len(rows) == self._options.batch_size for rows in batch.values())
        self._pause_s = 0.0 if full else self._pause.after(self._batch_s)
        return sum(map(len, batch.values()))

    def idle(self) -> None:
        """Wait a little; notice that Kafka went away."""
        self._publisher.poll_events()
        self._publisher.topics.poll()
        self._options.observer.idle()
        quiet_s = time.monotonic() - self._last_rows_at
        if quiet_s > BUSY_MEMORY_S:
            self._batch_s = 0.0
        pause_s = max(quiet_s, self._batch_s) / IDLE_FRACTION
        self._stop.wait(min(max(pause_s, MIN_IDLE_S), MAX_IDLE_S))
        self._publisher.poll_events()  # what was reported meanwhile does not concern the next batch

    def finish(self) -> None:
        """Acknowledge what is known to be in Kafka, before the lanes change or the work ends."""
        if self._stop.is_set():
            self.owned.to_release = tuple(self.owned.lanes)
        if self._publisher.needs_renewal:
            self.owned.to_release = ()  # a request may still arrive: the next owner must fence our id
            for lane in self.owned.working():
                self.owned.update(lane.with_status(LaneState.RECOVERING))
        ending = [
            lane.number
            for lane in self.owned.lanes.values()
            if lane.working and (lane.unacknowledged or lane.number in self.owned.to_release)
        ]
        if ending:
            self.batches.acknowledge(ending, self.owned.to_release)

    # ---- other relays, refused lanes ----------------------------------------------------------------

    def _poll_membership(self) -> bool:
        """Look now and then at all relays and lanes; say whether ours must change."""
        now = time.monotonic()
        if now >= self._next_poll_at:
            self._next_poll_at = now + self._options.timings.membership_poll_s
            self.owned.refresh_membership()
            self._recheck_refused()
            self.owned.needs_rebalance |= any(
                0 < lane.backoff_until <= now for lane in self.owned.lanes.values()
            )
        return self.owned.needs_rebalance

    def _recheck_refused(self) -> None:
        """See whether a refused lane was taken by a repair, or its marker agrees again."""
        refused = [lane.number for lane in self.owned.lanes.values() if lane.refused]
        rows = self.owned.read(refused) if refused else {}
        if rows and time.monotonic() >= self._recheck_at:
            self._recheck_at = time.monotonic() + self._options.timings.refused_recheck_s
            for number, marker in self._publisher.peek_markers(rows).items():
                self.owned.needs_rebalance |= not compare(marker, rows[number]).refused
