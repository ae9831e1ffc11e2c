"""Partitions whose next records do not come: a batch that cannot be decoded, an open transaction.

Nothing of that is written into Postgres, as it may pass: by a larger buffer, or the transaction's end.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from confluent_kafka import KafkaError, TopicPartition

from orchestrator.config.timings import ConsumerTimings
from orchestrator.consumer.client import GroupMember
from orchestrator.consumer.offsets import OffsetMove, Position
from orchestrator.kafka.continuations import Continuation
from orchestrator.program import PROGRAM

log = logging.getLogger(__name__)

OPEN_FOR_S = 20.0  # how long a record may wait for the end of a transaction before it is reported
LOOK_S = 1.0  # between two looks at the high watermarks


class Unreadable(NamedTuple):
    """A batch that cannot be decoded. offset: of its first record; retry_at: monotonic."""

    offset: int
    error: str
    retry_at: float


def describe_unreadable(offset: int, error: str, repair: str) -> str:
    """Return what is wrong with a batch that cannot be decoded, and both remedies."""
    return (
        f"the batch at offset {offset} cannot be decoded ({error}): if its records need more than"
        " receive.message.max.bytes, set KAFKA_CONFIG_RECEIVE_MESSAGE_MAX_BYTES to more and restart the"
        f" consumers; else continue behind it: {repair}"
    )


def describe_open_transaction(topic: str, partition: int, offset: int) -> str:
    """Return why nothing behind an offset is read, and what ends it."""
    where = f"--topic {topic} --partition {partition} --start-offset {offset}"
    return (
        f"a producer's transaction is open at offset {offset}: nothing behind it is read until it ends;"
        " where its producer is gone, `kafka-transactions.sh find-hanging --broker-id ID` names it and"
        f" `kafka-transactions.sh abort {where}` ends it"
    )


def describe_silence(offset: int, repair: str) -> str:
    """Return what may be wrong with a partition of which the client gives neither record nor error."""
    return (
        f"no record comes from offset {offset}, although the log goes on: its leader does not answer, a"
        f" transaction is open, or a batch cannot be decoded: see `{PROGRAM} doctor`; to continue"
        f" behind such a batch: {repair} --from OFFSET"
    )


def find_unread(
    topic: str,
    partition: int,
    position: int,
    last_stable: int,
    high_watermark: int,
    found: Continuation | None,
    repair: str,
) -> str | None:
    """Return why the records from a position on are not read, as far as the topic shows it.

    found: what a reader of the position finds; None: nothing, for some seconds. repair: the command.
    """
    if position >= high_watermark:
        return None
    if found is None:
        return describe_silence(position, repair)
    if found.error is not None:
        if found.unreadable_at is None:
            return None  # not permitted: another check says so
        return describe_unreadable(found.unreadable_at, error_text_of(found.error), repair)
    is_held = last_stable <= found.offset and last_stable < high_watermark
    if is_held and time.time() - found.time_ms / 1000 > OPEN_FOR_S:
        return describe_open_transaction(topic, partition, last_stable)
    return None


def error_text_of(error: KafkaError) -> str:
    """Return an error of a batch, by its name and the client's words."""
    return f"{error.name()}: {error.str()}"


class UnreadPartitions:
    """The partitions of a session whose records do not come, and why; retries what may pass."""

    def __init__(
        self,
        client: GroupMember,
        topic: str,
        repair_command: Callable[[int], str],
        timings: ConsumerTimings,
    ) -> None:
        self._client = client
        self._topic = topic
        self._repair_command = repair_command
        self._timings = timings
        self._unreadable: dict[int, Unreadable] = {}
        self._waiting: dict[int, str] = {}
        self._since: dict[int, tuple[int, float]] = {}  # by partition: its position, since when
        self._look_at = 0.0

    def forget(self) -> None:
        """Begin again: all partitions are read from their positions."""
        self._resume(*self._unreadable)
        self._unreadable, self._waiting, self._since = {}, {}, {}

    def reasons(self) -> dict[int, str]:
        """Return the partitions whose records do not come, and why."""
        return self._waiting | {
            partition: describe_unreadable(one.offset, one.error, self._repair_command(partition))
            for partition, one in dict(self._unreadable).items()
        }

    # ---- batches that cannot be decoded ----------------------------------------------------------

    def pause(self, partition: int, offset: int, error: KafkaError) -> None:
        """Stop the client for a while: it, or the broker, cannot decode the batch at this offset."""
        self._client.pause([TopicPartition(self._topic, partition)])
        text, before = error_text_of(error), self._unreadable.get(partition)
        retry_at = time.monotonic() + self._timings.unreadable_retry_s
        self._unreadable[partition] = found = Unreadable(offset, text, retry_at)
        if before is None or before[:2] != found[:2]:
            advice = describe_unreadable(offset, text, self._repair_command(partition))
            fields = {"partition": partition, "offset": offset, "error": text, "advice": advice}
            log.error("partition unreadable", extra=fields)

    def due(self) -> list[int]:
        """Return the partitions whose batches must be tried again now."""
        now = time.monotonic()
        return [partition for partition, one in self._unreadable.items() if now >= one.retry_at]

    def resume(self, partition: int) -> None:
        """Let the client try a batch again."""
        self._unreadable[partition] = self._unreadable[partition]._replace(retry_at=math.inf)
        self._resume(partition)

    def _resume(self, *partitions: int) -> None:
        if partitions:
            self._client.resume([TopicPartition(self._topic, number) for number in partitions])

    def advanced(self, moves: Sequence[OffsetMove]) -> None:
        """Forget the batches that were decoded after all."""
        for move in moves:
            one = self._unreadable.get(move.partition)
            if one is not None and move.next > one.offset:
                del self._unreadable[move.partition]
                log.info("partition readable", extra={"partition": move.partition})

    # ---- partitions of which nothing comes -------------------------------------------------------

    def look(self, positions: Mapping[int, Position], ends: Mapping[int, int]) -> None:
        """Look, every LOOK_S, at positions that stay, while all that the client has fetched is taken.

        positions: of the partitions that are read; ends: up to where the client has read them.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        before, self._since, waiting = self._since, {}, dict[int, str]()
        for partition, position in positions.items():
            offset, end = position.next_offset, ends.get(partition, 0)
            if self._high_watermark(partition) <= max(offset, end):
                continue
            known, since = before.get(partition, (offset, now))
            self._since[partition] = offset, since if known == offset else now
            if known != offset or now - since <= self._timings.unread_s:
                continue
            if end < offset:
                waiting[partition] = describe_silence(offset, self._repair_command(partition))
            else:
                waiting[partition] = describe_open_transaction(self._topic, partition, end)
        for partition in waiting.keys() - self._waiting.keys():
            fields = {"partition": partition, "advice": waiting[partition]}
            log.warning("partition waiting", extra=fields)
        self._waiting = waiting

    def not_drained(self) -> None:
        """Begin to wait again: records that were fetched are still to be taken."""
        self._since = {}

    def _high_watermark(self, partition: int) -> int:
        """Return the high watermark that the last answer to a fetch told; -1: none did."""
        asked = TopicPartition(self._topic, partition)
        known = self._client.get_watermark_offsets(asked, cached=True)
        return -1 if known is None else known[1]
