"""One lane, worked by one owner: settle, claim, publish; and recover after every doubt.

Invariant: `run_once` runs only when the batch in the lane row is known to be in Kafka. Then settling
what is in flight is safe, and the next number is free. Whatever leaves that state (an error, a
time-out, a new owner) leads through `_recover`, which decides from two pieces of evidence, the marker
in Kafka and the lane row in Postgres, and from nothing that this process remembers.
"""

import enum
import logging
import math
import time
from collections.abc import Callable, Sequence
from threading import Event
from uuid import UUID

from outbox import store
from outbox.crashpoints import reached
from outbox.errors import HistoriesDisagree, InDoubt, RecordRefused
from outbox.low_water import LowWater
from outbox.message import OutboxRow
from outbox.observer import Observer
from outbox.pace import Pace
from outbox.patience import persist
from outbox.postgres import Connection, transaction, transaction_again
from outbox.publisher import Publisher
from outbox.store import LaneState

log = logging.getLogger(__name__)

OnSettled = Callable[[Connection, Sequence[UUID]], None]

IDLE_S = 1.0  # an idle lane looks by itself this often; the relay's bell wakes it much sooner
LONGEST_PAUSE_S = 0.1  # between two batches of a busy lane
MARKER_REFRESH_S = 6 * 3600.0  # the offsets of a group without members expire after 7 days


class Verdict(enum.Enum):
    """What the evidence says of batch `seq`."""

    NEW_LANE = "new_lane"
    PUBLISHED = "published"
    NOT_PUBLISHED = "not_published"
    MARKER_AHEAD = "marker_ahead"
    MARKER_BEHIND = "marker_behind"
    MARKER_MISSING = "marker_missing"


def compare(marker: int | None, seq: int) -> Verdict:
    """Decide from the marker in Kafka and the batch in Postgres.

    Sound only after a fence and under the lane row's lock. Ahead: Postgres went back in time.
    Behind or missing: the marker expired, was deleted, or is another outbox's.
    """
    if marker is None:
        return Verdict.MARKER_MISSING if seq else Verdict.NEW_LANE
    if marker == seq:
        return Verdict.PUBLISHED
    if marker == seq - 1:
        return Verdict.NOT_PUBLISHED
    return Verdict.MARKER_AHEAD if marker > seq else Verdict.MARKER_BEHIND


