"""The audit: what a read_committed reader of the output topic sees, against workers and outbox.

Exactly once means: every deployed worker has one record, no record is without a worker, and the records
of a scenario come in the order in which its workers were accepted.

It may run while all processes work. Only workers that were deployed before the topic's high watermarks
were read must have a record below them, and a worker that has a record below them was accepted before.
Postgres holds the topic's records in a temporary table and does the comparison, so memory is bounded.
No transaction stays open while Kafka is read, so vacuum is not held up.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import NamedTuple, TextIO
from uuid import UUID

import msgspec
from confluent_kafka import Message as Record
from psycopg.rows import args_row

from orchestrator.contract.messages import DeployOrder
from orchestrator.contract.records import partition_offset
from orchestrator.kafka import topics
from orchestrator.kafka.reader import (
    MAX_CLOCK_SKEW,
    OffsetRange,
    complete_since,
    find_ranges,
    read_ranges,
    time_of,
)
from outbox import Connection, query, scalar
from outbox.admin import check_session, create_unpublished_messages, snapshot

EXAMPLES = 5  # of each fault

FAULTS = {
    "lost": "workers with neither a record nor an outbox row",
    "duplicated": "records of a worker that has an earlier one",
    "unknown": "records of no worker",
    "reordered": "records behind a later one of their scenario",
}


class Example(NamedTuple):
    """One fault: the worker, and the record. None: the record is no valid order, or there is none."""

    worker_id: UUID | None
    partition: int | None
    offset: int | None


class Audit(NamedTuple):
    """Counts: of workers accepted, deployed, parked; of outbox rows waiting; of records; of faults.

    since: workers accepted earlier need no record; None: all were compared.
    """

    accepted: int
    deployed: int
    waiting: int
    parked: int
    published: int
    lost: int
    duplicated: int
    unknown: int
    reordered: int
    since: datetime | None
    examples: Mapping[str, Sequence[Example]]

    @property
    def passed(self) -> bool:
        """Return whether there is no fault."""
        return not (self.lost or self.duplicated or self.unknown or self.reordered)


def audit(
    conn: Connection,
    kafka: Mapping[str, str],
    topic: str,
    since: datetime | None = None,
    progress: TextIO | None = None,
) -> Audit:
    """Read the topic up to its high watermarks and compare it with the workers.

    conn: in no transaction. since: leave out older records and workers. progress: where to write how
    far the reading is. Raises DatabaseNotReady, TopicMissing, KafkaException or psycopg.Error.
    """
    check_session(conn)  # temporary tables belong to one session
    admin = topics.Admin(kafka)
    started = scalar(conn, datetime, NOW)  # before the high watermarks
    earliest = None if since is None else int((since - MAX_CLOCK_SKEW).timestamp() * 1000)
    ranges = find_ranges(admin, topic, earliest)
    with temporary_tables(conn):
        copied = copy_topic(conn, kafka, topic, ranges, progress)
        # A record that retention deleted is no fault. Of a partition from which it deleted all, only
        # `since` says from when on records must be there.
        kept = complete_since(admin, topic, ranges, copied.oldest, None if since else started)
        since = max((time for time in (since, kept) if time), default=None)
        return find_faults(conn, copied.records, started, since)


NOW = "SELECT clock_timestamp()"
CREATE_PUBLISHED = """
    CREATE TEMP TABLE published (
        partition     INTEGER NOT NULL,
        record_offset BIGINT NOT NULL,
        worker_id     UUID,
        scenario_uuid UUID
    )
"""
CREATE_FAULTS = """
    CREATE TEMP TABLE faults (
        kind          TEXT NOT NULL,
        worker_id     UUID,
        partition     INTEGER,
        record_offset BIGINT
    )
"""
DROP_TEMPORARY_TABLES = "DISCARD TEMP"


@contextmanager
def temporary_tables(conn: Connection) -> Iterator[None]:
    """Have the tables of the comparison, for this session alone, while the block runs."""
    conn.execute(CREATE_PUBLISHED)
    conn.execute(CREATE_FAULTS)
    try:
        yield
    finally:
        conn.execute(DROP_TEMPORARY_TABLES)


COPY_PUBLISHED = """
    COPY published (partition, record_offset, worker_id, scenario_uuid) FROM STDIN (FORMAT binary)
