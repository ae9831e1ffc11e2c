"""The Kafka half of the protocol: one transaction for the batches of all lanes, with their markers.

Invariant: a lane's marker is committed in the same transaction as the records of its batch. And a
producer that had any trouble is never used again: librdkafka may have repeated a request, and it lacks
KIP-890, so the first copy of an EndTxn could arrive late and end the next transaction of the same
producer epoch. What came after it would be lost with a broker that does not verify transactions.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, NoReturn, TypeVar
from uuid import UUID

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from outbox.crash_points import crash_point
from outbox.errors import RECORD_ERRORS, InDoubt, RecordRejected
from outbox.evidence import Evidence, EvidenceReader, Search
from outbox.kafka_calls import (
    CALL_SLICE_S,
    PURGED,
    KafkaConfig,
    call_in_slices,
    flush_in_slices,
    kafka_error_in,
)
from outbox.log_reader import read_last_markers
from outbox.markers import Marker, encode_marker, marker_key
from outbox.message import MESSAGE_ID_HEADER, OutboxRow
from outbox.output_topics import OutputTopics
from outbox.producers import DEFAULT_CONFIG, Producers, discard
from outbox.timings import PRODUCTION, Timings

T = TypeVar("T")
RecordHeaders = list[tuple[str, str | bytes | None]]


class Failure(NamedTuple):
    """A delivery report: why a record was not delivered, and the topic that it was for."""

    error: KafkaError
    topic: str | None


class Publisher:
    """A relay's transactional producer: `start` makes a new one, `discard` gives it up.

    tick: called between the slices of a blocking call; may raise to abandon it. transactional_lane: the
    lane whose transactional id the producer has. needs_renewal: a request may have been repeated.
    topics: those that rows go to. marker_topic: where none may go. largest_row: bytes; no broker is
    asked to take a larger one.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        identity: UUID,
        marker_topic: str,
        tick: Callable[[], None],
        timings: Timings = PRODUCTION,
    ) -> None:
        self.transactional_lane = 0
        self.needs_renewal = False
        self._kafka = kafka
        self._identity = identity
        self.marker_topic = marker_topic
        self._tick = tick
        self._timings = timings
        self._timeout_s = timings.kafka_call_s
        self._used_at = 0.0  # the connections, monotonic
        self._failures: list[Failure] = []
        self._producer: Producer | None = None
        self._publishing = False
        record_bytes = int({**DEFAULT_CONFIG, **kafka}["message.max.bytes"])
        self.largest_row = record_bytes * 4 // 3  # its headers are in base64
        self._producers = Producers(
            kafka, identity, tick, self._timeout_s, self._note_delivery, self.note_possible_retry
        )
        self.topics = OutputTopics(kafka, tick, self._timeout_s)
        self._evidence = EvidenceReader(
            kafka, identity, marker_topic, self._producers, self.topics, tick, self._timeout_s
        )

    # ---- the producer -------------------------------------------------------------------------------

    def start(self, transactional_lane: int) -> None:
        """Make a new producer under a lane's transactional id, and fence every older one under it.

        When it returns, no transaction of an older producer is open or can be committed any more.
        Raises InDoubt.
        """
        self._timeout_s = self._timings.kafka_call_s
        self.topics.reconnect()
        self.discard()
        self.transactional_lane = transactional_lane
        self._producer = producer = self._producers.new(transactional_lane)
        self._call(producer.init_transactions)
        self.poll_events()  # the log so far: no transaction was open then
        self.needs_renewal = self._publishing = False
        self._used_at = time.monotonic()
        crash_point("relay.fenced")

    def fence(self, transactional_lanes: Sequence[int]) -> Iterator[int]:
        """Fence other transactional ids; yield each lane whose id is fenced. Raises InDoubt."""
        return self._producers.fence(transactional_lanes)

    def discard(self) -> None:
        """Give the producer up without waiting for Kafka; it is not trusted any more."""
        producer, self._producer = self._producer, None
        self.needs_renewal = self._publishing = False  # of a producer that is gone
        if producer is not None:
            discard(producer)

    @property
    def producer(self) -> Producer:
        """Return the producer. Raises InDoubt if there is none."""
        if self._producer is None:
            raise InDoubt("the producer was given up")
        return self._producer

    # ---- evidence -----------------------------------------------------------------------------------

    def read_evidence(self, searches: Mapping[int, Search]) -> dict[int, Evidence]:
        """Return what Kafka says of each lane's last batch; final after a fence. Raises InDoubt."""
        return self._evidence.read(self.transactional_lane, searches)

    def peek_markers(self, lanes: Collection[int]) -> dict[int, Marker | None]:
        """Return the markers as they seem to stand now; none if Kafka does not answer at once."""
        try:
            return read_last_markers(
                self._kafka, self._identity, self.marker_topic, lanes, CALL_SLICE_S
            )
        except KafkaException:
            return {}

    # ---- a transaction ------------------------------------------------------------------------------

    def publish(self, markers: Mapping[int, Marker], rows: Iterable[OutboxRow]) -> None:
        """Commit the rows of lanes and each lane's marker in one Kafka transaction.

        Raises RecordRejected (a record's own fault) or InDoubt; then recovery finds the outcome.
        """
        self.poll_events()
        if self.needs_renewal:
            raise InDoubt("a request may have been repeated: a new producer is needed")
        self._timeout_s = self._allowed_s()
        self._publishing = True
        self._failures.clear()  # of the batch before: a report of its must not be taken for ours
        try:
            self.producer.begin_transaction()
            self.send_records(rows, markers)
        except (KafkaException, BufferError, SystemError) as error:
            self._raise_failure(error, next(iter(markers)) if len(markers) == 1 else None)
        crash_point("relay.produced")
        self.commit()
        self.poll_events()  # the log so far: what was repeated, was logged before it was answered
        self._publishing = False
        self._used_at = time.monotonic()
        crash_point("relay.published")

    def _allowed_s(self) -> float:
        """Return how long Kafka may take for a batch: not long after a quiet time.

        Then a network may have forgotten our connections, and a new producer has new ones.
        """
        is_quiet = time.monotonic() - self._used_at > self._timings.kafka_quiet_s
        return self._timings.kafka_quiet_s if is_quiet else self._timings.kafka_call_s

    def send_records(self, rows: Iterable[OutboxRow], markers: Mapping[int, Marker]) -> None:
        """Produce records and markers, and wait for all delivery reports. Raises KafkaException."""
        producer = self.producer
        for row in rows:
            headers: RecordHeaders = [*(row.headers or ()), (MESSAGE_ID_HEADER, row.message_id)]
            producer.produce(row.topic, row.value, row.key, headers=headers)
        key = marker_key(self._identity)
        for lane, marker in markers.items():
            producer.produce(self.marker_topic, encode_marker(marker), key, lane)
        flush_in_slices(producer, self._tick, self._timeout_s)
        if self._failures:
            raise KafkaException(self._failures[0].error)

    def commit(self) -> None:
        """Commit the transaction. Raises InDoubt."""
        self._call(self.producer.commit_transaction)

    def poll_events(self) -> None:
        """Take in what the producer reports while nothing is published: a lost connection.

        Raises InDoubt for a fatal error.
        """
        if self._producer is not None:
            try:
                self._producer.poll(0)
            except (KafkaException, SystemError) as error:
                raise InDoubt(str(kafka_error_in(error) or error)) from error

    def note_possible_retry(self, level: int = logging.INFO) -> None:
        """Renew the producer: any request of a transaction may have been repeated.

        Between two transactions only what librdkafka logs at INFO or above counts: then Kafka is away.
        A broker that closes idle connections is no reason.
        """
        self.needs_renewal |= self._publishing or level >= logging.INFO

    def _note_delivery(self, error: KafkaError | None, record: Message) -> None:
        if error is not None:
            self._failures.append(Failure(error, record.topic()))

    def _raise_failure(self, error: Exception, lane: int | None) -> NoReturn:
        """Tell a record's own fault from other failures: the first report that names one decides."""
        named = kafka_error_in(error)
        reports = [one.error for one in self._failures] + ([named] if named else [])
        for report in reports:
            if report.code() in RECORD_ERRORS:
                raise RecordRejected(report.str(), lane) from error
        reason = reports[0].str() if reports else str(error)
        topics = ", ".join(self._failed_topics())
        raise InDoubt(f"topic {topics}: {reason}" if topics else reason) from error

    def _failed_topics(self) -> list[str]:
        """Return the topics whose records failed; none if those of the marker topic did, too."""
        if all(one.error.code() in PURGED for one in self._failures):  # no report, or not yet
            with suppress(InDoubt):
                discard(self.producer)
                self.poll_events()
        told = [one for one in self._failures if one.error.code() not in PURGED] or self._failures
        topics = {str(one.topic) for one in told}
        return [] if self.marker_topic in topics else sorted(topics)

    def _call(self, call: Callable[[float], T]) -> T:
        return call_in_slices(call, self._tick, self._timeout_s)