class Lane:
    """The work on one lane for as long as this relay owns it.

    conn: a session of its own, that holds the lane's advisory lock. epoch: from `take_lane`.
    stop: set when the lane is to be given up. bell: set when it may have rows (and with stop).
    strict_fencing: every batch gets a producer epoch of its own.
    """

    def __init__(
        self,
        lane: int,
        epoch: int,
        conn: Connection,
        publisher: Publisher,
        on_settled: OnSettled,
        batch_size: int,
        stop: Event,
        bell: Event,
        observer: Observer,
        strict_fencing: bool = False,
    ) -> None:
        self.lane = lane
        self._epoch = epoch
        self._conn = conn
        self._publisher = publisher
        self._on_settled = on_settled
        self._batch_size = batch_size
        self._stop = stop
        self._bell = bell
        self._observer = observer
        self._strict_fencing = strict_fencing
        self.state = "recovering"  # for people: working, recovering, waiting: why, refused: why
        self._seq = 0  # the batch known to be in Kafka
        self._unsettled = True  # rows of batch _seq may still be in flight
        self._refused: RecordRefused | None = None  # why Kafka refused the batch in hand
        self._parked: dict[str, object] = {}  # the row that was parked last, for the log
        self._alone_until = 0  # up to this id rows go out one by one
        self._marked_at = -math.inf  # when the marker was last committed, monotonic
        self._low_water = LowWater()
        self._pace = Pace(LONGEST_PAUSE_S)
        self.idle = False  # waits for the bell
        self.batch_s = 0.0  # how long the last batch took

    def work(self, good: Callable[[], None]) -> None:
        """Work until `stop` is set; call good() whenever a recovery went through.

        Raises OwnershipLost, Stopped or psycopg.Error when the tenure is over.
        """

        def session(recovered: Callable[[], None]) -> None:
            while not self._stop.is_set():
                self._recover()
                recovered()
                good()
                self._cycle()

        persist(session, (InDoubt, RecordRefused, HistoriesDisagree), self._note, self._stop)

    def _cycle(self) -> None:
        """Batch after batch, until the lane is given up or the producer had trouble in silence."""
        while not (self._stop.is_set() or self._publisher.disturbed):
            published = self.run_once()
            if not published:
                self._idle()
            elif published < self._batch_size:
                self._stop.wait(self._pace.pause_s(self.batch_s))
            self._observer.tick(self.lane)
            self._change_state("working", logging.INFO, "lane works")
        if self._unsettled:
            self._settle_and_claim(limit=0)

    @property
    def waits_above(self) -> int:
        """The id above which the lane waits for rows."""
        return self._low_water.id

    # ---- the way of a batch ---------------------------------------------------------------------

    def run_once(self) -> int:
        """Settle the batch before and publish the next one; return the rows published."""
        self._low_water.ask(self._conn)
        if not self._unsettled and not self._any_waiting():
            return 0
        started = time.monotonic()
        rows = self._settle_and_claim(1 if self._alone_until else self._batch_size)
        if rows:
            self._publish(rows)
            self.batch_s = time.monotonic() - started
        return len(rows)

    def _any_waiting(self) -> bool:
        found = store.any_waiting(self._conn, self.lane, self._low_water.above())
        if not found:
            self._low_water.saw(())
        return found

    @transaction_again
    def _settle_and_claim(self, limit: int) -> list[OutboxRow]:
        """One Postgres transaction: the batch before is done, the next one is in hand."""
        started = time.perf_counter()
        with transaction(self._conn):
            state = store.lock_lane(self._conn, self.lane, self._epoch)
            reached("relay.locked")
            subjects = store.settle(self._conn, self.lane, state.inflight)
            if subjects:
                self._on_settled(self._conn, subjects)
            reached("relay.settled")
            rows = self._claim(limit) if limit else []
            following = LaneState(state.seq + bool(rows), [row.id for row in rows])
            if following != state:
                store.begin_batch(self._conn, self.lane, self._epoch, following)
            reached("relay.claimed")
        reached("relay.begun")
        self._seq, self._unsettled = following.seq, bool(rows)
        self._observer.phase("postgres", time.perf_counter() - started)
        return rows

    def _claim(self, limit: int) -> list[OutboxRow]:
        rows = store.claim(self._conn, self.lane, limit, self._low_water.above())
        self._low_water.saw([row.id for row in rows])
        return rows

    def _publish(self, rows: Sequence[OutboxRow]) -> None:
        """One Kafka transaction: the rows and the marker of batch `_seq`, all or nothing."""
        started = time.perf_counter()
        if self._strict_fencing:
            self._renew_producer()
        self._publisher.publish(self._seq, rows)
        self._marked_at = time.monotonic()
        took_s = time.perf_counter() - started
        self._observer.phase("kafka", took_s)
        if rows:
            self._observer.published(self.lane, len(rows), rows[0].age_s + took_s)
            self._observer.sent(rows, took_s)
            if rows[-1].id >= self._alone_until:
                self._alone_until = 0

    def _renew_producer(self) -> None:
        """Give the batch in hand a producer epoch of its own: no request of an earlier one can meet it.

        The order matters. Ownership after the fence: or a zombie, whose own fence shuts out the
        successor, would publish what that one has already published.
        """
        self._publisher.start()
        store.check_owner(self._conn, self.lane, self._epoch)

    def _idle(self) -> None:
        """Wait for the bell; keep the marker from expiring; notice that Kafka went away."""
        self._publisher.serve()
        if time.monotonic() - self._marked_at > MARKER_REFRESH_S:
            self._publish(())
        self._observer.idle(self.lane)
        self.idle = True
        if not self._bell.wait(IDLE_S):
            self.batch_s = 0.0  # what it was by then says nothing of the next one
        self.idle = False
        self._publisher.serve()  # what was told meanwhile is no trouble of the next batch
        self._bell.clear()  # before the look that follows: a row that comes after it rings again

    # ---- recovery -------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Find out what became of batch `seq`, and bring it into Kafka if it is not there.

        The order matters. Ownership before the fence: or two relays fence each other for ever. The
        fence before the marker: or an older transaction could still be committed after the look.
        The lane row's lock before the comparison: or a successor could move on in between.
        """
        store.check_owner(self._conn, self.lane, self._epoch)
        reached("relay.owner_checked")
        self._publisher.start()
        marker = self._publisher.read_marker()
        reached("relay.marker_read")
        verdict, rows = self._decide(marker)
        reached("relay.decided")
        refused, self._refused = self._refused, None
        self._observer.recovered(verdict.value)
        place = {"lane": self.lane, "epoch": self._epoch, "seq": self._seq}
        log.info("lane recovered", extra=place | {"verdict": verdict.value})
        if refused and not rows:
            log.error("row parked", extra=place | self._parked | {"reason": str(refused)})
            self._observer.parked(self.lane)
        if verdict is not Verdict.PUBLISHED:
            self._publish(rows)
        self._low_water = LowWater()
        self._unsettled = True

    @transaction_again
    def _decide(self, marker: int | None) -> tuple[Verdict, list[OutboxRow]]:
        """Compare marker and lane row under its lock; return the rows that must go out again.

        Raises OwnershipLost or HistoriesDisagree.
        """
        with transaction(self._conn):
            state = store.lock_lane(self._conn, self.lane, self._epoch)
            self._seq = state.seq
            match verdict := compare(marker, state.seq):
                case Verdict.PUBLISHED | Verdict.NEW_LANE:
                    return verdict, []
                case Verdict.NOT_PUBLISHED:
                    inflight = self._without_refused(state)
                    return verdict, store.load(self._conn, self.lane, inflight)
                case _:
                    raise HistoriesDisagree(self.lane, verdict.value, marker, state.seq)

    def _without_refused(self, state: LaneState) -> list[int]:
        """Narrow a batch that Kafka refused, durably and under the same number.

        A batch of several rows shrinks to its first, and those after it go out one by one; a row
        that was refused alone is parked.
        """
        if self._refused is None or not state.inflight:
            return state.inflight
        if len(state.inflight) == 1:
            (row,) = state.inflight
            subject = store.park(self._conn, self.lane, row, str(self._refused))
            self._parked = {"row": row, "subject": subject}
            inflight = []
        else:
            self._alone_until = max(state.inflight)
            inflight = state.inflight[:1]
        store.begin_batch(self._conn, self.lane, self._epoch, LaneState(state.seq, inflight))
        reached("relay.narrowed")
        return inflight

    # ---- what people see ------------------------------------------------------------------------

    def _note(self, error: Exception) -> None:
        """Keep what recovery needs to know of a doubt, and say it once per change."""
        match error:
            case HistoriesDisagree():
                self._observer.recovered(error.reason)
                self._change_state(f"refused: {error.reason}", logging.ERROR, str(error))
            case RecordRefused():
                self._refused = error
                self._change_state(f"refused record: {error}", logging.WARNING, "record refused")
            case _:
                self._change_state(f"waiting: {error}", logging.WARNING, "lane in doubt")

    def _change_state(self, state: str, level: int, event: str) -> None:
        if state != self.state:
            log.log(level, event, extra={"lane": self.lane, "epoch": self._epoch, "state": state})
            self.state = state