"""
ANALYZE_PUBLISHED = "ANALYZE published"


class TopicCopy(NamedTuple):
    """What was copied of the topic. oldest: by partition, the time of its first record."""

    records: int
    oldest: Mapping[int, datetime]


def copy_topic(
    conn: Connection,
    kafka: Mapping[str, str],
    topic: str,
    ranges: Mapping[int, OffsetRange],
    progress: TextIO | None,
) -> TopicCopy:
    """Copy the offsets and ids of the records into Postgres, chunk by chunk."""
    records = 0
    oldest: dict[int, datetime] = {}
    for chunk in read_ranges(kafka, topic, ranges, progress):
        with conn.cursor().copy(COPY_PUBLISHED) as copy:
            copy.set_types(["int4", "int8", "uuid", "uuid"])
            for record in chunk:
                partition, offset = partition_offset(record)
                copy.write_row((partition, offset, *order_ids(record)))
                oldest.setdefault(partition, time_of(record))
        records += len(chunk)
    conn.execute(ANALYZE_PUBLISHED)
    return TopicCopy(records, oldest)


class OrderIds(NamedTuple):
    """The ids in a record of the output topic; None if it is no valid deploy order."""

    worker_id: UUID | None
    scenario_uuid: UUID | None


decode_order = msgspec.json.Decoder(DeployOrder).decode


def order_ids(record: Record) -> OrderIds:
    """Return the ids of a deploy order."""
    try:
        order = decode_order(record.value() or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return OrderIds(None, None)
    return OrderIds(order.worker_id, order.scenario_uuid)


# `updated_at` is the start of the transaction that set a worker deployed, after the Kafka commit: if
# that was before the marks were taken, its record is below them. A later change is judged next time.
FIND_LOST = """
    INSERT INTO faults (kind, worker_id)
    SELECT 'lost', worker_id
      FROM workers
     WHERE (%(since)s::timestamptz IS NULL OR created_at >= %(since)s::timestamptz AT TIME ZONE 'UTC')
       AND (status = 'pending' OR updated_at IS NULL
            OR updated_at < %(started)s::timestamptz AT TIME ZONE 'UTC')
       AND NOT EXISTS (SELECT FROM published WHERE published.worker_id = workers.worker_id)
       AND NOT EXISTS (SELECT FROM unpublished_messages WHERE aggregate_id = workers.worker_id)
"""
FIND_DUPLICATED = """
    WITH numbered AS (
        SELECT worker_id, partition, record_offset,
               row_number() OVER (PARTITION BY worker_id ORDER BY partition, record_offset) AS copy
          FROM published
         WHERE worker_id IS NOT NULL
    )
    INSERT INTO faults (kind, worker_id, partition, record_offset)
    SELECT 'duplicated', worker_id, partition, record_offset
      FROM numbered
     WHERE copy > 1
"""
FIND_UNKNOWN = """
    INSERT INTO faults (kind, worker_id, partition, record_offset)
    SELECT 'unknown', worker_id, partition, record_offset
      FROM published
     WHERE NOT EXISTS (SELECT FROM workers WHERE workers.worker_id = published.worker_id)
"""
# There is an order within a partition alone; added partitions may have moved a scenario to another one.
FIND_REORDERED = """
    WITH followed AS (
        SELECT worker_id, partition, record_offset, id,
               max(id) OVER (PARTITION BY partition, published.scenario_uuid
                                 ORDER BY record_offset
                                  ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS latest
          FROM published
          JOIN workers USING (worker_id)
    )
    INSERT INTO faults (kind, worker_id, partition, record_offset)
    SELECT 'reordered', worker_id, partition, record_offset
      FROM followed
     WHERE id < latest
"""
COUNT_WORKERS = """
    SELECT count(*) AS accepted,
           count(*) FILTER (WHERE status <> 'pending') AS deployed,
           (SELECT count(*) FROM unpublished_messages WHERE NOT parked) AS waiting,
           (SELECT count(*) FROM unpublished_messages WHERE parked) AS parked
      FROM workers
     WHERE %(since)s::timestamptz IS NULL OR created_at >= %(since)s::timestamptz AT TIME ZONE 'UTC'
"""
COUNT_FAULTS = "SELECT kind, count(*) FROM faults GROUP BY kind"
READ_EXAMPLES = """
    WITH numbered AS (
        SELECT kind, worker_id, partition, record_offset,
               row_number() OVER (PARTITION BY kind ORDER BY partition, record_offset) AS number
          FROM faults
    )
    SELECT kind, worker_id, partition, record_offset
      FROM numbered
     WHERE number <= %(examples)s
     ORDER BY kind, number
"""


class WorkerCounts(NamedTuple):
    """Workers, and messages about them that are not published."""

    accepted: int
    deployed: int
    waiting: int
    parked: int


class FaultCount(NamedTuple):
    """How many faults of a kind there are."""

    kind: str
    faults: int


class Fault(NamedTuple):
    """One fault, as the table `faults` has it."""

    kind: str
    worker_id: UUID | None
    partition: int | None
    offset: int | None


def find_faults(conn: Connection, published: int, started: datetime, since: datetime | None) -> Audit:
    """Compare both sides. started: Postgres's time before the topic's high watermarks were read."""
    with snapshot(conn):  # a message must not leave the outbox between the two statements
        create_unpublished_messages(conn)
        conn.execute(FIND_LOST, {"since": since, "started": started})
    for statement in (FIND_DUPLICATED, FIND_UNKNOWN, FIND_REORDERED):
        conn.execute(statement)
    (workers,) = query(conn, args_row(WorkerCounts), COUNT_WORKERS, {"since": since})
    counts = {found.kind: found.faults for found in query(conn, args_row(FaultCount), COUNT_FAULTS)}
    examples: dict[str, list[Example]] = {}
    for fault in query(conn, args_row(Fault), READ_EXAMPLES, {"examples": EXAMPLES}):
        example = Example(fault.worker_id, fault.partition, fault.offset)
        examples.setdefault(fault.kind, []).append(example)
    return Audit(
        *workers,
        published=published,
        lost=counts.get("lost", 0),
        duplicated=counts.get("duplicated", 0),
        unknown=counts.get("unknown", 0),
        reordered=counts.get("reordered", 0),
        since=since,
        examples=examples,
    )


def audit_fields(found: Audit) -> dict[str, object]:
    """Return the audit for a script."""
    examples = {
        kind: [example._asdict() for example in found.examples.get(kind, ())] for kind in FAULTS
    }
    return {"passed": found.passed, **found._asdict(), "examples": examples}
