"""The comparison behind the audit, in temporary tables: memory is bounded for any number of records."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import NamedTuple, TextIO
from uuid import UUID

from psycopg.rows import args_row

from orchestrator.contract.messages import order_ids
from orchestrator.contract.records import partition_offset
from orchestrator.kafka.reader import OffsetRange, read_ranges, time_of
from outbox import Connection, query, scalar
from outbox.admin import create_deferred_aggregates, create_unpublished_messages, snapshot

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
    COPY pg_temp.published (partition, record_offset, worker_id, scenario_uuid)
    FROM STDIN (FORMAT binary)
"""
ANALYZE_PUBLISHED = "ANALYZE pg_temp.published"


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


# Times with and without a zone are compared as our session's zone says: that of the columns.
# `updated_at` is the start of the transaction that set a worker deployed, `deferred_at` of the one that
# deferred it, after the Kafka commit: if that was before the high watermarks were read, its record is
# below them. A later one is left to the next audit.
# Only our ids are of version 8: a worker with another one is the platform's own, and has no order.
FIND_LOST = """
    INSERT INTO pg_temp.faults (kind, worker_id)
    SELECT CASE WHEN pg_catalog.substr(worker_id::text, 15, 1) = '8' THEN 'lost' ELSE 'not_ours' END,
           worker_id
      FROM workers
     WHERE (%(since)s::timestamptz IS NULL OR created_at >= %(since)s::timestamptz)
       AND (status::text = 'pending' OR updated_at IS NULL
            OR updated_at < %(started)s::timestamptz)
       AND NOT EXISTS (SELECT FROM pg_temp.published WHERE published.worker_id = workers.worker_id)
       AND NOT EXISTS (SELECT FROM pg_temp.unpublished_messages WHERE aggregate_id = workers.worker_id)
       AND NOT EXISTS (SELECT FROM pg_temp.deferred_aggregates
                        WHERE aggregate_id = workers.worker_id
                          AND deferred_at >= %(started)s::timestamptz)
"""
FIND_DUPLICATED = """
    WITH numbered AS (
        SELECT worker_id, partition, record_offset,
               row_number() OVER (PARTITION BY worker_id ORDER BY partition, record_offset) AS copy
          FROM pg_temp.published
         WHERE worker_id IS NOT NULL
    )
    INSERT INTO pg_temp.faults (kind, worker_id, partition, record_offset)
    SELECT 'duplicated', worker_id, partition, record_offset
      FROM numbered
     WHERE copy > 1
"""
FIND_UNKNOWN = """
    INSERT INTO pg_temp.faults (kind, worker_id, partition, record_offset)
    SELECT 'unknown', worker_id, partition, record_offset
      FROM pg_temp.published
     WHERE NOT EXISTS (SELECT FROM workers WHERE workers.worker_id = published.worker_id)
"""
FIND_PUBLISHED_AND_PARKED = """
    INSERT INTO pg_temp.faults (kind, worker_id, partition, record_offset)
    SELECT 'published_and_parked', worker_id, partition, record_offset
      FROM pg_temp.published
      JOIN pg_temp.unpublished_messages ON aggregate_id = worker_id
     WHERE parked AND NOT discarded
"""
# What a repair or `parked retry` logged: these records stand behind later ones, and that is no fault.
CREATE_SENT_LATE = """
    CREATE TEMP TABLE sent_late AS
    SELECT DISTINCT worker_id::uuid AS worker_id
      FROM repairs
     CROSS JOIN pg_catalog.jsonb_array_elements_text(before -> 'worker_ids'::text) AS worker_id
"""
# There is an order within a partition alone: scattered.py finds the scenarios in several of them.
# Ids below zero come last: a used-up SERIAL goes on at -2^31 (docs/runbook.md).
FIND_REORDERED = """
    WITH numbered AS (
        SELECT worker_id, partition, record_offset, published.scenario_uuid,
               id::bigint + CASE WHEN id < 0 THEN 4294967296 ELSE 0 END AS number
          FROM pg_temp.published
          JOIN workers USING (worker_id)
         WHERE NOT EXISTS (SELECT FROM pg_temp.sent_late
                            WHERE sent_late.worker_id = published.worker_id)
    ), followed AS (
        SELECT worker_id, partition, record_offset, number,
               max(number) OVER (PARTITION BY partition, scenario_uuid
                                     ORDER BY record_offset
                                      ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS latest
          FROM numbered
    )
    INSERT INTO pg_temp.faults (kind, worker_id, partition, record_offset)
    SELECT 'reordered', worker_id, partition, record_offset
      FROM followed
     WHERE number < latest
"""


