"""The Kafka half of the protocol: one transaction for the batches of all lanes, their markers in it.

Invariant: a lane's marker (group offset `batch_number` on its partition of the marker topic) is committed in
the same transaction as the records it speaks for, last. So reading the marker after a fence tells
whether the batch is in Kafka. And a producer that had any trouble is never used again: librdkafka
repeats a request by itself when its connection or its patience ends, and lacks KIP-890. So the first
EndTxn could arrive late and end the next transaction of the same producer epoch: rows of it are
committed without their marker, and sent again.
"""

import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import NamedTuple, NoReturn, TypeVar
from uuid import UUID

from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from outbox.crash_points import crash_point
from outbox.errors import RECORD_ERRORS, InDoubt, RecordRejected
from outbox.message import OutboxRow, decode_headers

T = TypeVar("T")
KafkaConfig = Mapping[str, str | int | float | bool]

SLICE_S = 1.0  # the longest a client call blocks before the owner's `tick` runs (SIGTERM, ping)
CALL_LIMIT_S = 15.0  # the broker's transaction time-out and a half: then the producer is in doubt
RETRY_PAUSE_S = 0.01  # some retriable errors come back at once
FENCES_AT_ONCE = 32
BEGIN_S = 0.001  # long enough for a call to begin

PRODUCER: KafkaConfig = {
    "transaction.timeout.ms": 10_000,  # how long a frozen relay's transaction can hold up readers
    "retry.backoff.ms": 2,  # the default costs 100 ms whenever the coordinator still finishes
    "retry.backoff.max.ms": 50,  # the transaction before
    "linger.ms": 5,  # fills requests while a batch is produced; flush() does not wait for it
    "message.max.bytes": 67_108_864,  # the topic's limit decides, not the client's
    "queue.buffering.max.messages": 0,  # no limit: a whole batch, whatever its size
}

# What the user cannot change.
ALWAYS: KafkaConfig = {
    "enable.idempotence": True,
    "acks": "all",
    "delivery.report.only.error": True,  # no callback a message
    # What makes librdkafka repeat a request is told nowhere but in its log, and all of it only by this
    # debug context (rd_kafka_broker_set_error): a loss like the ones before within 30 s, or a closing
    # of its own, after a time-out say, is told no louder. Four more lines a transaction come with it.
    "debug": "broker",
    "log_level": 7,
    "log.connection.close": True,
}


class Marker(NamedTuple):
    """What Kafka knows of a lane: its last batch, and how many rows that had; None: not noted.

    A batch that Kafka refuses is narrowed under its number. Were that lost in Postgres, by a restore or
    a failover, the number alone would take rows for published that were left out.
    """

    batch_number: int
    rows: int | None = None


def marker_group(identity: UUID) -> str:
    """Return the name of the group that holds the markers of an outbox."""
    return f"outbox-{identity}"


class MarkerReader:
    """Reads the lanes' markers: a member of no group, so the group can never rebalance."""

    def __init__(self, kafka: KafkaConfig, identity: UUID, topic: str) -> None:
        self.topic = topic
        self._consumer = Consumer(
            {
                **kafka,
                "group.id": marker_group(identity),
                "isolation.level": "read_committed",  # committed() waits for pending transactions
                "enable.auto.commit": False,
                "log_level": 0,  # nobody polls it; what goes wrong shows itself in the calls
            }
        )
        self.group_metadata = self._consumer.consumer_group_metadata()

    def read(self, lanes: Iterable[int], timeout_s: float) -> dict[int, Marker | None]:
        """Return each lane's marker, None if Kafka has none. Raises KafkaException."""
        asked = [TopicPartition(self.topic, lane) for lane in lanes]
        found = self._consumer.committed(asked, timeout=timeout_s)
        for one in found:
            if one.error:
                raise KafkaException(one.error)
        return {one.partition: marker_of(one.offset, one.metadata or "") for one in found}

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()


def marker_of(offset: int, metadata: str) -> Marker | None:
    """Return what a committed offset and the text beside it say; a stranger may write any text."""
    if offset == OFFSET_INVALID:
        return None
    return Marker(offset, int(metadata) if metadata.isdecimal() else None)


