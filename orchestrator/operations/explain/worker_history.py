"""The history of a worker: what Postgres and Kafka still know of it, from its command to its status."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from confluent_kafka import Message as Record
from psycopg.rows import args_row

from orchestrator.contract.messages import record_time_ms
from orchestrator.contract.records import partition_offset
from orchestrator.kafka.reader import datetime_from_ms, time_of
from outbox import Connection, query
from outbox.admin import RowStatus, find_deferred, find_row

MAX_SHOWN = 10  # of each kind, the latest


class FoundRecord(NamedTuple):
    """A record of a topic. at: its time; None if the record itself is no longer in the topic."""

    topic: str
    partition: int
    offset: int
    at: datetime | None


def found_record(record: Record) -> FoundRecord:
    """Return where a record is, and its time."""
    return FoundRecord(record.topic() or "", *partition_offset(record), time_of(record))


class WorkerRow(NamedTuple):
    """A row of `workers`. Times with a zone; None only in a table that existed before us."""

    worker_id: UUID
    scenario_uuid: UUID
    status: str
    process_pid: int | None
    created_at: datetime | None
    updated_at: datetime | None


class WorkerHistory(NamedTuple):
    """A worker with the records and the row that are known of it.

    command_time: of the command's record; None if the worker's id is not one of ours. command: where
    the record is. unsearched_offsets: offsets at which it may be and that were not tried. row: in the
    outbox, or parked. deferred: why it is not deployed although it is published. order: the deploy
    order. duplicates: further orders that were read, perhaps not all.
    """

    worker: WorkerRow
    command_time: datetime | None
    row: RowStatus | None
    deferred: str | None = None
    command: FoundRecord | None = None
    unsearched_offsets: int = 0
    order: FoundRecord | None = None
    duplicates: Sequence[FoundRecord] = ()


# Our sessions have the time zone of the columns: so it is right for those with and without one.
FIND_WORKER = """
    SELECT worker_id, scenario_uuid, status, process_pid,
           created_at::timestamptz, updated_at::timestamptz
      FROM workers
     WHERE worker_id = %(id)s
"""


def find_worker(conn: Connection, worker_id: UUID) -> WorkerRow | None:
    """Return the worker of that id."""
    found = query(conn, args_row(WorkerRow), FIND_WORKER, {"id": worker_id})
    return found[0] if found else None


FIND_WORKERS_OF_SCENARIO = """
    SELECT worker_id, scenario_uuid, status, process_pid,
           created_at::timestamptz, updated_at::timestamptz
      FROM workers
     WHERE scenario_uuid = %(id)s
     ORDER BY id DESC
     LIMIT %(limit)s
"""


def find_workers_of_scenario(conn: Connection, scenario: UUID, limit: int) -> list[WorkerRow]:
    """Return the latest workers of a scenario, the latest first. Reads the table: no index has it."""
    values = {"id": scenario, "limit": limit}
    return query(conn, args_row(WorkerRow), FIND_WORKERS_OF_SCENARIO, values)


def read_history(conn: Connection, worker: WorkerRow) -> WorkerHistory:
    """Return what Postgres knows of a worker; its id begins with the time of the command."""
    is_ours = worker.worker_id.version == 8
    command_time = datetime_from_ms(record_time_ms(worker.worker_id)) if is_ours else None
    row = find_row(conn, worker.worker_id)
    return WorkerHistory(worker, command_time, row, find_deferred(conn, worker.worker_id))
