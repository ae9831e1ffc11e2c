"""The audit: what a read_committed reader of the output topic sees, against workers and outbox.

Exactly once means: every deployed worker has one record, no record lacks a worker, and the records
of a scenario come in the order in which its workers were accepted.

It may run while all processes work. Only workers that were deployed before the topic's marks were
taken must have a record below them; and whoever has a record below them was accepted before. Postgres
holds the topic's records in a temporary table and does the comparison, so memory is bounded; no
transaction stays open while Kafka is read, so vacuum is not held up.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import NamedTuple, TextIO, cast
from uuid import UUID

import msgspec
from confluent_kafka import Message as Record
from psycopg.rows import args_row

from orchestrator.contract.messages import DeployOrder
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

KINDS = {
    "lost": "workers with neither a record nor an outbox row",
    "duplicated": "records of a worker that has an earlier one",
    "unknown": "records that are of no worker",
    "reordered": "records behind a later one of their scenario",
}


class Example(NamedTuple):
    """One fault: whom it is about, and where in the topic; None: no valid order, or no record."""

    worker_id: UUID | None
    partition: int | None
    offset: int | None


class Audit(NamedTuple):
    """Counts of workers accepted, deployed, parked; of outbox rows waiting; of records; of faults.

    since: workers accepted earlier need no record; None: all were looked at.
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
    def clean(self) -> bool:
        """Say whether the promise was kept."""
        return not (self.lost or self.duplicated or self.unknown or self.reordered)


class Read(NamedTuple):
    """What was read of the topic. oldest: by partition, when its first record was made."""

    records: int
    oldest: Mapping[int, datetime]


def audit(
    conn: Connection,
    kafka: Mapping[str, str],
    topic: str,
    since: datetime | None = None,
    talk: TextIO | None = None,
) -> Audit:
    """Read the topic up to now and compare it with the workers. conn: in no transaction.

    since: leave out older records and workers. talk: where to tell how far it is.
    Raises DatabaseNotReady, TopicMissing, KafkaException or psycopg.Error.
    """
    check_session(conn)  # temporary tables, too, are a session's
    admin = topics.Admin(kafka)
    started = scalar(conn, datetime, NOW)  # before the marks
    earliest = None if since is None else int((since - MAX_CLOCK_SKEW).timestamp() * 1000)
    spans = find_ranges(admin, topic, earliest)
    with temporary_tables(conn):
        read = copy_topic(conn, kafka, topic, spans, talk)
        # What retention deleted is not missed; where all is deleted, only `since` can tell from when.
        kept = complete_since(admin, topic, spans, read.oldest, None if since else started)
        since = max((time for time in (since, kept) if time), default=None)
        return find_faults(conn, read.records, started, since)


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
DISCARD = "DISCARD TEMP"


@contextmanager
def temporary_tables(conn: Connection) -> Iterator[None]:
    """Have the tables that belong to this session alone, while the block runs."""
    conn.execute(CREATE_PUBLISHED)
    conn.execute(CREATE_FAULTS)
    try:
        yield
    finally:
        conn.execute(DISCARD)


COPY = "COPY published (partition, record_offset, worker_id, scenario_uuid) FROM STDIN (FORMAT binary)"
ANALYZE = "ANALYZE published"


def copy_topic(
    conn: Connection,
    kafka: Mapping[str, str],
    topic: str,
    spans: Mapping[int, OffsetRange],
    talk: TextIO | None,
) -> Read:
    """Copy the places and ids of the records into Postgres, chunk by chunk."""
    records = 0
    oldest: dict[int, datetime] = {}
    for chunk in read_ranges(kafka, topic, spans, talk):
        with conn.cursor().copy(COPY) as copy:
            copy.set_types(["int4", "int8", "uuid", "uuid"])
            for record in chunk:
                copy.write_row(row_of(record))
                oldest.setdefault(cast("int", record.partition()), time_of(record))
        records += len(chunk)
    conn.execute(ANALYZE)
    return Read(records, oldest)


decode_order = msgspec.json.Decoder(DeployOrder).decode


def row_of(record: Record) -> tuple[int | None, int | None, UUID | None, UUID | None]:
    """Return place and ids; of a record that is no deploy order the place alone."""
    try:
        order = decode_order(record.value() or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return record.partition(), record.offset(), None, None
    return record.partition(), record.offset(), order.worker_id, order.scenario_uuid


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
# A partition's order is all the order there is: a scenario in two of them was moved by new partitions.
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
SHOW_FAULTS = """
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
    """A fault as it is in the table `faults`."""

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
    for fault in query(conn, args_row(Fault), SHOW_FAULTS, {"examples": EXAMPLES}):
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


def as_json(found: Audit) -> str:
    """Return the audit for a script."""
    examples = {kind: [example._asdict() for example in found.examples.get(kind, ())] for kind in KINDS}
    fields = {"clean": found.clean, **found._asdict(), "examples": examples}
    return msgspec.json.format(msgspec.json.encode(fields), indent=2).decode()


def as_text(found: Audit) -> Iterator[str]:
    """Yield the audit for people, a line each."""
    if found.since:
        yield f"workers accepted since {found.since:%Y-%m-%d %H:%M:%S} UTC; older ones need no record"
    yield f"workers: {found.accepted:,} accepted, {found.deployed:,} deployed, {found.parked:,} parked"
    yield f"records: {found.published:,} published, {found.waiting:,} waiting in the outbox"
    for kind, meaning in KINDS.items():
        yield f"{kind:<10} {getattr(found, kind):>9,}  {meaning}"
        for example in found.examples.get(kind, ()):
            yield f"{'':<22}{_place(example)}"
    yield "clean" if found.clean else "BROKEN"


def _place(example: Example) -> str:
    who = "no deploy order" if example.worker_id is None else f"worker {example.worker_id}"
    where = f", partition {example.partition}, offset {example.offset}"
    return who if example.partition is None else who + where