class Publisher:
    """A relay's transactional producer: made anew by `start`, thrown away by `discard`.

    tick: called between slices of a blocking call; may raise to abandon it.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        identity: UUID,
        markers: MarkerReader,
        tick: Callable[[], None],
    ) -> None:
        self._markers = markers
        self._tick = tick
        self._failures: list[KafkaError] = []
        self._producer: Producer | None = None
        self._caller: ThreadPoolExecutor  # of the producer's calls that cannot be trusted to return
        self.disturbed = False  # had trouble in silence: renew before the next batch
        self._publishing = False
        self._config = {
            **PRODUCER,
            **kafka,
            **ALWAYS,
            "on_delivery": self._note_delivery,
        }
        self._prefix = f"outbox-{identity}-"
        self._log = logging.Logger("librdkafka", logging.DEBUG)  # noqa: LOG001  # this producer's alone
        self._log.addHandler(RequestWatch(self._disturb))

    def start(self, transactional_lane: int) -> None:
        """Make a new producer under a lane's transactional id, and fence every older one under it.

        When it returns, no transaction of an older producer is open or can be committed any more.
        Raises InDoubt.
        """
        self.discard()
        self._producer = producer = self._make(transactional_lane)
        self._caller = ThreadPoolExecutor(1, thread_name_prefix="marker")
        self._in_slices(producer.init_transactions)
        self.serve()  # the log so far: no transaction was open then
        self.disturbed = self._publishing = False
        crash_point("relay.fenced")

    def fence(self, transactional_lanes: Sequence[int]) -> Iterator[int]:
        """Do the same for ids that are not to be ours; yield each as it is done. Raises InDoubt.

        Many at a time, since the client takes 0.2 s for each and does next to nothing in it.
        """
        for first in range(0, len(transactional_lanes), FENCES_AT_ONCE):
            yield from self._fence_at_once(transactional_lanes[first : first + FENCES_AT_ONCE])

    def _fence_at_once(self, transactional_lanes: Sequence[int]) -> Iterator[int]:
        producers = [self._make(transactional_lane) for transactional_lane in transactional_lanes]
        for producer in producers:
            with suppress(KafkaException, SystemError):  # which come again below
                producer.init_transactions(BEGIN_S)  # goes on in the background
        trouble: InDoubt | None = None
        for transactional_lane, producer in zip(transactional_lanes, producers, strict=True):
            self._tick()
            try:
                self._in_slices(producer.init_transactions, 0.0 if trouble else CALL_LIMIT_S)
            except InDoubt as error:
                trouble = trouble or error  # of one; those that are done are to be known as such
            else:
                yield transactional_lane
        if trouble:
            raise trouble

    def _make(self, transactional_lane: int) -> Producer:
        named = self._config | {"transactional.id": f"{self._prefix}{transactional_lane}"}
        try:
            return Producer(named, logger=self._log)
        except KafkaException as error:  # a setting that only the whole configuration shows wrong
            raise InDoubt(error.args[0].str()) from error

    def read_markers(self, lanes: Collection[int]) -> dict[int, Marker | None]:
        """Return each lane's last batch in Kafka. Only after `start` is it the last word."""
        return self._in_slices(lambda timeout_s: self._markers.read(lanes, timeout_s))

    def peek_markers(self, lanes: Collection[int]) -> dict[int, Marker | None]:
        """Return the markers as they seem to stand now; none if Kafka does not say at once."""
        try:
            return self._markers.read(lanes, SLICE_S)
        except KafkaException:
            return {}

    def publish(self, markers: Mapping[int, Marker], rows: Iterable[OutboxRow]) -> None:
        """Commit the rows of lanes and each lane's marker in one Kafka transaction.

        Raises RecordRejected (a record's own fault) or InDoubt; then the outcome is for recovery.
        """
        self.serve()
        if self.disturbed:
            raise InDoubt("the producer had trouble in silence")
        producer = self._usable()
        self._failures.clear()
        self._publishing = True
        try:
            producer.begin_transaction()
            self._produce(producer, rows)
            self._flush(producer)
        except (KafkaException, BufferError, SystemError) as error:
            self._raise_failure(error)
        crash_point("relay.produced")
        self._mark(producer, markers)
        crash_point("relay.marked")
        self._in_slices(producer.commit_transaction)
        self.serve()  # the log so far: what was repeated, was logged before it was answered
        self._publishing = False
        crash_point("relay.published")

    def serve(self) -> None:
        """Take in what the producer has to say while nothing is published: a lost connection.

        Raises InDoubt for a fatal error.
        """
        if self._producer is not None:
            try:
                self._producer.poll(0)
            except (KafkaException, SystemError) as error:
                raise InDoubt(str(fault_of(error) or error)) from error

    def discard(self) -> None:
        """Throw the producer away without waiting for Kafka; nothing more of it is trusted."""
        producer, self._producer = self._producer, None
        if producer is not None:
            self._caller.shutdown(wait=False)
            with suppress(KafkaException):
                producer.purge()  # or its destructor waits for messages that nobody wants any more

    def _usable(self) -> Producer:
        if self._producer is None:
            raise InDoubt("the producer was given up")
        return self._producer

    def _produce(self, producer: Producer, rows: Iterable[OutboxRow]) -> None:
        for row in rows:
            if row.headers is None:
                producer.produce(row.topic, row.value, row.key)
            else:
                producer.produce(row.topic, row.value, row.key, headers=[*decode_headers(row.headers)])

    def _flush(self, producer: Producer) -> None:
        """Wait for all delivery reports. Raises KafkaException."""
        limit = time.monotonic() + CALL_LIMIT_S
        while producer.flush(SLICE_S):
            if time.monotonic() > limit:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "delivery reports"))
            self._tick()
        if self._failures:
            raise KafkaException(self._failures[0])

    def _mark(self, producer: Producer, markers: Mapping[int, Marker]) -> None:
        """Add the markers to the transaction. Raises InDoubt.

        In a thread of its own: librdkafka may ignore this call's time-out when the coordinator is
        away (librdkafka issue 5456). Then producer and thread are left behind, and a fence follows.
        """
        offsets = [
            TopicPartition(self._markers.topic, lane, batch_number, "" if rows is None else str(rows))
            for lane, (batch_number, rows) in markers.items()
        ]
        call = self._caller.submit(
            producer.send_offsets_to_transaction, offsets, self._markers.group_metadata, CALL_LIMIT_S
        )
        limit = time.monotonic() + CALL_LIMIT_S
        while not wait([call], timeout=SLICE_S).done:
            if time.monotonic() > limit:
                raise InDoubt("the markers were not acknowledged in time")
            self._tick()
        if error := call.exception():
            raise InDoubt(str(error)) from error

    def _raise_failure(self, error: Exception) -> NoReturn:
        """Tell a record's own fault from trouble: the first report that names one decides."""
        fault = fault_of(error)
        reports = [*self._failures, *([fault] if fault else [])]
        for report in reports:
            if report.code() in RECORD_ERRORS:
                raise RecordRejected(report.str()) from error
        raise InDoubt(reports[0].str() if reports else str(error)) from error

    def _in_slices(self, call: Callable[[float], T], limit_s: float = CALL_LIMIT_S) -> T:
        """Repeat a blocking call, a slice at a time, until it answers. Raises InDoubt."""
        limit = time.monotonic() + limit_s
        while True:
            try:
                return call(SLICE_S)
            except KafkaException as raised:
                if not _may_repeat(raised.args[0]) or time.monotonic() > limit:
                    raise InDoubt(raised.args[0].str()) from raised
            except SystemError as raised:
                raise InDoubt(str(fault_of(raised) or raised)) from raised
            self._tick()
            time.sleep(RETRY_PAUSE_S)

    def _note_delivery(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._failures.append(error)

    def _disturb(self, level: int = logging.INFO) -> None:
        """Renew the producer: any request of a transaction may have been repeated.

        Between two transactions only what librdkafka finds worth telling counts, since Kafka is away
        then; a broker that closes idle connections is no trouble.
        """
        self.disturbed |= self._publishing or level >= logging.INFO


def fault_of(error: Exception) -> KafkaError | None:
    """Return what Kafka said; the client wraps a fatal error that meets a call of its logger."""
    named = error.__cause__ if isinstance(error, SystemError) else error
    return named.args[0] if isinstance(named, KafkaException) else None


def _may_repeat(error: KafkaError) -> bool:
    """Say whether the same call may be made again: it goes on where it stood."""
    if error.fatal() or error.txn_requires_abort():
        return False
    return bool(error.retriable() or error.code() == KafkaError._TIMED_OUT)


class RequestWatch(logging.Handler):
    """Reads librdkafka's log for what makes it send a request again: FAIL, a connection has ended, and
    REQTMOUT, an answer did not come in time. Errors go on to the ordinary log.

    Nothing else tells: error_cb is not called, and the call that waits for the answer succeeds.
    """

    def __init__(self, on_trouble: Callable[[int], None]) -> None:
        super().__init__(logging.DEBUG)
        self._on_trouble = on_trouble

    def emit(self, record: logging.LogRecord) -> None:
        """Take one line of the log."""
        text = record.getMessage()
        if text.startswith(("FAIL", "REQTMOUT")) and not NEVER_CONNECTED.search(text):
            self._on_trouble(record.levelno)
        if record.levelno >= logging.ERROR:
            logging.getLogger("librdkafka").handle(record)


NEVER_CONNECTED = re.compile("in state (TRY_)?CONNECT|Failed to resolve")
