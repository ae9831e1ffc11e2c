"""The relay: one session after another, in each of which it works its share of the lanes.

Invariant: a lane is worked only in the session that holds its advisory lock, under the epoch taken in
that same session. Whatever ends the session ends its ownership: the next session takes new epochs and
recovers before it does anything else.
"""

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from threading import Event

import psycopg
from confluent_kafka import KafkaException

from outbox import lane_rows, membership
from outbox.backoff import MAX_BACKOFF_S, Backoff
from outbox.enqueue import count_lanes
from outbox.errors import DatabaseNotReady, OwnershipLost, Stopped, error_text
from outbox.kafka_answers import KafkaAnswers
from outbox.kafka_calls import KafkaConfig
from outbox.kafka_config import DEFAULTS, check_kafka_config
from outbox.kafka_probe import KafkaProbe
from outbox.lane import LaneState, LaneStatus
from outbox.observer import Observer
from outbox.options import OnPublished, RelayOptions
from outbox.ownership import OwnedLanes
from outbox.postgres import Connection, connect
from outbox.producers import try_producers
from outbox.publisher import Publisher
from outbox.session import RelaySession
from outbox.timings import PRODUCTION, Timings, with_overrides

log = logging.getLogger(__name__)

# A new session may cure these; any other error is a bug.
RETRIED = (psycopg.Error, DatabaseNotReady, OwnershipLost, KafkaException)


class Relay:
    """Publishes the rows of an outbox to Kafka, exactly once and in order per key.

    conninfo: libpq connection string, of the database with the outbox tables. kafka: librdkafka
    properties, at least bootstrap.servers. on_published(conn, aggregate_ids): called inside the
    transaction that deletes published rows; writes on conn, never commits. It must wait for no lock: it
    returns the ids that it could not do without; these, and all of a call that Postgres refuses, are
    deferred (outbox.deferred). batch_size: rows of each lane in a transaction. marker_topic: compacted,
    with at least one partition a lane; only relays write to it. check_database(conn): called in every
    new session; raises DatabaseNotReady if the database is not fit (yet). strict_fencing: a new
    producer epoch for every batch, and not only after trouble with Kafka. repair_command(lane): what to
    tell operators of a refused lane, in the log. topics: the only ones that it may send to; a row for
    another one is parked. None: any, so that a login that may write to the outbox may write to all
    topics that this relay's user may.

    Raises ValueError if `kafka` holds a property on which the guarantee rests, or properties with which
    no producer can be made.
    """

    def __init__(
        self,
        conninfo: str,
        kafka: KafkaConfig,
        on_published: OnPublished,
        batch_size: int = 1000,
        marker_topic: str = "outbox-markers",
        observer: Observer | None = None,
        check_database: Callable[[Connection], None] = lambda _conn: None,
        strict_fencing: bool = False,
        timings: Timings | None = None,
        repair_command: Callable[[int], str] = "repair lane {}".format,
        schema: str = "",
        topics: Collection[str] | None = None,
    ) -> None:
        check_kafka_config(kafka)
        try:
            try_producers(kafka)
        except KafkaException as error:
            raise ValueError(error.args[0].str()) from None
        self._conninfo = conninfo
        self._schema = schema
        self._kafka = {**DEFAULTS, **kafka}
        self._marker_topic = marker_topic
        self._check_database = check_database
        self._options = RelayOptions(
            on_published,
            batch_size,
            strict_fencing,
            observer or Observer(),
            timings or with_overrides(PRODUCTION),
            repair_command,
            None if topics is None else frozenset(topics),
        )
        self._answers = KafkaAnswers(self._options.timings)
        self._session: RelaySession | None = None  # the last one, while a new one is tried
        self._logged: set[str] = set()  # reasons, since there was a session
        self.last_error: str | None = "not started"  # why there is no session, for operators

    def lanes(self) -> dict[int, LaneStatus]:
        """Return the status of each lane of this relay."""
        owned = tuple(self._session.owned.lanes.values()) if self._session else ()
        if self.last_error:
            waiting = LaneStatus(LaneState.RECOVERING, self.last_error)
            return {lane.number: waiting for lane in owned}
        return {lane.number: lane.status for lane in owned}

    @property
    def kafka_error(self) -> str | None:
        """Return why Kafka does not answer this relay, so that others have its lanes; None: it does."""
        return self._answers.error

    def run(self, stop: Event) -> None:
        """Work until `stop` is set, then return after the current batch, or within about a second.

        Servers that are away are retried with back-off. Raises only on a bug; the next owner then
        recovers the current batch.
        """
        backoff = Backoff(stop, min_healthy_s=MAX_BACKOFF_S)
        while not stop.is_set():
            try:
                with self._open_session(stop) as session:
                    session.run(backoff.healthy)
            except RETRIED as error:
                self._set_error(error)
                self._options.observer.lanes_owned(frozenset())  # they went with the session
                backoff.wait()
            except Stopped:
                log.info("relay stopped", extra={"abandoned": True})
                return

    @contextmanager
    def _open_session(self, stop: Event) -> Iterator[RelaySession]:
        """Connect to Postgres and join the other relays; close everything at the end."""
        with ExitStack() as stack:
            conn = stack.enter_context(
                closing(connect(self._conninfo, membership.RELAY_SESSION, schema=self._schema))
            )
            self._check_database(conn)
            identity, lanes = lane_rows.read_identity(conn), count_lanes(conn)
            membership.join(conn, identity)
            membership.set_idle_timeout(conn, self._options.timings.session_silence_s)

            owned = OwnedLanes(conn, identity, self._answers, self._options)

            def tick() -> None:
                if stop.is_set():
                    raise Stopped
                owned.tick()
                self._options.observer.tick()

            probe = KafkaProbe(self._kafka, identity, self._marker_topic, self._answers)
            stack.enter_context(probe.running())
            publisher = Publisher(
                self._kafka, identity, self._marker_topic, tick, self._options.timings
            )
            stack.callback(publisher.discard)
            self._session = RelaySession(conn, owned, publisher, self._answers, self._options, stop)
            self._session.batches.park_strays(lanes)
            self._set_error(None)
            yield self._session

    def _set_error(self, error: Exception | None) -> None:
        """Keep why there is no session; log each reason once until there is one."""
        self._options.observer.tick()
        text = None if error is None else error_text(error)
        if text is None:
            if self.last_error is not None:
                log.info("relay connected")
            self._logged.clear()
        elif text not in self._logged:
            log.warning("relay waiting", extra={"error": text, "next": "trying again"})
            self._logged.add(text)
        self.last_error = text
