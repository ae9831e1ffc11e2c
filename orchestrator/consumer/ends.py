"""The ends that the client has read to: from a position to its end there may be offsets, but no record.

They are ends of transactions and records that were aborted. Without a move over them the position of a
log that was read to its end stays before it, and seems lost once retention has deleted all.

Invariant: a position moves to an end with a leader epoch under which all before it was read: the one of
its last record, or one that the partition had already when the client read from the position. An older
epoch than the end's would look like a cut log; a newer one than the reading's would hide one.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import NamedTuple

from confluent_kafka.admin import ListOffsetsResultInfo  # type: ignore[attr-defined]  # public

from orchestrator.consumer.offsets import OffsetMove, Position
from orchestrator.kafka.topics import Admin, leader_epoch_of, request_leader_epochs


class AskedEnd(NamedTuple):
    """An end, and the request for its partition's leader epoch, which began after it was read."""

    offset: int
    epoch: Future[ListOffsetsResultInfo]


class LogEnds:
    """Which ends the client has read to, and which moves follow; at most a request every `period_s`.

    read_again(partition): have the client read from the position once more.
    """

    def __init__(
        self, admin: Admin, topic: str, period_s: float, read_again: Callable[[int], None]
    ) -> None:
        self._admin = admin
        self._topic = topic
        self._period_s = period_s
        self._read_again = read_again
        self.reached: dict[int, int] = {}
        self._asked: dict[int, AskedEnd] = {}
        self._read_under: dict[int, int] = {}  # leader epochs before the client read again
        self._ask_at = 0.0

    def forget(self) -> None:
        """Begin again: other partitions, or other positions, are read."""
        self.reached, self._asked, self._read_under = {}, {}, {}

    def find_moves(self, positions: Mapping[int, Position]) -> list[OffsetMove]:
        """Return moves of the positions to ends, as far as they are known; never wait."""
        if self._asked:
            return self._answered(positions)
        if time.monotonic() >= self._ask_at:
            self._ask(positions)
        return []

    def _ask(self, positions: Mapping[int, Position]) -> None:
        """Ask for the leader epochs of the partitions whose end is behind their position."""
        ends = {
            partition: end
            for partition, end in self.reached.items()
            if partition in positions and end > positions[partition].next_offset
        }
        if ends:
            self._ask_at = time.monotonic() + self._period_s
            epochs = request_leader_epochs(self._admin, self._topic, list(ends))
            self._asked = {p: AskedEnd(end, epochs[p]) for p, end in ends.items()}

    def _answered(self, positions: Mapping[int, Position]) -> list[OffsetMove]:
        """Return the moves that the answers allow, once all are there."""
        if not all(one.epoch.done() for one in self._asked.values()):
            return []
        asked, self._asked = self._asked, {}
        moves = []
        for partition, (end, answer) in asked.items():
            position = positions.get(partition)
            if position is None or end <= position.next_offset or answer.exception():
                continue
            epoch = leader_epoch_of(answer)
            if epoch in (position.leader_epoch, self._read_under.get(partition)):
                moves.append(OffsetMove(partition, position, end, epoch))
            else:
                self.reached.pop(partition, None)
                self._read_under[partition] = epoch
                self._read_again(partition)
        return moves
