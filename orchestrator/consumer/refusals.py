"""The positions of an input beside its log: what a consumer refuses, or would if one met it.

The consumer asks here before it refuses a partition for good; so do the commands of the operator.
"""

from collections.abc import Mapping
from uuid import UUID

from confluent_kafka.admin import AdminClient

from orchestrator.consumer.offsets import PartitionRefusal, Position
from orchestrator.kafka.continuations import Continuation, ReadFrom, find_continuations
from orchestrator.kafka.reader import OffsetRange
from orchestrator.kafka.topics import TopicWatch, read_high_watermarks, read_log_start_offsets


def read_continuations(
    kafka: Mapping[str, str], topic: str, topic_id: UUID, positions: Mapping[int, Position]
) -> dict[int, Continuation]:
    """Return what a reader of each position would find, of those that the brokers answer."""
    asked = {
        partition: ReadFrom(position.next_offset, position.leader_epoch)
        for partition, position in positions.items()
        if position.topic_id == topic_id
    }
    return find_continuations(kafka, topic, asked) if asked else {}


def continuations_of(
    kafka: Mapping[str, str], topic: str, topic_id: UUID, positions: Mapping[int, Position]
) -> dict[int, int]:
    """Return where a reader of each position would continue, of those for which that is known."""
    found = read_continuations(kafka, topic, topic_id, positions)
    return {p: one.offset for p, one in found.items() if one.continues_at is not None}


def describe_refusal(refusal: str, repair: str) -> str:
    """Return the reason, the command that ends it, and what is not certain about the reason."""
    text = f"{refusal}: {repair}"
    if refusal == PartitionRefusal.OFFSET_OUT_OF_RANGE:
        text += " (perhaps only ends of transactions were deleted, which are no records)"
    return text


def find_refusal(
    position: Position, topic_id: UUID, log: OffsetRange, continues_at: int | None = None
) -> PartitionRefusal | None:
    """Return why a consumer refuses the partition, or would; None if it does not."""
    if position.topic_id != topic_id:
        return PartitionRefusal.TOPIC_RECREATED
    if position.refusal:
        return position.refusal
    if position.next_offset < log.first:
        return PartitionRefusal.OFFSET_OUT_OF_RANGE
    return PartitionRefusal.LOG_TRUNCATED if shows_cut(position, log, continues_at) else None


def shows_cut(position: Position, log: OffsetRange, continues_at: int | None) -> bool:
    """Return whether log and epochs show now that records before a position are lost."""
    if position.next_offset < log.first:
        return False
    end = log.end if continues_at is None else min(log.end, continues_at)
    return end < position.next_offset


def check_position(
    admin: AdminClient, kafka: Mapping[str, str], topic: TopicWatch, partition: int, position: Position
) -> Position:
    """Compare a position with its log; return it with its refusal. Raises KafkaException."""
    (first,) = read_log_start_offsets(admin, topic.name, [partition]).values()
    (end,) = read_high_watermarks(admin, topic.name, [partition]).values()
    continues_at = continuations_of(kafka, topic.name, topic.id, {partition: position}).get(partition)
    reason = find_refusal(position, topic.id, OffsetRange(first, end), continues_at)
    is_known = reason is PartitionRefusal.LOG_TRUNCATED and position.leader_epoch >= 0
    return position._replace(refusal=reason, cut_at=continues_at if is_known else None)
