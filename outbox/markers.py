"""The markers: what Kafka knows of each lane, its last batch.

A marker is an offset of the group `outbox-<identity>` on the marker topic, whose partition is the lane.
It is committed in the Kafka transaction of the batch that it names.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple
from uuid import UUID

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaException, TopicPartition

KafkaConfig = Mapping[str, str | int | float | bool]


class Marker(NamedTuple):
    """A lane's last batch in Kafka, and how many rows it had; None: not noted.

    A batch that Kafka rejects is shrunk under its number. If Postgres lost that, by a restore or a
    failover, the number alone would take rows for published that were left out.
    """

    batch_number: int
    rows: int | None = None


def marker_group(identity: UUID) -> str:
    """Return the name of the consumer group that holds the markers of an outbox."""
    return f"outbox-{identity}"


class MarkerReader:
    """Reads the lanes' markers. It is a member of no group, so the group never rebalances."""

    def __init__(self, kafka: KafkaConfig, identity: UUID, topic: str) -> None:
        self.topic = topic
        self._consumer = Consumer(
            {
                **kafka,
                "group.id": marker_group(identity),
                "isolation.level": "read_committed",  # committed() waits for pending transactions
                "enable.auto.commit": False,
                "connections.max.idle.ms": 1000,  # rarely asked: a new one is not forgotten
                "log_level": 0,  # its events are never polled; a failure shows in the call
            }
        )
        self.group_metadata = self._consumer.consumer_group_metadata()

    def read(self, lanes: Iterable[int], timeout_s: float) -> dict[int, Marker | None]:
        """Return each lane's marker, None if Kafka has none. Raises KafkaException."""
        asked = [TopicPartition(self.topic, lane) for lane in lanes]
        found = self._consumer.committed(asked, timeout=timeout_s)
        for one in found:
            if one.error:
                raise KafkaException(one.error)
        return {one.partition: parse_marker(one.offset, one.metadata or "") for one in found}

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()


def parse_marker(offset: int, metadata: str) -> Marker | None:
    """Return what a committed offset and the text beside it say; the text may be of any tool."""
    if offset == OFFSET_INVALID:
        return None
    return Marker(offset, int(metadata) if metadata.isdecimal() else None)
