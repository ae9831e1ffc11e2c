"""The positions of the input's partitions, in Postgres: the only ones that count.

Invariant: a position moves only by compare-and-set on the value that its consumer started from, in the
transaction that writes the rows of the records in between. A consumer that lost the partition finds
another value and rolls back; without the comparison, two consumers could both accept the same records.

A record is decided once. A position belongs to its partition, whatever the name of the group, and those
before `decided_end` are not read again unless an operator says so.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from psycopg.rows import args_row

from outbox import Connection, RowsSkipped, query, scalars


class OffsetConflict(Exception):
    """Another consumer has moved the position of a partition: this one no longer owns it."""


class PartitionRefusal(enum.StrEnum):
    """Why the position of a partition cannot be used: it waits for an operator."""

    TOPIC_RECREATED = "topic_recreated"
    OFFSET_OUT_OF_RANGE = "offset_out_of_range"
    LOG_TRUNCATED = "log_truncated"


class Position(NamedTuple):
    """The next offset of a partition. leader_epoch: of the last consumed record, -1 unknown.

    decided_end: the records before it were decided. decide_again: they are decided once more.
    refusal: why the partition is not read. cut_at: where its log was cut, if that was found.
    """

    topic_id: UUID
    next_offset: int
    leader_epoch: int
    decided_end: int = 0
    decide_again: bool = False
    refusal: PartitionRefusal | None = None
    cut_at: int | None = None

    def moved(self, move: "OffsetMove") -> "Position":
        """Return the position after a move, as `advance` writes it."""
        return self._replace(
            next_offset=move.next,
            leader_epoch=move.leader_epoch,
            decided_end=max(self.decided_end, move.next),
            decide_again=self.decide_again and move.next < self.decided_end,
        )


@dataclass(frozen=True, slots=True)
class OffsetMove:
    """The step of one partition: from the position `before` to the offset `next`."""

    partition: int
    before: Position
    next: int
    leader_epoch: int


LOCK_POSITIONS = """
    SELECT partition, topic_id, next_offset, leader_epoch, decided_end, decide_again, refusal, cut_at
      FROM consumed_offsets
     WHERE topic = %(topic)s AND partition = ANY(%(partitions)s)
     ORDER BY partition
       FOR UPDATE
"""


def lock_positions(conn: Connection, topic: str, partitions: Sequence[int]) -> dict[int, Position]:
    """Return the positions of those partitions that have one, after locking them.

    A COMMIT of another session that is still running is waited for, and its effect seen.
    """
    values = {"topic": topic, "partitions": list(partitions)}
    return dict(query(conn, args_row(_by_partition), LOCK_POSITIONS, values))


READ_POSITIONS = """
    SELECT partition, topic_id, next_offset, leader_epoch, decided_end, decide_again, refusal, cut_at
      FROM consumed_offsets
     WHERE topic = %(topic)s
     ORDER BY partition
"""


def read_positions(conn: Connection, topic: str) -> dict[int, Position]:
    """Return all positions without a lock, for operators: base no decision on them."""
    return dict(query(conn, args_row(_by_partition), READ_POSITIONS, {"topic": topic}))


def _by_partition(
    partition: int,
    topic_id: UUID,
    next_offset: int,
    leader_epoch: int,
    decided_end: int,
    decide_again: bool,
    refusal: str | None,
    cut_at: int | None,
) -> tuple[int, Position]:
    reason = None if refusal is None else PartitionRefusal(refusal)
    return partition, Position(
        topic_id, next_offset, leader_epoch, decided_end, decide_again, reason, cut_at
    )


INSERT_POSITION = """
    INSERT INTO consumed_offsets (topic, partition, topic_id, next_offset)
    VALUES (%(topic)s, %(partition)s, %(topic_id)s, %(offset)s)
        ON CONFLICT (topic, partition) DO NOTHING