def find_faults(conn: Connection, started: datetime, since: datetime | None) -> None:
    """Compare both sides; write the faults to their table.

    started: Postgres's time before the topic's high watermarks were read. since: workers accepted
    earlier need no record.
    """
    with snapshot(conn):  # a message must not leave the outbox between the two statements
        create_unpublished_messages(conn)
        create_deferred_aggregates(conn)
        conn.execute(FIND_LOST, {"since": since, "started": started})
    conn.execute(CREATE_SENT_LATE)
    for statement in (FIND_DUPLICATED, FIND_UNKNOWN, FIND_PUBLISHED_AND_PARKED, FIND_REORDERED):
        conn.execute(statement)


class WorkerCounts(NamedTuple):
    """Workers, and messages about them that are not published. deferred: published, still pending."""

    accepted: int
    deployed: int
    deferred: int
    waiting: int
    parked: int


COUNT_WORKERS = """
    SELECT count(*) AS accepted,
           count(*) FILTER (WHERE status::text <> 'pending') AS deployed,
           (SELECT count(*) FROM pg_temp.deferred_aggregates) AS deferred,
           (SELECT count(*) FROM pg_temp.unpublished_messages WHERE NOT parked) AS waiting,
           (SELECT count(*) FROM pg_temp.unpublished_messages WHERE parked) AS parked
      FROM workers
     WHERE %(since)s::timestamptz IS NULL OR created_at >= %(since)s::timestamptz
"""


def count_workers(conn: Connection, since: datetime | None) -> WorkerCounts:
    """Count the workers accepted since then, and all messages about workers that are not published."""
    (counts,) = query(conn, args_row(WorkerCounts), COUNT_WORKERS, {"since": since})
    return counts


COUNT_SENT_LATE = "SELECT count(*) FROM pg_temp.published JOIN pg_temp.sent_late USING (worker_id)"


def count_sent_late(conn: Connection) -> int:
    """Count the records that were left out of the order, because `parked retry` sent them."""
    return scalar(conn, int, COUNT_SENT_LATE)


class FaultCount(NamedTuple):
    """How many faults of a kind there are."""

    kind: str
    faults: int


COUNT_FAULTS = "SELECT kind, count(*) FROM pg_temp.faults GROUP BY kind"


def count_faults(conn: Connection) -> dict[str, int]:
    """Return the number of faults by kind; none of a kind that there is not."""
    return {found.kind: found.faults for found in query(conn, args_row(FaultCount), COUNT_FAULTS)}


class Fault(NamedTuple):
    """One fault: the worker, and the record. None: the record is no valid order, or there is none."""

    kind: str
    worker_id: UUID | None
    partition: int | None
    offset: int | None


READ_EXAMPLES = """
    WITH numbered AS (
        SELECT kind, worker_id, partition, record_offset,
               row_number() OVER (PARTITION BY kind ORDER BY partition, record_offset) AS number
          FROM pg_temp.faults
    )
    SELECT kind, worker_id, partition, record_offset
      FROM numbered
     WHERE number <= %(examples)s
     ORDER BY kind, number
"""


def read_examples(conn: Connection, examples: int) -> list[Fault]:
    """Return some faults of each kind, the first ones of the topic."""
    return query(conn, args_row(Fault), READ_EXAMPLES, {"examples": examples})
