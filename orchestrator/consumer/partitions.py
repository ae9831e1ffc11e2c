"""The partitions that the consumer group assigned to a session: their positions, and the refused ones.

Invariant: reading continues from the positions in Postgres, and from nothing else. A partition whose
position is not in its log, or belongs to another topic of that name, is refused: it is not read until
an operator has repaired its position. That is written into Postgres: a log that was cut grows again,
and then has the offset, but other records before it. The other partitions continue.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from tenacity import retry, retry_if_exception, stop_after_delay, wait_fixed

from orchestrator.config.timings import ConsumerTimings
from orchestrator.consumer import offsets
from orchestrator.consumer.client import GroupMember
from orchestrator.consumer.ends import LogEnds
from orchestrator.consumer.offsets import OffsetMove, PartitionRefusal, Position
from orchestrator.consumer.refusals import check_position
from orchestrator.consumer.unread import UnreadPartitions
from orchestrator.kafka.topics import Admin, TopicWatch, read_log_start_offsets
from orchestrator.program import PROGRAM
from outbox import Connection, RowsSkipped, crash_point

log = logging.getLogger(__name__)


NO_PARTITION = (
    "other members of the consumer group have all partitions of INPUT_TOPIC: this consumer is a spare;"
    " if they are not ours, set CONSUMER_GROUP to a name of its own"
)
SEEK_S = 1.0  # until the client has begun to read a partition that was assigned


def is_not_started(error: BaseException) -> bool:
    """Return whether the client has not begun to read a partition yet."""
    return isinstance(error, KafkaException) and error.args[0].code() == KafkaError._STATE


class AssignedPartitions:
    """The positions of the partitions of one session; tells the client where to read.

    repair_command(partition): the command that repairs a refused partition, for the log.
    """

    def __init__(
        self,
        conn: Connection,
        client: GroupMember,
        admin: Admin,
        kafka: Mapping[str, str],
        topic: TopicWatch,
        repair_command: Callable[[int], str],
        timings: ConsumerTimings,
    ) -> None:
        self._conn = conn
        self._client = client
        self._admin = admin
        self._kafka = kafka
        self._topic = topic
        self._repair_command = repair_command
        self._timings = timings
        self.positions: dict[int, Position] = {}
        self.refused: dict[int, PartitionRefusal] = {}  # partitions that wait for an operator, and why
        self.reading: set[int] = set()  # the partitions whose records count
        self.ends = LogEnds(admin, topic.name, timings.end_move_s, self._read_again)
        self.unread = UnreadPartitions(client, topic.name, repair_command, timings)
        self.generation = 0  # counts assignments: records polled under an older one are dropped
        self._check_at = 0.0
        self._unmirrored: dict[int, int] = {}  # positions that Kafka has no copy of yet
        self._mirror_at = 0.0

    # ---- the group assigns and revokes -----------------------------------------------------------

    def assign(self, partitions: Sequence[int]) -> None:
        """Read these partitions from their positions in Postgres, except the refused ones."""
        self._topic.check_now()
        self._check_at = time.monotonic() + self._timings.position_check_s
        self.generation += 1
        self.positions = self._load_positions(partitions)
        crash_point("consumer.assigned")
        self.refused = {p: why for p, why in self.refused.items() if p in self.positions}
        for partition, position in self.positions.items():
            if position.topic_id != self._topic.id:
                self._report_refused(partition, PartitionRefusal.TOPIC_RECREATED)
            elif position.refusal:
                self._report_refused(partition, position.refusal)
            else:
                self.refused.pop(partition, None)
        read = {p: position for p, position in self.positions.items() if p not in self.refused}
        self._begin_reading(read)
        self._read_from(read)
        # The owner before may have had no time to copy its last positions.
        self._unmirrored = {partition: position.next_offset for partition, position in read.items()}
        fields = {"topic": self._topic.name, "group": self._client.group}
        log.info("partitions assigned", extra=fields | {"offsets": self.next_offsets()})
        if not partitions:
            log.warning("no partition assigned", extra=fields | {"advice": NO_PARTITION})

    def _read_from(self, positions: Mapping[int, Position]) -> None:
        """Read these partitions from their positions, and none else.

        Only after a seek does the client compare a position's epoch with the log: one that is assigned
        it compares when metadata comes, which a member of a group has before (librdkafka issue 5158).
        """
        starts = [
            TopicPartition(self._topic.name, partition, one.next_offset, leader_epoch=one.leader_epoch)
            for partition, one in positions.items()
        ]
        self._client.assign(starts)
        for start in starts:
            try:
                self._seek(start)
            except KafkaException as error:  # or it has stopped already: the log lacks the position
                if not (is_not_started(error) and self.refuse(start.partition)):
                    raise

    @retry(
        retry=retry_if_exception(is_not_started),
        wait=wait_fixed(0.01),
        stop=stop_after_delay(SEEK_S),
        reraise=True,
    )
    def _seek(self, start: TopicPartition) -> None:
        """Seek; wait until the client has begun to read the partition. Raises KafkaException."""
        self._client.seek(start)

    def _read_again(self, partition: int) -> None:
        """Have the client read from the position once more. Raises KafkaException."""
        position = self.positions[partition]
        self._seek(
            TopicPartition(
                self._topic.name, partition, position.next_offset, leader_epoch=position.leader_epoch
            )
        )

    def revoke(self) -> None:
        """Forget the partitions. No batch is in progress: this is called while the client polls."""
        self.mirror_positions()
        self.generation += 1
        self.positions = {}
        self.refused = {}
        self._begin_reading(())

    def _begin_reading(self, partitions: Collection[int]) -> None:
        """Read these partitions, whatever was found out about them before."""
        self.reading = set(partitions)
        self.ends.forget()
        self.unread.forget()

    def _load_positions(self, partitions: Sequence[int]) -> dict[int, Position]:
        """Return the positions of all partitions; a new one starts at its log start offset."""
        topic, topic_id = self._topic.name, self._topic.id
        known = offsets.lock_positions(self._conn, topic, partitions)
        if new := [partition for partition in partitions if partition not in known]:
            starts = read_log_start_offsets(self._admin, topic, new)
            for number in new:
                offsets.insert_position(self._conn, topic, number, topic_id, starts[number])
        skipped = offsets.skip_decided(self._conn, topic, topic_id, partitions)
        if new or skipped:
            for number in skipped:
                log.warning("position skipped", extra=_describe_skip(number, known[number]))
            known = offsets.lock_positions(self._conn, topic, partitions)
        if missing := set(partitions) - known.keys():
            raise RowsSkipped("INSERT", "consumed_offsets", len(missing))
        return known

    # ---- positions move --------------------------------------------------------------------------

    def next_offsets(self) -> dict[int, int]:
        """Return the position of each partition, including refused ones."""
        return {number: position.next_offset for number, position in self.positions.items()}

    def advanced(self, moves: Sequence[OffsetMove]) -> None:
        """Follow moves that were committed in Postgres."""
        for move in moves:
            self.positions[move.partition] = self.positions[move.partition].moved(move)
            self._unmirrored[move.partition] = move.next
        self.unread.advanced(moves)

    def find_end_moves(self) -> list[OffsetMove]:
        """Return moves over what is no record, where the client has read to the end."""
        return self.ends.find_moves(self._read_positions()) if self.ends.reached else []

    def _read_positions(self) -> dict[int, Position]:
        """Return the positions of the partitions that are read."""
        return {number: self.positions[number] for number in self.reading}

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

    def refuse(self, partition: int) -> bool:
        """Stop reading a partition whose log lacks its position, until an operator has repaired it.

        Return whether that is so. Raises OffsetConflict or KafkaException.
        """
        position = self.positions[partition]
        if position.refusal is None:
            refused = check_position(self._admin, self._kafka, self._topic, partition, position)
            if refused.refusal is None:
                return False
            offsets.refuse(self._conn, self._topic.name, partition, position, refused)
            self.positions[partition] = refused
            self.reading.discard(partition)
            self._report_refused(partition, refused.refusal)
        return True

    def _report_refused(self, partition: int, reason: PartitionRefusal) -> None:
        """Remember that a partition is refused; log it once."""
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

    # ---- partitions whose records do not come ----------------------------------------------------

    def pause(self, partition: int, offset: int, error: KafkaError) -> None:
        """Stop reading a partition for a while: its batch at this offset cannot be decoded."""
        self.reading.discard(partition)
        self.unread.pause(partition, offset, error)

    def resume_due(self) -> None:
        """Try again what could not be decoded. Raises KafkaException."""
        for partition in self.unread.due():
            self._read_again(partition)  # the client may have gone on behind the batch
            self.unread.resume(partition)
            self.reading.add(partition)

    def watch(self, is_drained: bool) -> None:
        """Look for partitions of which nothing comes. is_drained: all that was fetched is taken."""
        if is_drained:
            self.unread.look(self._read_positions(), self.ends.reached)
        else:
            self.unread.not_drained()

    # ---- operators -------------------------------------------------------------------------------

    def check_positions(self) -> None:
        """Read on from a position that an operator has set. Raises psycopg.Error."""
        if time.monotonic() < self._check_at:
            return
        self._check_at = time.monotonic() + self._timings.position_check_s
        stored = offsets.read_positions(self._conn, self._topic.name)
        if any(stored.get(number) != position for number, position in self.positions.items()):
            self.assign(list(self.positions))


def _describe_skip(partition: int, position: Position) -> dict[str, object]:
    """Return what the log says of a position that was set back without a command of ours."""
    return {
        "partition": partition,
        "offset": position.next_offset,
        "decided_end": position.decided_end,
        "advice": f"records are decided once: `{PROGRAM} repair partition {partition} --from"
        f" {position.next_offset} --again` has them decided again",
    }
