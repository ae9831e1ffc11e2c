"""The life of an order, put together from what Postgres and Kafka still know of it.

Where a command lay is not stored: a worker's id is made of it. So the place is found by trying places
around the time that the id begins with, and a match of the 74 bits proves it without reading a record.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import NamedTuple, TextIO, cast
from uuid import UUID

from confluent_kafka import Message as Record

from orchestrator.config.settings import Settings
from orchestrator.contract.messages import MS_BITS, record_time_ms, worker_id
from orchestrator.kafka import topics
from orchestrator.kafka.reader import (
    MAX_CLOCK_SKEW,
    OffsetRange,
    datetime_from_ms,
    find_ranges,
    read_ranges,
    time_of,
)
from orchestrator.operations.audit import row_of
from outbox import Connection
from outbox.admin import RowStatus, find_row

SHOWN = 10  # of each kind, the latest
TRIES = 1_000_000  # places to try in a partition, a few microseconds each


class Found(NamedTuple):
    """A record of a topic. at: its timestamp; None if the record itself is no longer in the log."""

    topic: str
    partition: int
    offset: int
    at: datetime | None


class Waiting(NamedTuple):
    """A row in the outbox or set aside. ahead: rows of its lane before it; in_hand: batch, if begun."""

    table: str
    lane: int
    id: int
    created_at: datetime
    ahead: int
    in_hand: int | None
    reason: str | None


class Life(NamedTuple):
    """An order, from the command to its worker's status of now. Times in UTC.

    created_at, updated_at: None only in a table that was adopted. commanded_at: None if the worker's id
    is not of our making. untried: places where the command may lie and that were not tried.
    duplicates: further records of the worker that were met, not all there are.
    """

    worker_id: UUID
    scenario_uuid: UUID
    status: str
    process_pid: int | None
    created_at: datetime | None
    updated_at: datetime | None
    commanded_at: datetime | None
    command: Found | None
    untried: int
    waiting: Waiting | None
    order: Found | None
    duplicates: Sequence[Found]


# ---- what Postgres knows ----------------------------------------------------------------------------


Row = tuple[UUID, UUID, str, int | None, datetime | None, datetime | None]

FIND_WORKER = """
    SELECT worker_id, scenario_uuid, status, process_pid,
           created_at AT TIME ZONE 'UTC', updated_at AT TIME ZONE 'UTC'
      FROM workers
     WHERE worker_id = %(id)s
"""


def find_worker(conn: Connection, wanted: UUID) -> Row | None:
    """Return the worker of that id."""
    return cast("Row | None", conn.execute(FIND_WORKER, {"id": wanted}).fetchone())


FIND_WORKERS_OF = """
    SELECT worker_id, scenario_uuid, status, process_pid,
           created_at AT TIME ZONE 'UTC', updated_at AT TIME ZONE 'UTC'
      FROM workers
     WHERE scenario_uuid = %(id)s
     ORDER BY id DESC
     LIMIT %(limit)s
