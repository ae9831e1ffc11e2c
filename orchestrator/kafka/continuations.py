"""What a reader of a position would find: where it continues, and whether it can read what is there.

It continues below the position if the log was cut and has grown again. Offsets do not show that: the
brokers compare the position's leader epoch with those of the log (KIP-320), and the client follows.
"""

import time
from collections.abc import Mapping
from contextlib import closing
from typing import NamedTuple
from uuid import uuid4

from confluent_kafka import Consumer, KafkaError, TopicPartition

CONTINUE_S = 5.0  # for the answers about all partitions
DENIED_ERRORS = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError._AUTHENTICATION})


# The client, or the broker, cannot read the next batch of a partition: the others are not concerned.
DECODE_ERRORS = frozenset(
    {
        KafkaError._BAD_COMPRESSION,  # also of a batch that is larger than receive.message.max.bytes
        KafkaError._BAD_MSG,
        KafkaError._CRIT_SYS_RESOURCE,
        KafkaError._NOT_IMPLEMENTED,
        KafkaError._UNDERFLOW,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.UNKNOWN,
        KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
    }
)


class ReadFrom(NamedTuple):
    """A position in a log. leader_epoch: of the record before it, -1 unknown."""

    offset: int
    leader_epoch: int


class Continuation(NamedTuple):
    """What a reader of a position finds.

    offset: of the next record that is there, committed or not, or of the end of the log; below the
    position where the log was cut: the end of what remained of its epoch. time_ms: of that record,
    Unix ms, -1 unknown. error: why the batch that begins at `offset` cannot be read.
    """

    offset: int
    time_ms: int = -1
    error: KafkaError | None = None

    @property
    def continues_at(self) -> int | None:
        """Return the offset where a reader continues; None: it cannot read what is there."""
        return None if self.error else self.offset

    @property
    def unreadable_at(self) -> int | None:
        """Return the offset of a batch that cannot be decoded; None: it can be."""
        return self.offset if self.error and self.error.code() in DECODE_ERRORS else None


def find_continuations(
    kafka: Mapping[str, str], topic: str, positions: Mapping[int, ReadFrom]
) -> dict[int, Continuation]:
    """Return what a reader of each position finds; nothing of those of which no answer comes in time.

    Without Read on the topic each has one of DENIED_ERRORS.
    """
    found: dict[int, Continuation] = {}
    reader = {
        "check.crcs": "true",
        **kafka,
        "group.id": f"reader-{uuid4()}",  # required by the client, which neither joins nor commits
        "enable.auto.commit": False,
        "isolation.level": "read_uncommitted",  # an open transaction must not hold the answer up
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest",  # not "error": the client then says only that the log was cut
        "fetch.message.max.bytes": 1,  # one batch is enough
        "fetch.wait.max.ms": 10,  # the end of a log is an answer, too
        "log_level": 0,
    }
    with closing(Consumer(reader)) as consumer:
        starts = [
            TopicPartition(topic, partition, one.offset, leader_epoch=one.leader_epoch)
            for partition, one in positions.items()
        ]
        consumer.assign(starts)
        for start in starts:
            consumer.seek(start)  # only this compares the epochs: librdkafka issue 5158
        deadline = time.monotonic() + CONTINUE_S
        while len(found) < len(positions) and (left := deadline - time.monotonic()) > 0:
            for record in consumer.consume(len(positions), min(left, 0.5)):
                if (error := record.error()) is None:
                    answer = Continuation(int(record.offset() or 0), record.timestamp()[1])
                elif error.code() == KafkaError._PARTITION_EOF:
                    answer = Continuation(int(record.offset() or 0))
                elif error.code() in DECODE_ERRORS and record.topic() is not None:
                    answer = Continuation(int(record.offset() or 0), error=error)
                elif error.code() in DENIED_ERRORS:
                    return dict.fromkeys(positions, Continuation(-1, error=error)) | found
                else:
                    continue
                found.setdefault(int(record.partition() or 0), answer)
    return found


def find_batch_end(
    kafka: Mapping[str, str], topic: str, partition: int, batch: int, log_end: int
) -> int:
    """Return the first offset behind a batch that cannot be read, by trying: the client does not tell.

    batch: the offset at which it begins; log_end: of the partition.
    """
    inside, step, behind = batch, 1, log_end
    while inside + 1 < behind:  # most batches are short: steps that grow, then halves
        tried = min(inside + step, (inside + behind + 1) // 2)
        answer = find_continuations(kafka, topic, {partition: ReadFrom(tried, -1)}).get(partition)
        if answer is not None and answer.error is not None and answer.offset == batch:
            inside, step = tried, step * 2
        else:
            behind = tried
    return behind
