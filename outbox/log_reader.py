"""Reads partitions as far as a barrier: what a `read_committed` reader sees, and no older state.

Each read has a client of its own, so it never waits on a connection that the network has forgotten.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from typing import NamedTuple
from uuid import UUID

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]  # public, not in __all__

from outbox.errors import InDoubt
from outbox.kafka_calls import KafkaConfig, Partition, new_admin_client
from outbox.markers import Marker, decode_marker, marker_key

READER_CONFIG: KafkaConfig = {
    "group.id": "none",  # required by the client; it joins no group and commits nothing
    "isolation.level": "read_committed",
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "earliest",  # the caller has compared the log start
    "enable.partition.eof": True,
    "check.crcs": True,
    "fetch.wait.max.ms": 10,  # so late does a broker report the end of the log
    "log_level": 0,
}
# The client looks for the coordinator of its group, which we neither join nor need a permission for.
HARMLESS_ERRORS = frozenset({KafkaError._PARTITION_EOF, KafkaError.GROUP_AUTHORIZATION_FAILED})
RECORDS_AT_ONCE = 1000
CONSUME_S = 0.01  # it waits so long for as many records, even where the end has been reached
OPEN_TRANSACTION_S = 2.0  # the last stable offset may stand still so long before it counts as held up


class Range(NamedTuple):
    """A partition's records from `start` to before `end`."""

    start: int
    end: int


class HeldUp(Exception):
    """The last stable offset stays below the end of a range: another transaction is open."""

    def __init__(self, at: Mapping[Partition, int]) -> None:
        super().__init__("held up")
        self.at = at


def read_committed(
    kafka: KafkaConfig,
    ranges: Mapping[Partition, Range],
    tick: Callable[[], None],
    timeout_s: float,
) -> Iterator[Message]:
    """Yield the committed records of the ranges. Raises HeldUp at the end, or InDoubt.

    A range is done when the reader has come to its end, by a record or by the end of the log.
    """
    left = dict(ranges)
    ends: dict[Partition, int] = {}  # where the log ended so far, for those that are left
    with closing(Consumer({**kafka, **READER_CONFIG})) as reader:
        reader.assign([TopicPartition(*one, range_.start) for one, range_ in left.items()])
        progress_at = ticked_at = time.monotonic()
        while left:
            for record in reader.consume(RECORDS_AT_ONCE, CONSUME_S):
                partition = _partition_of(record)
                if partition not in left:
                    continue
                offset, progress_at = int(record.offset() or 0), time.monotonic()
                if record.error() is None and offset < left[partition].end:
                    yield record
                    continue
                ends[partition] = offset
                if offset >= left[partition].end:
                    del left[partition]
                    reader.incremental_unassign([TopicPartition(*partition)])
            now = time.monotonic()
            if left.keys() <= ends.keys() and now > progress_at + OPEN_TRANSACTION_S:
                raise HeldUp({partition: ends[partition] for partition in left})
            if now > progress_at + timeout_s:
                raise InDoubt(f"{name(next(iter(left)))} cannot be read")
            if now > ticked_at + 1.0:
                ticked_at = now
                tick()


def _partition_of(record: Message) -> Partition:
    """Return a record's partition. Raises InDoubt if it is an error that stops the reading."""
    error = record.error()
    if error is not None and error.code() not in HARMLESS_ERRORS:
        raise InDoubt(f"reading {record.topic()}: {error.str()}")
    return str(record.topic()), int(record.partition() or 0)


def describe_held_up(held: HeldUp) -> str:
    """Say in one line where the log is held up."""
    partition, offset = next(iter(held.at.items()))
    return f"{name(partition)}: a transaction of another producer is open at offset {offset}"


def name(partition: Partition) -> str:
    """Return a partition as text."""
    return f"{partition[0]}[{partition[1]}]"


FIRST_DISTANCE = 16  # records before the barrier


def read_markers(
    kafka: KafkaConfig,
    identity: UUID,
    topic: str,
    ends: Mapping[int, int],
    tick: Callable[[], None],
    timeout_s: float,
) -> tuple[dict[int, Marker | None], dict[int, str]]:
    """Return the last marker of each lane before an offset, None if it has none; and what is held up.

    Backwards, in steps that grow: the last marker is near the end, and compaction leaves gaps. ends:
    by lane; a barrier's, or nothing is proved. Held up are lanes in whose partition another producer's
    transaction is open, each with the reason. Raises InDoubt.
    """
    found: dict[int, Marker | None] = {}
    held_up: dict[int, str] = {}
    distance = FIRST_DISTANCE
    while wanted := ends.keys() - found.keys() - held_up.keys():
        ranges = {(topic, lane): Range(max(ends[lane] - distance, 0), ends[lane]) for lane in wanted}
        seen: dict[int, Marker | None] = {}
        try:
            for record in read_committed(kafka, ranges, tick, timeout_s):
                if record.key() == marker_key(identity):
                    seen[int(record.partition() or 0)] = decode_marker(record.value())
        except HeldUp as held:
            held_up |= {lane: describe_held_up(held) for _, lane in held.at}
        found |= {lane: marker for lane, marker in seen.items() if lane not in held_up}
        for lane in wanted - held_up.keys():
            if ends[lane] <= distance:
                found.setdefault(lane, None)
        distance *= 16
    return found, held_up


def read_last_markers(
    kafka: KafkaConfig, identity: UUID, topic: str, lanes: Collection[int], timeout_s: float
) -> dict[int, Marker | None]:
    """Return the markers as they seem to stand now, which proves nothing. Raises KafkaException."""
    ends = last_stable_offsets(kafka, topic, lanes, timeout_s)
    try:
        return read_markers(kafka, identity, topic, ends, lambda: None, timeout_s)[0]
    except InDoubt as error:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, str(error))) from error


def last_stable_offsets(
    kafka: KafkaConfig, topic: str, lanes: Collection[int], timeout_s: float
) -> dict[int, int]:
    """Return the end of each lane's partition for a read_committed reader. Raises KafkaException."""
    asked = {TopicPartition(topic, lane): OffsetSpec.latest() for lane in lanes}  # type: ignore[no-untyped-call]
    client = new_admin_client(kafka)  # without a name it would be gone before its answers
    answers = client.list_offsets(
        asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=timeout_s
    )
    return {one.partition: answer.result().offset for one, answer in answers.items()}
