"""A barrier: records that show where partitions end, after everything that was sent before.

Invariant: a barrier is acknowledged by all in-sync replicas of each partition, so a read that has
reached it has seen all that was committed before. A broker that was replaced as the leader and does not
know it yet cannot have it, and its answers are not accepted. The transaction is aborted: no
`read_committed` reader ever sees a barrier.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from outbox.errors import InDoubt
from outbox.kafka_calls import PURGED, Partition, call_in_slices, flush_in_slices, kafka_error_in
from outbox.producers import Producers, discard

BARRIER_KEY = b"barrier"
ABORT_S = 1.0
BARRIER_S = 5.0  # longer than a busy broker needs; readers of the partitions wait meanwhile


class BarrierWriter:
    """Writes barriers, under a transactional id that publishes nothing.

    Under that of the publishing producer, a late copy of the end of an aborted barrier would abort what
    is published next.
    """

    def __init__(
        self,
        producers: Producers,
        transactional_lane: int,
        tick: Callable[[], None],
        timeout_s: float,
    ) -> None:
        self._producers = producers
        self._transactional_lane = transactional_lane
        self._tick = tick
        self._timeout_s = min(timeout_s, BARRIER_S)
        self._producer: Producer | None = None

    def write(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        """Return the end offset of each partition, right after its barrier. Raises InDoubt.

        After an error the next call begins with a new producer.
        """
        producer, self._producer = self._producer, None
        if producer is None:
            producer = self._producers.new_for_barriers(self._transactional_lane)
            call_in_slices(producer.init_transactions, self._tick, self._timeout_s)
        try:
            offsets = self._send(producer, partitions)
            call_in_slices(producer.abort_transaction, self._tick, self._timeout_s)
        except (KafkaException, BufferError, SystemError) as error:
            give_up(producer)
            named = kafka_error_in(error)
            raise InDoubt(f"barrier: {named.str() if named else error}") from error
        except BaseException:
            give_up(producer)
            raise
        self._producer = producer
        return offsets

    def _send(self, producer: Producer, partitions: Collection[Partition]) -> dict[Partition, int]:
        offsets: dict[Partition, int] = {}
        failures: list[KafkaError] = []

        def note(error: KafkaError | None, record: Message) -> None:
            if error is not None:
                failures.append(error)
            elif (offset := record.offset()) is not None and offset >= 0:
                offsets[str(record.topic()), int(record.partition() or 0)] = offset + 1

        producer.begin_transaction()
        for topic, partition in partitions:
            producer.produce(topic, None, BARRIER_KEY, partition=partition, on_delivery=note)
        flush_in_slices(producer, self._tick, self._timeout_s)
        if failures:
            raise KafkaException(cause_of(failures, producer))
        if left := set(partitions) - offsets.keys():  # repeated, and the broker has forgotten where
            raise InDoubt(f"barrier: the brokers do not say where it is in {sorted(left)}")
        return offsets

    def close(self) -> None:
        """Give the producer up."""
        if self._producer is not None:
            discard(self._producer)
            self._producer = None


def cause_of(failures: Sequence[KafkaError], producer: Producer) -> KafkaError:
    """Return why records failed: where the transaction failed first, only its commit says so."""
    if told := [one for one in failures if one.code() not in PURGED]:
        return told[0]
    try:
        producer.commit_transaction(ABORT_S)  # which is refused
    except KafkaException as error:
        return KafkaError(error.args[0].code(), error.args[0].str().partition(" (after ")[0])
    return failures[0]


def give_up(producer: Producer) -> None:
    """End an open barrier if that is quickly done, then discard: else readers wait for its time-out."""
    with suppress(KafkaException, SystemError):
        producer.abort_transaction(ABORT_S)
    discard(producer)
