"""The partitions that the consumer group assigned to a session: their positions, and the refused ones.

Invariant: reading continues from the positions in Postgres, and from nothing else. A partition whose
position is not in its log, or belongs to another topic of that name, is refused: it is not read until
an operator has repaired its position. The other partitions continue.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from confluent_kafka import KafkaException, TopicPartition

from orchestrator.config.timings import ConsumerTimings
from orchestrator.consumer import offsets
from orchestrator.consumer.client import GroupMember
from orchestrator.consumer.offsets import OffsetMove, PartitionRefusal, Position
from orchestrator.kafka.topics import Admin, TopicWatch, read_log_start_offsets
from outbox import Connection, crash_point

log = logging.getLogger(__name__)


class AssignedPartitions:
    """The positions of the partitions of one session; tells the client where to read.

    repair_command(partition): the command that repairs a refused partition, for the log.
    """

    def __init__(
        self,
        conn: Connection,
        client: GroupMember,
        admin: Admin,
        topic: TopicWatch,
        group: str,
        repair_command: Callable[[int], str],
        timings: ConsumerTimings,
    ) -> None:
        self._conn = conn
        self._client = client
        self._admin = admin
        self._topic = topic
        self._group = group
        self._repair_command = repair_command
        self._timings = timings
        self.positions: dict[int, Position] = {}
        self.refused: dict[int, PartitionRefusal] = {}  # partitions that wait for an operator, and why
        self.generation = 0  # counts assignments: records polled under an older one are dropped
        self._recheck_at = 0.0
        self._unmirrored: dict[int, int] = {}  # positions that Kafka has no copy of yet
        self._mirror_at = 0.0

    # ---- the group assigns and revokes -----------------------------------------------------------

    def assign(self, partitions: Sequence[int]) -> None:
        """Read these partitions from their positions in Postgres, except the refused ones."""
        self._topic.check_now()
        self.generation += 1
        self.positions = self._load_positions(partitions)
        crash_point("consumer.assigned")
        self.refused = {p: why for p, why in self.refused.items() if p in self.positions}
        for partition, position in self.positions.items():
            if position.topic_id != self._topic.id:
                self.refuse(partition, PartitionRefusal.TOPIC_RECREATED)
            else:
                self.refused.pop(partition, None)
        read = {p: position for p, position in self.positions.items() if p not in self.refused}
        self._client.assign(
            [
                TopicPartition(
                    self._topic.name,
                    partition,
                    position.next_offset,
                    leader_epoch=position.leader_epoch,
                )
                for partition, position in read.items()
            ]
        )
        # The owner before may have had no time to copy its last positions.
        self._unmirrored = {partition: position.next_offset for partition, position in read.items()}
        log.info("partitions assigned", extra={"offsets": self.next_offsets()})

    def revoke(self) -> None:
        """Forget the partitions. No batch is in progress: this is called while the client polls."""
        self.mirror_positions()
        self.generation += 1
        self.positions = {}
        self.refused = {}

    def _load_positions(self, partitions: Sequence[int]) -> dict[int, Position]:
        """Return the positions of all partitions; a new one starts at its log start offset."""
        known = offsets.lock_positions(self._conn, self._group, self._topic.name, partitions)
        new = [partition for partition in partitions if partition not in known]
        if not new:
            return known
        starts = read_log_start_offsets(self._admin, self._topic.name, new)
        for number in new:
            offsets.insert_position(
                self._conn, self._group, self._topic.name, number, self._topic.id, starts[number]
            )
        return offsets.lock_positions(self._conn, self._group, self._topic.name, partitions)

    # ---- positions move --------------------------------------------------------------------------

    def next_offsets(self) -> dict[int, int]:
        """Return the position of each partition, including refused ones."""
        return {number: position.next_offset for number, position in self.positions.items()}

    def advanced(self, moves: Sequence[OffsetMove]) -> None:
        """Follow moves that were committed in Postgres."""
        for move in moves:
            position = Position(self._topic.id, move.next, move.leader_epoch)
            self.positions[move.partition] = position
            self._unmirrored[move.partition] = move.next

    def mirror_if_due(self) -> None:
        """Copy the positions to Kafka every commit_offsets_s."""
        if time.monotonic() > self._mirror_at:
            self.mirror_positions()

    def mirror_positions(self) -> None:
        """Commit the positions to Kafka: a copy for lag tools, never read back."""
        if self._client.is_cut_off or not self._unmirrored:
            return  # without brokers, closing the client would wait for the answer
        self._mirror_at = time.monotonic() + self._timings.commit_offsets_s
        copies = [TopicPartition(self._topic.name, *position) for position in self._unmirrored.items()]
        self._unmirrored = {}
        with suppress(KafkaException):
            self._client.commit(offsets=copies, asynchronous=True)
        crash_point("consumer.mirrored")

    # ---- refused partitions ----------------------------------------------------------------------

    def refuse(self, partition: int, reason: PartitionRefusal) -> None:
        """Stop reading one partition until an operator has repaired it."""
        self._recheck_at = time.monotonic() + self._timings.refused_recheck_s
        if self.refused.get(partition) != reason:
            log.error(
                "partition refused",
                extra={
                    "partition": partition,
                    "offset": self.positions[partition].next_offset,
                    "reason": reason,
                    "repair": self._repair_command(partition),
                },
            )
        self.refused[partition] = reason

    def recheck_refused(self) -> None:
        """Read a refused partition again once its position in Postgres has been repaired."""
        if not self.refused or time.monotonic() < self._recheck_at:
            return
        self._recheck_at = time.monotonic() + self._timings.refused_recheck_s
        stored = offsets.lock_positions(self._conn, self._group, self._topic.name, list(self.refused))
        if any(stored.get(number) != self.positions[number] for number in self.refused):
            self.assign(list(self.positions))
