"""`status`: the state of the installation at one moment, from Postgres and Kafka alone.

The processes are not asked: they may be down, and their sessions in Postgres show who owns what. Reads
only; locks nothing. What Kafka does not answer, or what takes longer than TIMEOUT_MS to count, is
reported as unknown; the rest is shown.
"""

import enum
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar
from uuid import UUID

import psycopg
from confluent_kafka import KafkaException, libversion
from psycopg.rows import args_row

from orchestrator.config.settings import Settings
from orchestrator.consumer import offsets
from orchestrator.consumer.offsets import Position
from orchestrator.contract.repair_commands import repair_of_lane, repair_of_partition
from orchestrator.kafka import topics
from orchestrator.kafka.reader import OffsetRange, find_ranges
from orchestrator.kafka.topics import TopicMissing
from orchestrator.observability.metrics import release
from orchestrator.operations.dead_letters.filter import RecordFilter
from orchestrator.operations.dead_letters.letters import (
    count_handled,
    find_dead_letters,
    read_dead_letters,
)
from orchestrator.operations.repair.partition import find_refusal
from outbox import Connection, error_text, query, scalar
from outbox.admin import check_lanes, count_backlog, count_parked, count_relays, list_lanes

RATE_S = 60  # the rates are those of this time
TIMEOUT_MS = 5000  # of one statement
BEHIND_S = 60.0  # as in the alert OutboxStalled
MAX_COUNTED = 100_000  # rows of a lane

T = TypeVar("T")


class LaneCondition(enum.StrEnum):
    """A lane as it is seen from outside; its owner knows more."""

    ACTIVE = "active"
    BEHIND = "behind"  # its oldest row has waited longer than BEHIND_S
    NO_OWNER = "no_owner"
    REFUSED = "refused"


class LaneReport(NamedTuple):
    """A lane.

    refusal: the outcome for which it is refused, with the command that ends it: repair. owner:
    application name and address of its session; None: it has none. inflight: rows of batch
    `batch_number` that are not acknowledged. pending: rows in the outbox, at most MAX_COUNTED; None:
    they could not be counted.
    """

    lane: int
    state: LaneCondition
    refusal: str | None
    owner: str | None
    epoch: int
    batch_number: int
    inflight: int
    pending: int | None
    oldest_s: float | None
    repair: str | None


class PartitionReport(NamedTuple):
    """A partition of the input.

    position: the next offset to consume, in Postgres; None: never consumed. lag: offsets from there to
    the high watermark. refusal: why the consumer refuses it, with the command that ends it: repair.
    """

    partition: int
    position: int | None
    high_watermark: int
    lag: int
    refusal: str | None
    repair: str | None


class Rates(NamedTuple):
    """Per second, commands whose records are not older than RATE_S; None: could not be counted.

    After a backlog the records are older: then compare lag and batch numbers of two readings.
    """

    accepted: float | None
    deployed: float | None


class DeadLetterCount(NamedTuple):
    """Dead letters that are not handled. is_upper_bound: ends of transactions are counted, too."""

    letters: int
    is_upper_bound: bool


class Status(NamedTuple):
    """What `status` shows. unknown: what Kafka did not answer, and why; the field itself is None."""

    at: datetime
    versions: Mapping[str, str]
    relays: int
    consumers: int
    lanes: Sequence[LaneReport]
    partitions: Sequence[PartitionReport] | None
    rates: Rates
    dead_letters: DeadLetterCount | None
    parked: Mapping[str, int]
    unknown: Mapping[str, Exception]

    @property
    def refusals(self) -> dict[str, str]:
        """Return what waits for an operator, each with its command."""
        lanes = {f"lane {one.lane}: {one.refusal}": one.repair for one in self.lanes}
        partitions = {
            f"partition {one.partition}: {one.refusal}": one.repair for one in self.partitions or ()
        }
        return {what: command for what, command in (lanes | partitions).items() if command}


COUNT_CONSUMERS = """
    SELECT count(*)
      FROM pg_stat_activity
     WHERE datname = current_database() AND application_name = 'orchestrator consumer'
"""


def read_status(settings: Settings, conn: Connection) -> Status:
    """Read both sides. Raises psycopg.Error or DatabaseNotReady."""
    admin = topics.Admin(settings.kafka)
    conn.execute("SELECT set_config('statement_timeout', %s, false)", (str(TIMEOUT_MS),))
    unknown: dict[str, Exception] = {}

    def ask_kafka(what: str, read: Callable[[], T]) -> T | None:
        if "brokers" not in unknown:  # or each question would wait for its time-out
            try:
                return read()
            except (KafkaException, TopicMissing) as error:
                unknown[what] = error
        return None

    relays, consumers = count_relays(conn), scalar(conn, int, COUNT_CONSUMERS)
    ask_kafka("brokers", lambda: topics.check_access(settings.kafka))
    refusals = ask_kafka("markers", lambda: read_lane_refusals(settings, conn))
    return Status(
        datetime.now(UTC),
        read_versions(conn),
        relays,
        consumers,
        report_lanes(conn, refusals or {}),
        ask_kafka("partitions", lambda: report_partitions(settings, conn, admin)),
        read_rates(conn),
        ask_kafka("dead letters", lambda: count_dead_letters(settings, conn)),
        {parked.reason: parked.rows for parked in count_parked(conn)},
        unknown,
    )


