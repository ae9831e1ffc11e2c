"""The input as `status` shows it: partitions, the rates of commands, dead letters."""

import time
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from psycopg.rows import args_row

from orchestrator.config.settings import Settings
from orchestrator.consumer import offsets
from orchestrator.consumer.offsets import Position
from orchestrator.consumer.refusals import find_refusal, read_continuations
from orchestrator.consumer.unread import find_unread
from orchestrator.contract.messages import record_time_ms
from orchestrator.contract.repair_commands import repair_of_partition
from orchestrator.kafka import topics
from orchestrator.kafka.reader import OffsetRange, datetime_from_ms, find_ranges
from orchestrator.operations.dead_letters.filter import RecordFilter
from orchestrator.operations.dead_letters.letters import (
    LetterState,
    count_handled,
    find_dead_letters,
    read_dead_letters,
)
from orchestrator.operations.status.statements import in_time
from outbox import Connection, query, scalars

RATE_S = 60  # the rates are those of this time


class PartitionReport(NamedTuple):
    """A partition of the input.

    position: the next offset to consume, in Postgres; None: never consumed. lag: offsets from there to
    the high watermark. refusal: why the consumer refuses it, with the command that ends it: repair.
    unread: why its records are not read although they are there, and what ends that.
    """

    partition: int
    position: int | None
    high_watermark: int
    lag: int
    refusal: str | None
    repair: str | None
    unread: str | None = None


class Rates(NamedTuple):
    """Per second, commands whose records are not older than RATE_S; None: could not be counted.

    After a backlog the records are older: then compare lag and batch numbers of two readings.
    """

    accepted: float | None
    deployed: float | None


class DeadLetterCount(NamedTuple):
    """Dead letters of our input that wait.

    is_upper_bound: letters of other inputs and ends of transactions are counted, too. refusal: why
    Postgres refuses the row of the last of them, if it does. since: the time of the oldest one.
    came_back: how many of them were retried before.
    """

    letters: int
    is_upper_bound: bool
    refusal: str | None = None
    since: datetime | None = None
    came_back: int = 0


def report_partitions(
    settings: Settings, conn: Connection, admin: topics.Admin
) -> list[PartitionReport]:
    """Compare every partition's position in Postgres with its log."""
    topic = settings.input_topic
    positions = offsets.read_positions(conn, topic)
    # After the positions: an older high watermark would look like a truncated log.
    topic_id, logs = topics.read_topic_id(admin, topic), find_ranges(admin, topic)
    continuations = read_continuations(settings.kafka, topic, topic_id, positions)
    last_stable = topics.read_last_stable_offsets(admin, topic, list(logs))
    reports = []
    for number, log in sorted(logs.items()):
        position, found = positions.get(number), continuations.get(number)
        report = _report_partition(number, position, topic_id, log, found and found.continues_at)
        if report.position is not None and report.refusal is None:
            unread = find_unread(
                topic,
                number,
                report.position,
                last_stable[number],
                log.end,
                found,
                repair_of_partition(number),
            )
            report = report._replace(unread=unread)
        reports.append(report)
    return reports


def _report_partition(
    number: int,
    position: Position | None,
    topic_id: UUID,
    log: OffsetRange,
    continues_at: int | None,
) -> PartitionReport:
    if position is None:
        return PartitionReport(number, None, log.end, log.length, None, None)
    refusal = find_refusal(position, topic_id, log, continues_at)
    return PartitionReport(
        number,
        position.next_offset,
        log.end,
        log.length if refusal else max(log.end - position.next_offset, 0),
        refusal,
        repair_of_partition(number) if refusal else None,
    )


class RecentWorkers(NamedTuple):
    """Workers whose commands are not older than RATE_S, and how many of them are deployed."""

    accepted: int
    deployed: int


# A worker's id begins with the time of its command's record, in ms: the unique index finds the latest.
COUNT_RECENT = """
    SELECT count(*), count(*) FILTER (WHERE status::text <> 'pending')
      FROM workers
     WHERE worker_id >= %(since)s AND worker_id < %(until)s
"""


def read_rates(conn: Connection) -> Rates:
    """Count the commands of the last RATE_S, and those of them that are deployed."""
    now_ms = int(time.time() * 1000)
    limits = {
        "since": UUID(int=(now_ms - RATE_S * 1000) << 80),
        "until": UUID(int=now_ms << 80),
    }
    counts = in_time(lambda: query(conn, args_row(RecentWorkers), COUNT_RECENT, limits))
    if counts is None:
        return Rates(None, None)
    (recent,) = counts
    return Rates(recent.accepted / RATE_S, recent.deployed / RATE_S)


READ_LATEST = """
    SELECT worker_id
      FROM workers
     WHERE worker_id < %(until)s
     ORDER BY worker_id DESC
     LIMIT 1
"""


def read_last_accepted(conn: Connection) -> datetime | None:
    """Return the time of the latest command that was accepted, if it can be found quickly."""
    until = UUID(int=int(time.time() * 1000) << 80)
    found = in_time(lambda: scalars(conn, UUID, READ_LATEST, {"until": until})) or ()
    ours = [worker for worker in found if worker.version == 8]
    return datetime_from_ms(record_time_ms(ours[0])) if ours else None


FEW_LETTERS = 10_000  # offsets that are read one by one; of more, an upper bound must do


def count_dead_letters(settings: Settings, conn: Connection) -> DeadLetterCount:
    """Count the dead letters of our input that wait: `dlq list` lists the same."""
    everything = RecordFilter()
    topic = find_dead_letters(settings, everything)
    length = sum(part.length for part in topic.ranges.values())
    if length > FEW_LETTERS:
        return DeadLetterCount(length - count_handled(conn, topic), is_upper_bound=True)
    chunks = read_dead_letters(conn, topic, everything, None)
    waiting = [one for chunk in chunks for one in chunk if one.state is LetterState.WAITING]
    refusals = [refusal for one in waiting if (refusal := one.refusal)]
    oldest = min((one.at for one in waiting), default=None)
    came_back = sum(one.retry_of is not None for one in waiting)
    return DeadLetterCount(len(waiting), False, refusals[-1] if refusals else None, oldest, came_back)
