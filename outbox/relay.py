"""The relay: one session after another, in each of which it works its share of the lanes.

Invariant: a lane is worked only in the session that holds its advisory lock, under the epoch taken in
that same session. Whatever ends the session ends the tenure: the next one takes new epochs and recovers
before it does anything else.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack, closing
from threading import Event

import psycopg
from confluent_kafka import KafkaException

from outbox import membership as lanes
from outbox import store
from outbox.backoff import LIMIT_S, persist
from outbox.errors import DatabaseNotReady, OwnershipLost, Stopped, error_text
from outbox.observer import Observer
from outbox.postgres import Connection, connect
from outbox.publisher import KafkaConfig, MarkerReader, Publisher
from outbox.session import OnPublished, Tenure

log = logging.getLogger(__name__)


class Relay:
    """Publishes the rows of an outbox to Kafka, exactly once and in order per key.

    conninfo: libpq connection string, of the database with the outbox tables. kafka: librdkafka
    properties, at least bootstrap.servers. on_published(conn, aggregate_ids): called inside the
    transaction that removes published rows; writes on conn, never commits. batch_size: rows of each
    lane in a transaction. marker_topic: at least one partition a lane, never holds a record.
    check(conn): called in every new session; raises DatabaseNotReady if the database is not fit (yet).
    strict_fencing: a new producer epoch for every batch, and not only after trouble with Kafka.
    """

    def __init__(
        self,
        conninfo: str,
        kafka: KafkaConfig,
        on_published: OnPublished,
        batch_size: int = 1000,
        marker_topic: str = "outbox-markers",
        observer: Observer | None = None,
        check: Callable[[Connection], None] = lambda _conn: None,
        strict_fencing: bool = False,
    ) -> None:
        self._conninfo = conninfo
        self._kafka = kafka
        self._on_acknowledged = on_published
        self._batch_size = batch_size
        self._progress_topic = marker_topic
        self._observer = observer or Observer()
        self._check = check
        self._strict_fencing = strict_fencing
        self._tenure: Tenure | None = None  # the last one, while a new session is tried for
        self.trouble: str | None = "not started"  # why there is no session, for people

    def states(self) -> dict[int, str]:
        """Say of each lane of this relay `working`, or what it waits for."""
        held = tuple(self._tenure.owned.lanes.values()) if self._tenure else ()
        return {
            lane.number: f"waiting: {self.trouble}" if self.trouble else lane.state for lane in held
        }

    def run(self, stop: Event) -> None:
        """Work until `stop` is set, then return after the batch in hand, or within about a second.

        Servers that are away are waited for. Raises only on a bug; what was in hand is then
        recovered by the next owner.
        """
        try:
            persist(
                lambda good: self._take_part(stop, good),
                (psycopg.Error, DatabaseNotReady, OwnershipLost, KafkaException),
                self._note_trouble,
                stop,
                LIMIT_S,
            )
        except Stopped:
            log.info("batch in hand abandoned")

    def _take_part(self, stop: Event, good: Callable[[], None]) -> None:
        """One session: join the other relays, and work until it ends."""
        with ExitStack() as stack:
            conn = stack.enter_context(closing(connect(self._conninfo, lanes.RELAY_SESSION)))
            self._check(conn)
            identity = store.read_identity(conn)
            lanes.limit_silence(conn)
            lanes.join(conn, identity)

            def tick() -> None:
                if stop.is_set():
                    raise Stopped
                conn.execute("SELECT 1")  # keeps the session, and with it the locks
                self._observer.tick()

            markers = MarkerReader(self._kafka, identity, self._progress_topic)
            stack.enter_context(closing(markers))
            publisher = Publisher(self._kafka, identity, markers, tick)
            stack.callback(publisher.discard)
            tenure = Tenure(
                conn,
                identity,
                publisher,
                self._on_acknowledged,
                self._batch_size,
                stop,
                self._observer,
                self._strict_fencing,
            )
            self._tenure = tenure
            self._note_trouble(None)
            tenure.work(good)

    def _note_trouble(self, error: Exception | None) -> None:
        self._observer.tick()
        trouble = None if error is None else error_text(error)
        if trouble != self.trouble:
            if trouble is None:
                log.info("relay takes part")
            else:
                log.warning("relay waits", extra={"error": trouble})
        self.trouble = trouble
