"""Deploy orders of the commands that dead letters hold, of workers that do not exist.

A database that was restored from a backup has forgotten workers whose orders were sent since, and the
platform deletes old ones. The output topic has their orders: such a command is not sent again.
"""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import NamedTuple, TextIO
from uuid import UUID

from orchestrator.config.settings import Settings
from orchestrator.contract.messages import order_ids
from orchestrator.contract.records import partition_offset
from orchestrator.kafka import topics
from orchestrator.kafka.reader import (
    MAX_CLOCK_SKEW,
    complete_since,
    find_ranges,
    read_ranges,
    time_of,
)


class SentOrders(NamedTuple):
    """Partition and offset of the orders that were found, by worker.

    complete_since: the time since which the topic has all its records; None: all that were asked for.
    """

    found: Mapping[UUID, tuple[int, int]]
    complete_since: datetime | None = None


def find_orders(
    settings: Settings, workers: Collection[UUID], since: datetime, progress: TextIO | None
) -> SentOrders:
    """Look for the orders of these workers in the output, as it is now, from `since` on.

    Raises TopicMissing or KafkaException.
    """
    admin, topic = topics.Admin(settings.kafka), settings.output_topic
    since_ms = max(int((since - MAX_CLOCK_SKEW).timestamp() * 1000), 0)
    ranges = find_ranges(admin, topic, since_ms or None)
    found: dict[UUID, tuple[int, int]] = {}
    oldest: dict[int, datetime] = {}
    for chunk in read_ranges(settings.kafka, topic, ranges, progress):
        for record in chunk:
            oldest.setdefault(partition_offset(record)[0], time_of(record))
            worker = order_ids(record).worker_id
            if worker and worker in workers:
                found[worker] = partition_offset(record)
    return SentOrders(found, complete_since(admin, topic, ranges, oldest, datetime.now(UTC)))