def read_versions(conn: Connection) -> dict[str, str]:
    """Return the versions of all parts; brokers do not tell theirs."""
    return {
        "orchestrator": release(),
        "postgres": ".".join(map(str, divmod(conn.info.server_version, 10_000))),
        "librdkafka": libversion()[0],
        "psycopg": psycopg.__version__,
    }


def in_time(read: Callable[[], T]) -> T | None:
    """Return the result of a statement that may take long; None: longer than TIMEOUT_MS."""
    try:
        return read()
    except psycopg.errors.QueryCanceled:
        return None


# ---- lanes --------------------------------------------------------------------------------------


def read_lane_refusals(settings: Settings, conn: Connection) -> dict[int, str]:
    """Compare every lane's batch with its marker; return the outcomes that refuse a lane."""
    checks = check_lanes(conn, settings.kafka, settings.marker_topic)
    return {
        check.lane: check.outcome.value for check in checks if check.outcome and check.outcome.refused
    }


def report_lanes(conn: Connection, refusals: Mapping[int, str]) -> list[LaneReport]:
    """Return every lane with what waits in it."""
    counted = in_time(lambda: count_backlog(conn, MAX_COUNTED)) or ()
    backlogs = {backlog.lane: backlog for backlog in counted}
    reports = []
    for lane in list_lanes(conn):
        backlog, refusal = backlogs.get(lane.lane), refusals.get(lane.lane)
        oldest_s = backlog and backlog.oldest_s
        reports.append(
            LaneReport(
                lane.lane,
                condition_of(refusal, lane.owner, oldest_s),
                refusal,
                lane.owner,
                lane.epoch,
                lane.batch_number,
                lane.inflight,
                backlog and backlog.pending,
                oldest_s,
                repair_of_lane(lane.lane) if refusal else None,
            )
        )
    return reports


def condition_of(refusal: str | None, owner: str | None, oldest_s: float | None) -> LaneCondition:
    """Return how a lane looks from outside."""
    if refusal:
        return LaneCondition.REFUSED
    if owner is None:
        return LaneCondition.NO_OWNER
    is_behind = oldest_s is not None and oldest_s > BEHIND_S
    return LaneCondition.BEHIND if is_behind else LaneCondition.ACTIVE


# ---- the input ----------------------------------------------------------------------------------


def report_partitions(
    settings: Settings, conn: Connection, admin: topics.Admin
) -> list[PartitionReport]:
    """Compare every partition's position in Postgres with its log."""
    topic = settings.input_topic
    positions = offsets.read_positions(conn, settings.consumer_group, topic)
    # After the positions: an older high watermark would look like a truncated log.
    topic_id, logs = topics.read_topic_id(admin, topic), find_ranges(admin, topic)
    return [
        _report_partition(number, positions.get(number), topic_id, log)
        for number, log in sorted(logs.items())
    ]


def _report_partition(
    number: int, position: Position | None, topic_id: UUID, log: OffsetRange
) -> PartitionReport:
    if position is None:
        return PartitionReport(number, None, log.end, log.length, None, None)
    refusal = find_refusal(position, topic_id, log)
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
    SELECT count(*), count(*) FILTER (WHERE status <> 'pending')
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


FEW_LETTERS = 1000  # offsets that are read one by one; of more, an upper bound must do


def count_dead_letters(settings: Settings, conn: Connection) -> DeadLetterCount:
    """Count the dead letters that are not handled."""
    everything = RecordFilter()
    topic = find_dead_letters(settings, everything)
    length = sum(part.length for part in topic.ranges.values())
    if length > FEW_LETTERS:
        return DeadLetterCount(length - count_handled(conn, topic), is_upper_bound=True)
    chunks = read_dead_letters(conn, topic, everything, None)
    waiting = sum(letter.action is None for chunk in chunks for letter in chunk)
    return DeadLetterCount(waiting, is_upper_bound=False)


def status_fields(status: Status) -> dict[str, object]:
    """Return the status for a script: all of it, with the refusals by themselves."""
    letters = status.dead_letters
    return {
        **status._asdict(),
        "lanes": [lane._asdict() for lane in status.lanes],
        "partitions": status.partitions and [one._asdict() for one in status.partitions],
        "rates": status.rates._asdict(),
        "dead_letters": letters and letters.letters,
        "dead_letters_is_upper_bound": letters and letters.is_upper_bound,
        "refusals": status.refusals,
        "unknown": {what: error_text(error) for what, error in status.unknown.items()},
    }
