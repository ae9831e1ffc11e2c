"""Where a reader of a position would continue: below it, if the log was cut and has grown again.

Offsets do not show that. The brokers compare the position's leader epoch with the epochs of the log
(KIP-320), and the client follows what they say.
"""

import time
from collections.abc import Mapping
from contextlib import closing
from typing import NamedTuple
from uuid import uuid4

from confluent_kafka import Consumer, KafkaError, TopicPartition

CONTINUE_S = 5.0  # for the answers about all partitions
DENIED_ERRORS = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError._AUTHENTICATION})


class ReadFrom(NamedTuple):
    """A position in a log. leader_epoch: of the record before it, -1 unknown."""

    offset: int
    leader_epoch: int


def find_continuations(
    kafka: Mapping[str, str], topic: str, positions: Mapping[int, ReadFrom]
) -> dict[int, int]:
    """Return the offset where a reader of each position would continue, of those that have an answer.

    It is below the position where the log was cut: the end of what remained of its epoch. At or after
    the position all is well, and what is between holds no records. Without Read on the topic there is
    no answer.
    """
    found: dict[int, int] = {}
    reader = {
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
                error = record.error()
                if error is None or error.code() == KafkaError._PARTITION_EOF:
                    found.setdefault(int(record.partition() or 0), int(record.offset() or 0))
                elif error.code() in DENIED_ERRORS:
                    return found
    return found
