"""The audit: what a read_committed reader of the output topic sees, against the workers.

Exactly once means: every deployed worker has one record, no record lacks a worker, and the records
of a scenario come in the order in which its workers were accepted.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import NamedTuple, cast
from uuid import UUID, uuid4

import msgspec
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from orchestrator.messages import DeployOrder
from outbox import Connection

SILENCE_S = 30.0  # the brokers must show the next record or the end within this time


class Audit(NamedTuple):
    """Counts. lost: deployed, but no record. reordered: records behind a later one of their key."""

    accepted: int
    deployed: int
    published: int
    lost: int
    duplicated: int
    unknown: int
    reordered: int

    @property
    def clean(self) -> bool:
        """Say whether the promise was kept."""
        return not (self.lost or self.duplicated or self.unknown or self.reordered)


WORKERS = "SELECT worker_id, id, status <> 'pending' AS deployed FROM workers"


def audit(conn: Connection, kafka: Mapping[str, str], topic: str) -> Audit:
    """Read the topic up to now and compare it with the workers. Holds both in memory."""
    rows = cast("list[tuple[UUID, int, bool]]", conn.execute(WORKERS).fetchall())
    ids = {worker_id: number for worker_id, number, _ in rows}
    deployed = {worker_id for worker_id, _, is_deployed in rows if is_deployed}
    decode = msgspec.json.Decoder(DeployOrder).decode
    seen: Counter[UUID] = Counter()
    latest: dict[UUID, int] = {}  # by scenario: the highest worker number so far
    reordered = 0
    for record in read_to_end(kafka, topic):
        order = decode(record.value() or b"")
        seen[order.worker_id] += 1
        number = ids.get(order.worker_id, 0)
        reordered += number < latest.get(order.scenario_uuid, 0)
        latest[order.scenario_uuid] = max(number, latest.get(order.scenario_uuid, 0))
    return Audit(
        accepted=len(ids),
        deployed=len(deployed),
        published=seen.total(),
        lost=len(deployed - seen.keys()),
        duplicated=seen.total() - len(seen),
        unknown=len(seen.keys() - ids.keys()),
        reordered=reordered,
    )


def read_to_end(kafka: Mapping[str, str], topic: str) -> Iterator[Message]:
    """Yield every committed record of a topic, from its beginning to its end of now."""
    with closing(open_reader(kafka, topic)) as consumer:
        unread = {place.partition for place in consumer.assignment()}
        while unread:
            for record in _next_records(consumer):
                if record.error() is None:
                    yield record
                else:
                    unread.discard(cast("int", record.partition()))


def open_reader(kafka: Mapping[str, str], topic: str) -> Consumer:
    """Return a read_committed consumer of all of a topic that joins and commits nothing."""
    consumer = Consumer(
        {
            **kafka,
            "group.id": f"audit-{uuid4()}",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        },
        logger=logging.getLogger("librdkafka"),
    )
    partitions = consumer.list_topics(topic, timeout=SILENCE_S).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
    return consumer


def _next_records(consumer: Consumer) -> list[Message]:
    """Return the next records and ends of partitions. Raises KafkaException."""
    first = consumer.poll(SILENCE_S)
    if first is None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no record and no end"))
    records = [first, *consumer.consume(10_000, 0)]
    for record in records:
        error = record.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
    return records
