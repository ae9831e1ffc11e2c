"""What a batch of records becomes: rows and their messages, dead letters, moves of positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple
from uuid import UUID

from confluent_kafka import Message as Record

from orchestrator.consumer.offsets import OffsetMove, Position
from orchestrator.consumer.subscription import Subscription, T
from orchestrator.contract.dead_letters import dead_letter
from orchestrator.contract.records import (
    Decided,
    InvalidRecord,
    headers_of,
    origin_id_of_record,
    partition_offset,
)
from outbox import Message

FEW = 20  # records, of which each may have a line in the log


@dataclass(slots=True)
class ParsedBatch(Generic[T]):
    """What so many records of one poll become. messages: one for each row, in the same order.

    again: those of records that are decided again, by the id that their dead letters have.
    decided: what becomes of each record, where they are few.
    """

    moves: list[OffsetMove]
    records: int
    rows: list[T] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    invalid: list["InvalidOne"] = field(default_factory=list)
    again: dict[UUID, Message] = field(default_factory=dict)
    decided: list[Decided] = field(default_factory=list)


class InvalidOne(NamedTuple):
    """A record that is no valid one. aggregate_id: that of its row, had it been accepted earlier."""

    aggregate_id: UUID
    reason: str
    dead_letter: Message


class BatchParser(Generic[T]):
    """Turns each record into a row and a message, or into a dead letter. topic_id: of the input."""

    def __init__(self, subscription: Subscription[T], topic_id: UUID) -> None:
        self._subscription = subscription
        self._topic_id = topic_id

    def parse(self, records: Sequence[Record], positions: Mapping[int, Position]) -> ParsedBatch[T]:
        """Return the batch of these records. positions: of their partitions, before it."""
        last = {record.partition(): record for record in records}
        moves = [move_to(record, positions) for record in last.values()]
        batch = ParsedBatch[T](moves, len(records))
        again = {move.partition for move in moves if move.before.decide_again}
        are_few = len(records) <= FEW
        for record in records:
            try:
                row, message = self._subscription.parse(record, self._topic_id)
            except InvalidRecord as invalid:
                batch.invalid.append(self._invalid_one(record, invalid))
                if are_few:
                    letter = batch.invalid[-1].dead_letter
                    batch.decided.append(Decided(*partition_offset(record), letter, invalid))
                continue
            batch.rows.append(row)
            batch.messages.append(message)
            if are_few:
                batch.decided.append(Decided(*partition_offset(record), message))
            if again and record.partition() in again:
                batch.again[origin_id_of_record(record)] = message
        return batch

    def refuse(
        self, record: Record, positions: Mapping[int, Position], invalid: InvalidRecord
    ) -> ParsedBatch[T]:
        """Return a batch of one record, as a dead letter, whatever its command says."""
        move, letter = move_to(record, positions), self._invalid_one(record, invalid)
        return ParsedBatch([move], 1, invalid=[letter])

    def _invalid_one(self, record: Record, invalid: InvalidRecord) -> InvalidOne:
        """Return the dead letter of a record."""
        subscription = self._subscription
        letter = dead_letter(subscription.dead_letter_topic, subscription.group, record, invalid)
        aggregate_id = subscription.aggregate_id(record, self._topic_id, headers_of(record))
        return InvalidOne(aggregate_id, invalid.reason, letter)


def move_to(last: Record, positions: Mapping[int, Position]) -> OffsetMove:
    """Return the move of a partition whose last record of the batch this is."""
    partition, offset = partition_offset(last)
    epoch = last.leader_epoch()
    return OffsetMove(partition, positions[partition], offset + 1, -1 if epoch is None else epoch)
