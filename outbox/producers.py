"""Transactional producers under the lanes' transactional ids: how they are made, and how they fence.

Invariant: a new producer fences every older one under its id. When `init_transactions` has returned, no
transaction of an older producer is open or can be committed any more.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from uuid import UUID

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from outbox.errors import InDoubt
from outbox.kafka_calls import KafkaConfig, call_in_slices
from outbox.retry_detector import RetryDetector

FENCES_AT_ONCE = 32
BEGIN_S = 0.001  # long enough for a call to begin

DEFAULT_CONFIG: KafkaConfig = {
    "transaction.timeout.ms": 10_000,  # how long a frozen relay's transaction can hold up readers
    "retry.backoff.ms": 2,  # the default costs 100 ms whenever the coordinator still finishes
    "retry.backoff.max.ms": 50,  # the transaction before
    "linger.ms": 5,  # fills requests while a batch is produced; flush() does not wait for it
    "message.max.bytes": 67_108_864,  # the topic's limit decides, not the client's
    "queue.buffering.max.messages": 0,  # no limit: a whole batch, whatever its size
}

# Users cannot change these: kafka_config.py refuses all but `debug`, which is for the other clients.
REQUIRED_CONFIG: KafkaConfig = {
    "enable.idempotence": True,
    "acks": "all",
    "allow.auto.create.topics": False,
    "delivery.report.only.error": True,  # no callback a message
    # A request that may have been repeated shows only in the log, and only with this debug context
    # (rd_kafka_broker_set_error): a loss like the ones before within 30 s, or a connection that the
    # client closes after a time-out, is logged at no other level. Four more lines a transaction.
    "debug": "broker",
    "log_level": 7,
    "log.connection.close": True,
}

# A barrier is aborted within milliseconds: if its writer dies, readers wait for it no longer than this.
BARRIER_CONFIG: KafkaConfig = {
    "delivery.report.only.error": False,
    "transaction.timeout.ms": 5000,
    # The client connects to the coordinator at once; else it often looks again only after 0.5 s.
    "enable.sparse.connections": False,
}

OnDelivery = Callable[[KafkaError | None, Message], None]


class Producers:
    """Makes a relay's producers, all configured alike.

    tick: called between the slices of a blocking call; may raise to abandon it.
    on_possible_retry(level): a request may have been repeated.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        identity: UUID,
        tick: Callable[[], None],
        timeout_s: float,
        on_delivery: OnDelivery,
        on_possible_retry: Callable[[int], None],
    ) -> None:
        self._tick = tick
        self._timeout_s = timeout_s
        self._config = {**DEFAULT_CONFIG, **kafka, **REQUIRED_CONFIG, "on_delivery": on_delivery}
        self._prefix = f"outbox-{identity}-"
        self._log = logging.Logger("librdkafka", logging.DEBUG)  # noqa: LOG001  # these producers' alone
        self._log.addHandler(RetryDetector(on_possible_retry))

    def new(self, transactional_lane: int) -> Producer:
        """Make a producer under a lane's transactional id. Raises InDoubt."""
        return self._new(f"{transactional_lane}", {})

    def new_for_barriers(self, transactional_lane: int) -> Producer:
        """Make a producer that reports where records are, under an id of its own. Raises InDoubt."""
        return self._new(f"barrier-{transactional_lane}", BARRIER_CONFIG)

    def _new(self, name: str, changed: KafkaConfig) -> Producer:
        config = {**self._config, **changed, "transactional.id": f"{self._prefix}{name}"}
        try:
            return Producer(config, logger=self._log)
        except KafkaException as error:  # a setting that only the whole configuration shows wrong
            raise InDoubt(error.args[0].str()) from error

    def fence(self, transactional_lanes: Sequence[int]) -> Iterator[int]:
        """Fence transactional ids, and keep no producer; yield each lane whose id is fenced.

        Many at a time: the client takes 0.2 s for each and does next to nothing in it. Raises InDoubt.
        """
        for first in range(0, len(transactional_lanes), FENCES_AT_ONCE):
            yield from self._fence_at_once(transactional_lanes[first : first + FENCES_AT_ONCE])

    def _fence_at_once(self, transactional_lanes: Sequence[int]) -> Iterator[int]:
        producers = [self.new(lane) for lane in transactional_lanes]
        for producer in producers:
            with suppress(KafkaException, SystemError):  # which come again below
                producer.init_transactions(BEGIN_S)  # goes on in the background
        doubt: InDoubt | None = None
        for lane, producer in zip(transactional_lanes, producers, strict=True):
            self._tick()
            try:
                timeout_s = 0.0 if doubt else self._timeout_s
                call_in_slices(producer.init_transactions, self._tick, timeout_s)
            except InDoubt as error:
                doubt = doubt or error  # the others that are fenced must still be known as such
            else:
                yield lane
        if doubt:
            raise doubt


def try_producers(kafka: KafkaConfig) -> None:
    """Make the producers of a relay, without an address: librdkafka checks all properties together.

    Raises KafkaException.
    """
    config = {**DEFAULT_CONFIG, **kafka, **REQUIRED_CONFIG, "transactional.id": "trial"}
    for unwanted in ("bootstrap.servers", "debug"):
        config.pop(unwanted, None)
    silent = logging.Logger("trial", logging.CRITICAL)  # noqa: LOG001  # of clients that do no work
    for changed in ({}, BARRIER_CONFIG):
        Producer({**config, **changed}, logger=silent)


def discard(producer: Producer) -> None:
    """Give a producer up without waiting for Kafka."""
    with suppress(KafkaException):
        producer.purge()  # or its destructor waits for messages that are no longer wanted
