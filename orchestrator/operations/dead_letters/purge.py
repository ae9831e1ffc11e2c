"""Delete dead letters from Kafka that were handled: what they hold is there until then.

Kafka deletes only from the beginning of a partition, so what was handled goes up to the first one that
waits, or is another input's; retention deletes the others. Invariant: nothing is deleted that a relay
may still search. Its search begins at the ends of the topic, as they were up to some seconds before the
batch was claimed.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import NamedTuple, TextIO

from confluent_kafka import TopicPartition

from orchestrator.config.settings import Settings
from orchestrator.kafka import topics
from orchestrator.operations.dead_letters.filter import RecordFilter
from orchestrator.operations.dead_letters.letters import (
    DeadLetter,
    LetterState,
    find_dead_letters,
    read_dead_letters,
)
from outbox import Connection
from outbox.admin import read_search_starts

KEPT = {LetterState.WAITING, LetterState.FOREIGN}
YOUNG = timedelta(minutes=1)  # a claim whose search begins before it may be going on


class Purged(NamedTuple):
    """How many dead letters were deleted, and how many that were handled could not be."""

    deleted: int
    left: int


def purge_dead_letters(conn: Connection, settings: Settings, progress: TextIO | None) -> Purged:
    """Delete what was handled from the beginning of each partition. Raises KafkaException."""
    everything = RecordFilter()
    found = find_dead_letters(settings, everything)
    limits = read_limits(conn, settings.dead_letter_topic, found.ranges)
    young = datetime.now(UTC) - YOUNG
    ends: dict[int, int] = {}
    deleted = left = 0
    for letter in chain.from_iterable(read_dead_letters(conn, found, everything, progress)):
        partition, offset = letter.record_id
        if is_kept(letter) or letter.at > young:
            limits[partition] = min(limits[partition], offset)
        if offset < limits[partition]:
            ends[partition] = offset + 1
            deleted += 1
        elif not is_kept(letter):
            left += 1
    delete_before(settings, ends)
    return Purged(deleted, left)


def read_limits(conn: Connection, topic: str, partitions: Mapping[int, object]) -> dict[int, int]:
    """Return, by partition, the offset at which the first search of a batch in flight begins."""
    starts = read_search_starts(conn, topic)
    return {
        partition: min((start.start(partition) for start in starts), default=2**63 - 1)
        for partition in partitions
    }


def is_kept(letter: DeadLetter) -> bool:
    """Say whether a dead letter must stay: it waits, or this database does not know it yet."""
    return letter.state in KEPT or letter.is_ahead


def delete_before(settings: Settings, ends: Mapping[int, int]) -> None:
    """Delete the records of each partition before an offset. Raises KafkaException."""
    topic = settings.dead_letter_topic
    wanted = [TopicPartition(topic, partition, end) for partition, end in ends.items()]
    if wanted:
        deleted = topics.Admin(settings.kafka).delete_records(wanted, request_timeout=topics.REQUEST_S)
        for one in deleted.values():
            one.result()