"""


def insert_position(conn: Connection, topic: str, partition: int, topic_id: UUID, offset: int) -> None:
    """Give a new partition its first position, unless another consumer has just done so."""
    values = {"topic": topic, "partition": partition, "topic_id": topic_id, "offset": offset}
    conn.execute(INSERT_POSITION, values)


SKIP_DECIDED = """
    UPDATE consumed_offsets
       SET next_offset = decided_end
     WHERE topic = %(topic)s AND topic_id = %(topic_id)s AND partition = ANY(%(partitions)s)
       AND next_offset < decided_end AND NOT decide_again AND refusal IS NULL
 RETURNING partition
"""


def skip_decided(conn: Connection, topic: str, topic_id: UUID, partitions: Sequence[int]) -> list[int]:
    """Move positions that were set back over the records that are decided; return the partitions."""
    values = {"topic": topic, "topic_id": topic_id, "partitions": list(partitions)}
    return scalars(conn, int, SKIP_DECIDED, values)


REFUSE = """
    UPDATE consumed_offsets
       SET refusal = %(refusal)s, cut_at = %(cut_at)s
     WHERE topic = %(topic)s AND topic_id = %(topic_id)s AND partition = %(partition)s
       AND next_offset = %(offset)s AND leader_epoch = %(epoch)s AND refusal IS NULL
"""


def refuse(conn: Connection, topic: str, partition: int, position: Position, refused: Position) -> None:
    """Write down why the log does not hold a position; no consumer reads on until it is repaired.

    refused: the same position, with its refusal. Raises OffsetConflict if it is no longer that one.
    """
    values = {
        "topic": topic,
        "topic_id": position.topic_id,
        "partition": partition,
        "offset": position.next_offset,
        "epoch": position.leader_epoch,
        "refusal": refused.refusal,
        "cut_at": refused.cut_at,
    }
    if conn.execute(REFUSE, values).rowcount != 1:
        raise OffsetConflict(f"another consumer has moved partition {partition}")


# All of the position is compared: a log that was cut may be read up to the same offset once more, and
# an operator may have records decided again that the consumer still takes for new.
ADVANCE = """
    UPDATE consumed_offsets AS position
       SET next_offset = move.next,
           leader_epoch = move.leader_epoch,
           decided_end = greatest(position.decided_end, move.next),
           decide_again = position.decide_again AND move.next < position.decided_end
      FROM unnest(%(partitions)b::int[], %(offsets)b::bigint[], %(epochs)b::int[],
                  %(decided_ends)b::bigint[], %(agains)b::bool[],
                  %(next)b::bigint[], %(next_epochs)b::int[])
           AS move (partition, next_offset, epoch, decided_end, again, next, leader_epoch)
     WHERE position.topic = %(topic)s
       AND position.topic_id = %(topic_id)s
       AND position.partition = move.partition
       AND position.next_offset = move.next_offset
       AND position.leader_epoch = move.epoch
       AND position.decided_end = move.decided_end
       AND position.decide_again = move.again
       AND position.refusal IS NULL
       AND move.next > move.next_offset
"""


def advance(conn: Connection, topic: str, topic_id: UUID, moves: Sequence[OffsetMove]) -> None:
    """Move every partition from its position to the next.

    Raises OffsetConflict or RowsSkipped: roll back.
    """
    values = {
        "topic": topic,
        "topic_id": topic_id,
        "partitions": [move.partition for move in moves],
        "offsets": [move.before.next_offset for move in moves],
        "epochs": [move.before.leader_epoch for move in moves],
        "decided_ends": [move.before.decided_end for move in moves],
        "agains": [move.before.decide_again for move in moves],
        "next": [move.next for move in moves],
        "next_epochs": [move.leader_epoch for move in moves],
    }
    moved = conn.execute(ADVANCE, values, prepare=True).rowcount
    if moved == len(moves):
        return
    partitions = [move.partition for move in moves]
    found = lock_positions(conn, topic, partitions)
    if sum(found.get(move.partition) == move.before for move in moves) == len(moves) - moved:
        raise RowsSkipped("UPDATE", "consumed_offsets", len(moves) - moved)
    numbers = ", ".join(map(str, partitions))
    raise OffsetConflict(f"another consumer has moved one of the partitions {numbers}")
