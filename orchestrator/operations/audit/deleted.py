"""The records whose worker the platform has deleted: they are no fault.

A worker's id is made of its command's position and time. So a record of no worker is one of ours if a
command that was consumed has its id: the worker was accepted, and deleted later. Only inputs that still
have the command can tell.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TextIO
from uuid import UUID

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from psycopg.rows import args_row

from orchestrator.contract.messages import record_time_ms, worker_id_of
from orchestrator.contract.records import headers_of
from orchestrator.kafka import topics
from orchestrator.kafka.reader import OffsetRange, find_ranges, read_ranges
from outbox import Connection, arrays, query, scalars

CREATE_UNKNOWN_WORKERS = """
    CREATE TEMP TABLE unknown_workers (
        worker_id UUID PRIMARY KEY,
        deleted   BOOLEAN NOT NULL DEFAULT false
    )
"""
# Only ours are of version 8.
LIST_UNKNOWN_WORKERS = """
    INSERT INTO pg_temp.unknown_workers (worker_id)
    SELECT DISTINCT worker_id
      FROM pg_temp.faults
     WHERE kind = 'unknown' AND pg_catalog.substr(worker_id::text, 15, 1) = '8'
"""
# An id begins with its command's time: the least one is the oldest.
FIND_OLDEST = "SELECT worker_id FROM pg_temp.unknown_workers ORDER BY worker_id LIMIT 1"
NOTE_COMMANDS = """
    UPDATE pg_temp.unknown_workers SET deleted = true WHERE worker_id = ANY(%(worker_ids)b::uuid[])
"""
NOTE_DELETED = """
    UPDATE pg_temp.faults
       SET kind = 'deleted'
      FROM pg_temp.unknown_workers
     WHERE kind = 'unknown' AND faults.worker_id = unknown_workers.worker_id AND deleted
"""


def find_deleted(
    conn: Connection, kafka: Mapping[str, str], progress: TextIO | None
) -> Sequence[str] | None:
    """Turn unknown records into deleted ones; return the inputs that were read, None: none had to be.

    Reads the inputs since the oldest of these commands, and not beyond what was consumed.
    """
    conn.execute(CREATE_UNKNOWN_WORKERS)
    conn.execute(LIST_UNKNOWN_WORKERS)
    oldest = next(iter(scalars(conn, UUID, FIND_OLDEST)), None)
    if oldest is None:
        return None
    read = []
    for consumed in read_consumed(conn, topics.Admin(kafka), record_time_ms(oldest)):
        for chunk in read_ranges(kafka, consumed.topic, consumed.ranges, progress):
            ids = [worker_id_of(one, consumed.topic_id, headers_of(one)) for one in chunk]
            conn.execute(NOTE_COMMANDS, {"worker_ids": arrays.uuids(ids)})
        read.append(consumed.topic)
    conn.execute(NOTE_DELETED)
    return read


class ConsumedInput(NamedTuple):
    """An input, and what of it was consumed, by partition."""

    topic: str
    topic_id: UUID
    ranges: Mapping[int, OffsetRange]


class ConsumedEnd(NamedTuple):
    """Where the consumed part of a partition ends."""

    topic: str
    topic_id: UUID
    partition: int
    end: int


READ_CONSUMED_ENDS = """
    SELECT topic, topic_id, partition,
           greatest(next_offset, decided_end)
      FROM consumed_offsets
     ORDER BY topic, topic_id, partition
"""


def read_consumed(conn: Connection, admin: AdminClient, since_ms: int) -> Iterator[ConsumedInput]:
    """Yield the inputs that still exist and that our user may read, and what to read of each."""
    ends = query(conn, args_row(ConsumedEnd), READ_CONSUMED_ENDS)
    for topic in dict.fromkeys(end.topic for end in ends):
        if not is_readable(admin, topic):
            continue
        topic_id = topics.read_topic_id(admin, topic)
        consumed = {one.partition: one.end for one in ends if one[:2] == (topic, topic_id)}
        # A record without a timestamp counts as time 0, and Kafka does not find it by its time.
        found = find_ranges(admin, topic, since_ms or None)
        ranges = {
            partition: OffsetRange(one.first, min(one.end, consumed.get(partition, 0)))
            for partition, one in found.items()
        }
        yield ConsumedInput(topic, topic_id, ranges)


def is_readable(admin: AdminClient, topic: str) -> bool:
    """Return whether the topic exists and our user may know it."""
    try:
        return topics.exists(admin, topic)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise
        return False
