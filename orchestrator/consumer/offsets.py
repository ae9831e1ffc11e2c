"""The positions of the input's partitions, in Postgres: the only ones that count.

Invariant: a position moves only by compare-and-set on the value that its consumer started from, in the
transaction that writes the rows of the records in between. A consumer that lost the partition finds
another value and rolls back; without the comparison, two consumers could both accept the same records.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from psycopg.rows import args_row

from outbox import Connection, query


class OffsetConflict(Exception):
    """Another consumer has moved the position of a partition: this one no longer owns it."""


class PartitionRefusal(enum.StrEnum):
    """Why the position of a partition cannot be used: it waits for an operator."""

    TOPIC_RECREATED = "topic_recreated"
    OFFSET_OUT_OF_RANGE = "offset_out_of_range"


class Position(NamedTuple):
    """The next offset of a partition. leader_epoch: of the last consumed record, -1 unknown."""

    topic_id: UUID
    next_offset: int
    leader_epoch: int


@dataclass(frozen=True, slots=True)
class OffsetMove:
    """The step of one partition: from its position, `expected`, to the offset `next`."""

    partition: int
    expected: int
    next: int
    leader_epoch: int


LOCK_POSITIONS = """
    SELECT partition, topic_id, next_offset, leader_epoch
      FROM consumed_offsets
     WHERE consumer_group = %(group)s AND topic = %(topic)s AND partition = ANY(%(partitions)s)
     ORDER BY partition
       FOR UPDATE
"""


def lock_positions(
    conn: Connection, group: str, topic: str, partitions: Sequence[int]
) -> dict[int, Position]:
    """Return the positions of those partitions that have one, after locking them.

    A COMMIT of another session that is still running is waited for, and its effect seen.
    """
    values = {"group": group, "topic": topic, "partitions": list(partitions)}
    return dict(query(conn, args_row(_by_partition), LOCK_POSITIONS, values))


READ_POSITIONS = """
    SELECT partition, topic_id, next_offset, leader_epoch
      FROM consumed_offsets
     WHERE consumer_group = %(group)s AND topic = %(topic)s
     ORDER BY partition
"""


def read_positions(conn: Connection, group: str, topic: str) -> dict[int, Position]:
    """Return all positions without a lock, for operators: base no decision on them."""
    values = {"group": group, "topic": topic}
    return dict(query(conn, args_row(_by_partition), READ_POSITIONS, values))


def _by_partition(
    partition: int, topic_id: UUID, next_offset: int, leader_epoch: int
) -> tuple[int, Position]:
    return partition, Position(topic_id, next_offset, leader_epoch)


INSERT_POSITION = """
    INSERT INTO consumed_offsets (consumer_group, topic, partition, topic_id, next_offset)
    VALUES (%(group)s, %(topic)s, %(partition)s, %(topic_id)s, %(offset)s)
        ON CONFLICT (consumer_group, topic, partition) DO NOTHING
"""


def insert_position(
    conn: Connection, group: str, topic: str, partition: int, topic_id: UUID, offset: int
) -> None:
    """Give a new partition its first position, unless another consumer has just done so."""
    conn.execute(
        INSERT_POSITION,
        {
            "group": group,
            "topic": topic,
            "partition": partition,
            "topic_id": topic_id,
            "offset": offset,
        },
    )


ADVANCE = """
    UPDATE consumed_offsets AS position
       SET next_offset = move.next, leader_epoch = move.leader_epoch
      FROM unnest(%(partitions)b::int[], %(expected)b::bigint[], %(next)b::bigint[],
                  %(epochs)b::int[])
           AS move (partition, expected, next, leader_epoch)
     WHERE position.consumer_group = %(group)s
       AND position.topic = %(topic)s
       AND position.topic_id = %(topic_id)s
       AND position.partition = move.partition
       AND position.next_offset = move.expected
       AND move.next > move.expected
"""


def advance(
    conn: Connection, group: str, topic: str, topic_id: UUID, moves: Sequence[OffsetMove]
) -> None:
    """Move every partition from its expected offset to the next. Raises OffsetConflict: roll back."""
    values = {
        "group": group,
        "topic": topic,
        "topic_id": topic_id,
        "partitions": [move.partition for move in moves],
        "expected": [move.expected for move in moves],
        "next": [move.next for move in moves],
        "epochs": [move.leader_epoch for move in moves],
    }
    if conn.execute(ADVANCE, values, prepare=True).rowcount != len(moves):
        partitions = ", ".join(str(move.partition) for move in moves)
        raise OffsetConflict(f"another consumer has moved one of the partitions {partitions}")
