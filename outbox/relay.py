"""The relay: joins the others, takes its fair share of the lanes, works each in a thread.

Invariant: a lane is worked only in a session that holds its advisory lock, under the epoch taken in
that same session. Whatever ends the session ends the tenure: the next one takes a new epoch and
recovers before it does anything else.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from threading import Event

import psycopg
from confluent_kafka import KafkaException

from outbox import lanes, store
from outbox.crashpoints import reached
from outbox.errors import OwnershipLost, SchemaMismatch, Stopped, describe
from outbox.lane import Lane, OnSettled
from outbox.observer import Observer
from outbox.patience import persist
from outbox.postgres import Connection, connect
from outbox.publisher import KafkaConfig, Markers, Publisher

log = logging.getLogger(__name__)

SURVEY_S = 0.5  # how soon a lane without an owner is seen
# Idle lanes are looked at again after a quarter of the time that their last batch took, or of the time
# since the last row came, within these: the latency of a row against the load on Postgres.
RING_FIRST_S, RING_LAST_S = 0.002, 0.1
RING_SHARE = 4
MAX_LANES = 32_768  # a lane is a smallint from 0
FINISH_S = 3.0  # how long the lanes may finish what they have in hand when asked to stop


@dataclass
class Tenure:
    """A lane that this relay works or is about to work. trouble: why it does not, for people."""

    number: int
    stop: Event = field(default_factory=Event)
    bell: Event = field(default_factory=Event)
    work: "Future[None]" = field(default_factory=Future)
    lane: Lane | None = None
    trouble: str = "taking"

    def state(self) -> str:
        """Say `working`, or what the lane waits for."""
        lane = self.lane  # once: its own thread may take it away
        return lane.state if lane else self.trouble

    def give_up(self) -> None:
        """End the work between two batches, or sooner if it waits for a server."""
        self.stop.set()
        self.bell.set()


class Relay:
    """Publishes the rows of an outbox to Kafka, exactly once and in order per key.

    conninfo: libpq connection string, of the database with the outbox tables. kafka: librdkafka
    properties, at least bootstrap.servers. on_settled(conn, subjects): called inside the
    transaction that removes published rows; writes on conn, never commits. batch_size: rows a
    transaction. progress_topic: at least one partition a lane, never holds a record. check(conn):
    called in every new session; raises SchemaMismatch if the database is not fit (yet).
    strict_fencing: a new producer epoch for every batch, and not only after trouble with Kafka.
    """

    def __init__(
        self,
        conninfo: str,
        kafka: KafkaConfig,
        on_settled: OnSettled,
        batch_size: int = 1000,
        progress_topic: str = "outbox-progress",
        observer: Observer | None = None,
        check: Callable[[Connection], None] = lambda _conn: None,
        strict_fencing: bool = False,
    ) -> None:
        self._conninfo = conninfo
        self._kafka = kafka
        self._on_settled = on_settled
        self._batch_size = batch_size
        self._progress_topic = progress_topic
        self._observer = observer or Observer()
        self._check = check
        self._strict_fencing = strict_fencing
        self._tenures: dict[int, Tenure] = {}
        self._rang_at = 0.0  # when an idle lane last had a row, monotonic
        self._threads = ThreadPoolExecutor(MAX_LANES, thread_name_prefix="lane")  # grows as needed
        self.trouble: str | None = "not started"  # why the lanes cannot be surveyed, for people

    def states(self) -> dict[int, str]:
        """Say of each lane of this relay `working`, or what it waits for."""
        return {tenure.number: tenure.state() for tenure in tuple(self._tenures.values())}

    def run(self, stop: Event) -> None:
        """Work until `stop` is set, then return within about FINISH_S.

        Servers that are away are waited for. Raises only on a bug; what was in hand is then
        recovered by the next owner.
        """
        try:
            persist(
                lambda good: self._take_part(stop, good),
                (psycopg.Error, SchemaMismatch),
                self._note_trouble,
                stop,
            )
        finally:
            for tenure in self._tenures.values():
                tenure.give_up()
            wait([tenure.work for tenure in self._tenures.values()], timeout=FINISH_S)

    def _take_part(self, stop: Event, good: Callable[[], None]) -> None:
        """One session as a member: look at all relays and lanes, and adjust to them."""
        with closing(connect(self._conninfo, "outbox relay")) as conn:
            self._check(conn)
            identity = store.read_identity(conn)
            lanes.limit_silence(conn)
            lanes.join(conn, identity)
            while not stop.is_set():
                self._adjust(lanes.survey(conn, identity))
                good()
                self._note_trouble(None)
                self._ring(conn, stop)

    def _adjust(self, survey: lanes.Survey) -> None:
        """Give up lanes beyond the share, between two cycles of theirs; take free ones up to it."""
        for tenure in [tenure for tenure in self._tenures.values() if tenure.work.done()]:
            tenure.work.result()  # raises what was a bug
            del self._tenures[tenure.number]
        kept = [tenure for tenure in self._tenures.values() if not tenure.stop.is_set()]
        for tenure in kept[survey.share() :]:
            tenure.give_up()
        for number in survey.free[: max(survey.share() - len(kept), 0)]:
            if number not in self._tenures:
                tenure = self._tenures[number] = Tenure(number)
                tenure.work = self._threads.submit(self._hold, tenure)
        self._observer.lanes_owned(frozenset(self._tenures))

    def _ring(self, conn: Connection, stop: Event) -> None:
        """Until the next survey, wake idle lanes that have rows: one look for all of them."""
        until = time.monotonic() + SURVEY_S
        while time.monotonic() < until and not stop.is_set():
            mine = [lane for tenure in self._tenures.values() if (lane := tenure.lane)]
            idle = {lane.lane: lane.waits_above for lane in mine if lane.idle}
            waiting = store.waiting_lanes(conn, idle) if idle else []
            for number in waiting:
                self._tenures[number].bell.set()
            now = time.monotonic()
            if waiting:
                self._rang_at = now
            longest = max((lane.batch_s for lane in mine), default=0.0)
            pause = max(now - self._rang_at, longest) / RING_SHARE
            stop.wait(min(max(pause, RING_FIRST_S), RING_LAST_S))

    def _hold(self, tenure: Tenure) -> None:
        """The thread of a lane: one session after another, until the lane is given up or lost."""
        persist(
            lambda good: self._own(tenure, good),
            (psycopg.Error, SchemaMismatch, KafkaException),
            lambda error: self._note_session(tenure, error),
            tenure.stop,
        )

    def _own(self, tenure: Tenure, good: Callable[[], None]) -> None:
        """Take the lane and work it in one session."""
        with ExitStack() as stack:
            conn = stack.enter_context(closing(connect(self._conninfo, f"outbox lane {tenure.number}")))
            identity = store.read_identity(conn)
            lanes.limit_silence(conn)
            if not lanes.try_lock(conn, identity, tenure.number):
                return
            epoch = store.take_lane(conn, tenure.number)
            reached("relay.taken")

            def tick() -> None:
                if tenure.stop.is_set():
                    raise Stopped
                conn.execute("SELECT 1")  # keeps the session, and with it the lock
                self._observer.tick(tenure.number)

            markers = Markers(self._kafka, identity, self._progress_topic)
            stack.enter_context(closing(markers))
            publisher = Publisher(tenure.number, self._kafka, identity, markers, tick)
            stack.callback(publisher.discard)
            lane = Lane(
                tenure.number,
                epoch,
                conn,
                publisher,
                self._on_settled,
                self._batch_size,
                tenure.stop,
                tenure.bell,
                self._observer,
                self._strict_fencing,
            )
            tenure.lane = lane
            try:
                lane.work(good)
            except Stopped:
                log.info("batch in hand abandoned", extra={"lane": tenure.number})
            except OwnershipLost as error:
                log.warning(str(error), extra={"lane": tenure.number})

    def _note_session(self, tenure: Tenure, error: Exception) -> None:
        self._observer.tick(tenure.number)
        tenure.lane, before = None, tenure.state()
        tenure.trouble = f"waiting: {describe(error)}"
        if tenure.trouble != before:
            place = {"lane": tenure.number, "state": tenure.trouble}
            log.warning("lane lost its session", extra=place)

    def _note_trouble(self, error: Exception | None) -> None:
        self._observer.tick(None)
        trouble = None if error is None else describe(error)
        if trouble != self.trouble:
            if trouble is None:
                log.info("relay takes part")
            else:
                log.warning("relay waits for Postgres", extra={"error": trouble})
        self.trouble = trouble
