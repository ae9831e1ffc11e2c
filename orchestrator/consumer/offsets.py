"""The consumed offsets, in Postgres: the only ones that count.

Invariant: an offset moves only by compare-and-set on the value that its consumer started from, in the
transaction that writes the rows it stands for. A consumer that lost the partition finds another value
and rolls back; without the comparison, two consumers could both accept the same records.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast
from uuid import UUID

from outbox import Connection


class Fenced(Exception):
    """Another consumer has moved the offset of a partition: this one no longer owns it."""


class Position(NamedTuple):
    """Where a partition goes on. leader_epoch: of the last consumed record, -1 unknown."""

    topic_id: UUID
    next_offset: int
    leader_epoch: int


@dataclass(frozen=True, slots=True)
class Move:
    """The step of one partition: from the offset it stands at to the next one."""

    partition: int
    expected: int
    following: int
    leader_epoch: int


LOAD = """
    SELECT partition, topic_id, next_offset, leader_epoch
      FROM consumed_offsets
     WHERE consumer_group = %(group)s AND topic = %(topic)s AND partition = ANY(%(partitions)s)
     ORDER BY partition
       FOR UPDATE
"""


def load(conn: Connection, group: str, topic: str, partitions: Sequence[int]) -> Mapping[int, Position]:
    """Return the positions of those partitions that have one.

    Locks them for a moment: a COMMIT that is still running elsewhere is waited for, and seen.
    """
    values = {"group": group, "topic": topic, "partitions": list(partitions)}
    rows = cast("list[tuple[int, UUID, int, int]]", conn.execute(LOAD, values).fetchall())
    return {row[0]: Position(*row[1:]) for row in rows}


READ = """
    SELECT partition, topic_id, next_offset, leader_epoch
      FROM consumed_offsets
     WHERE consumer_group = %(group)s AND topic = %(topic)s
     ORDER BY partition
"""


def read(conn: Connection, group: str, topic: str) -> dict[int, Position]:
    """Return all positions as they stand, for people: locks nothing, so nothing is decided by it."""
    rows = conn.execute(READ, {"group": group, "topic": topic}).fetchall()
    return {row[0]: Position(*row[1:]) for row in cast("list[tuple[int, UUID, int, int]]", rows)}


START = """
    INSERT INTO consumed_offsets (consumer_group, topic, partition, topic_id, next_offset)
    VALUES (%(group)s, %(topic)s, %(partition)s, %(topic_id)s, %(offset)s)
        ON CONFLICT (consumer_group, topic, partition) DO NOTHING
"""


def start(
    conn: Connection, group: str, topic: str, partition: int, topic_id: UUID, offset: int
) -> None:
    """Give a partition that was never seen its first position, unless another consumer just did."""
    conn.execute(
        START,
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
       SET next_offset = move.following, leader_epoch = move.leader_epoch
      FROM unnest(%(partitions)b::int[], %(expected)b::bigint[], %(following)b::bigint[],
                  %(epochs)b::int[])
           AS move (partition, expected, following, leader_epoch)
     WHERE position.consumer_group = %(group)s
       AND position.topic = %(topic)s
       AND position.topic_id = %(topic_id)s
       AND position.partition = move.partition
       AND position.next_offset = move.expected
       AND move.following > move.expected
"""


def advance(conn: Connection, group: str, topic: str, topic_id: UUID, moves: Sequence[Move]) -> None:
    """Move every partition from its expected offset, or raise Fenced: then roll back."""
    values = {
        "group": group,
        "topic": topic,
        "topic_id": topic_id,
        "partitions": [move.partition for move in moves],
        "expected": [move.expected for move in moves],
        "following": [move.following for move in moves],
        "epochs": [move.leader_epoch for move in moves],
    }
    if conn.execute(ADVANCE, values, prepare=True).rowcount != len(moves):
        partitions = ", ".join(str(move.partition) for move in moves)
        raise Fenced(f"the offset of one of the partitions {partitions} was moved by another consumer")