"""


def find_workers_of(conn: Connection, scenario: UUID) -> list[Row]:
    """Return the latest workers of a scenario, the latest first; one more than are shown."""
    values = {"id": scenario, "limit": SHOWN + 1}  # no index has the scenario: the table is read
    return cast("list[Row]", conn.execute(FIND_WORKERS_OF, values).fetchall())


def begin(conn: Connection, row: Row) -> Life:
    """Return what Postgres knows of a worker."""
    worker = row[0]
    commanded_at = datetime_from_ms(record_time_ms(worker)) if worker.version == 8 else None
    waiting = find_row(conn, worker)
    return Life(*row, commanded_at, None, 0, waiting and waiting_of(waiting), None, ())


def waiting_of(row: RowStatus) -> Waiting:
    """Return a row as it is shown."""
    reason = row.reason and row.reason + " (given up by a person)" * row.discarded
    return Waiting(
        row.table, row.lane, row.id, row.created_at, row.rows_ahead, row.batch_number, reason
    )


def look_in_kafka(settings: Settings, lives: Sequence[Life], talk: TextIO | None) -> list[Life]:
    """Add what Kafka knows of the workers."""
    return find_orders(settings, find_commands(settings, lives), talk)


# ---- the command -----------------------------------------------------------------------------------


def find_commands(settings: Settings, lives: Sequence[Life]) -> list[Life]:
    """Find the records that the workers were made of."""
    admin, topic = topics.Admin(settings.kafka), settings.input_topic
    topic_id = topics.topic_id(admin, topic)
    found = [_find_command(admin, topic, topic_id, life) for life in lives]
    missing = [life.worker_id for life in found if life.commanded_at and life.command is None]
    if not missing:
        return found
    # Deleted by retention, perhaps: what the log held before.
    older = {
        p: OffsetRange(max(s.first - TRIES, 0), s.first) for p, s in find_ranges(admin, topic).items()
    }
    places = _try_places(missing, topic_id, older)
    return [
        life._replace(command=Found(topic, *places[life.worker_id], None), untried=0)
        if life.worker_id in places
        else life
        for life in found
    ]


def _find_command(admin: topics.Admin, topic: str, topic_id: UUID, life: Life) -> Life:
    """Look where the log has the command's time, and behind."""
    if life.commanded_at is None:
        return life
    time_ms = record_time_ms(life.worker_id)
    spans = find_ranges(admin, topic, time_ms or None)  # by time 0 a record without a time is not found
    place = _try_places([life.worker_id], topic_id, spans).get(life.worker_id)
    if place is None:
        return life._replace(untried=sum(max(span.length - TRIES, 0) for span in spans.values()))
    return life._replace(command=Found(topic, *place, life.commanded_at))


def _try_places(
    workers: Sequence[UUID], topic_id: UUID, spans: Mapping[int, OffsetRange]
) -> dict[UUID, tuple[int, int]]:
    """Return partition and offset of which the workers' ids are made.

    All partitions in turn: where the time is right, each place is near the beginning of its span.
    """
    wanted = {_without_time(worker): worker for worker in workers}
    found: dict[UUID, tuple[int, int]] = {}
    for step in range(min(TRIES, max(span.length for span in spans.values()))):
        for partition, span in spans.items():
            place = partition, span.first + step
            if place[1] < span.end and (made := worker_id(topic_id, *place, 0)) in wanted:
                found[wanted[made]] = place
        if len(found) == len(wanted):
            break
    return found


ID_BITS = 128


def _without_time(worker: UUID) -> UUID:
    """Return the id as it would be of a record without a time."""
    return UUID(int=worker.int & ((1 << (ID_BITS - MS_BITS)) - 1))


# ---- the order --------------------------------------------------------------------------------------


def find_orders(settings: Settings, lives: Sequence[Life], talk: TextIO | None) -> list[Life]:
    """Find the deploy orders: read the output from the commands' time on, until all are found."""
    looked_for = [life for life in lives if life.waiting is None or life.waiting.in_hand is not None]
    if not looked_for:
        return list(lives)
    wanted = {life.worker_id for life in looked_for}
    found: dict[UUID, list[Found]] = {}
    with closing(_read_since(settings, min(map(_earliest, looked_for)), talk)) as chunks:
        for chunk in chunks:
            for record in chunk:
                if (worker := row_of(record)[2]) in wanted:
                    found.setdefault(worker, []).append(place_of(record))
            if len(found) == len(wanted):  # duplicates further on are the audit's
                break
    return [
        life._replace(order=records[0], duplicates=records[1:])
        if (records := found.get(life.worker_id))
        else life
        for life in lives
    ]


def _earliest(life: Life) -> datetime:
    """Return a time before which the order was not published, the clocks apart."""
    return life.created_at or life.commanded_at or datetime_from_ms(0)


def _read_since(
    settings: Settings, since: datetime, talk: TextIO | None
) -> Generator[list[Record], None, None]:
    admin, topic = topics.Admin(settings.kafka), settings.output_topic
    since_ms = max(int((since.timestamp() - MAX_CLOCK_SKEW.total_seconds()) * 1000), 0)
    spans = find_ranges(admin, topic, since_ms or None)
    return read_ranges(settings.kafka, topic, spans, talk)


def place_of(record: Record) -> Found:
    """Return where a record lies."""
    topic, partition, offset = record.topic(), record.partition(), record.offset()
    return Found(cast("str", topic), cast("int", partition), cast("int", offset), time_of(record))
