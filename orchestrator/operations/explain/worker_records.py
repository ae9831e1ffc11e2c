"""The records of workers in Kafka: their commands in the input topic, their orders in the output topic.

Where a command is, is not stored: a worker's id is made of it. So offsets are tried, from the time on
with which the id begins, and a match of the id's 74 bits proves the place without reading a record.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import TextIO
from uuid import UUID

from confluent_kafka import Message as Record
from confluent_kafka.admin import AdminClient

from orchestrator.config.settings import Settings
from orchestrator.contract.messages import MS_BITS, order_ids, record_time_ms, worker_id
from orchestrator.kafka import topics
from orchestrator.kafka.reader import (
    MAX_CLOCK_SKEW,
    OffsetRange,
    datetime_from_ms,
    find_ranges,
    read_ranges,
)
from orchestrator.operations.explain.worker_history import FoundRecord, WorkerHistory, found_record

MAX_TRIED_OFFSETS = 1_000_000  # in each partition; one takes a few microseconds


def add_records(
    settings: Settings, histories: Sequence[WorkerHistory], progress: TextIO | None
) -> list[WorkerHistory]:
    """Add what Kafka knows of the workers. Raises KafkaException or TopicMissing."""
    return find_orders(settings, find_commands(settings, histories), progress)


# ---- the command --------------------------------------------------------------------------------


def find_commands(settings: Settings, histories: Sequence[WorkerHistory]) -> list[WorkerHistory]:
    """Add the records of which the workers were made."""
    admin, topic = topics.Admin(settings.kafka), settings.input_topic
    topic_id = topics.read_topic_id(admin, topic)
    found = [_find_command(admin, topic, topic_id, history) for history in histories]
    missing = [h.worker.worker_id for h in found if h.command_time and h.command is None]
    if not missing:
        return found
    # Retention may have deleted the record: try what the log had before its start.
    older = {
        partition: OffsetRange(max(log.first - MAX_TRIED_OFFSETS, 0), log.first)
        for partition, log in find_ranges(admin, topic).items()
    }
    deleted = _try_offsets(missing, topic_id, older)
    return [
        history._replace(
            command=FoundRecord(topic, *deleted[history.worker.worker_id], None), unsearched_offsets=0
        )
        if history.worker.worker_id in deleted
        else history
        for history in found
    ]


def _find_command(
    admin: AdminClient, topic: str, topic_id: UUID, history: WorkerHistory
) -> WorkerHistory:
    """Try the offsets that the log has at the command's time and later."""
    if history.command_time is None:
        return history
    worker = history.worker.worker_id
    # A record without a time has time 0, by which Kafka finds nothing: then all offsets are tried.
    logs = find_ranges(admin, topic, record_time_ms(worker) or None)
    found = _try_offsets([worker], topic_id, logs)
    if worker not in found:
        left = sum(max(log.length - MAX_TRIED_OFFSETS, 0) for log in logs.values())
        return history._replace(unsearched_offsets=left)
    return history._replace(command=FoundRecord(topic, *found[worker], history.command_time))


def _try_offsets(
    workers: Sequence[UUID], topic_id: UUID, ranges: Mapping[int, OffsetRange]
) -> dict[UUID, tuple[int, int]]:
    """Return the partition and offset of which each worker's id is made, if it is one of these.

    All partitions in turn: in the right one the command is near the start of its range.
    """
    wanted = {_without_time(worker): worker for worker in workers}
    found: dict[UUID, tuple[int, int]] = {}
    for step in range(min(MAX_TRIED_OFFSETS, max(one.length for one in ranges.values()))):
        for partition, one in ranges.items():
            offset = one.first + step
            if offset < one.end and (made := worker_id(topic_id, partition, offset, 0)) in wanted:
                found[wanted[made]] = partition, offset
        if len(found) == len(wanted):
            break
    return found


ID_BITS = 128


def _without_time(worker: UUID) -> UUID:
    """Return the id that the same record would have without a time."""
    return UUID(int=worker.int & ((1 << (ID_BITS - MS_BITS)) - 1))


# ---- the order ----------------------------------------------------------------------------------


def find_orders(
    settings: Settings, histories: Sequence[WorkerHistory], progress: TextIO | None
) -> list[WorkerHistory]:
    """Add the deploy orders: read the output from the commands' time on, until all are found."""
    published = [h for h in histories if h.row is None or h.row.batch_number is not None]
    if not published:
        return list(histories)
    wanted = {history.worker.worker_id for history in published}
    found: dict[UUID, list[FoundRecord]] = {}
    with closing(_read_output(settings, min(map(_earliest, published)), progress)) as chunks:
        for chunk in chunks:
            for record in chunk:
                if (worker := order_ids(record).worker_id) in wanted:
                    found.setdefault(worker, []).append(found_record(record))
            if len(found) == len(wanted):  # the audit finds duplicates further on
                break
    return [
        history._replace(order=records[0], duplicates=records[1:])
        if (records := found.get(history.worker.worker_id))
        else history
        for history in histories
    ]


def _earliest(history: WorkerHistory) -> datetime:
    """Return a time before which the order was not published, apart from clock skew."""
    return history.worker.created_at or history.command_time or datetime_from_ms(0)


def _read_output(
    settings: Settings, since: datetime, progress: TextIO | None
) -> Generator[list[Record], None, None]:
    admin, topic = topics.Admin(settings.kafka), settings.output_topic
    since_ms = max(int((since.timestamp() - MAX_CLOCK_SKEW.total_seconds()) * 1000), 0)
    ranges = find_ranges(admin, topic, since_ms or None)
    return read_ranges(settings.kafka, topic, ranges, progress)
