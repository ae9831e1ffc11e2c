"""`status`: how everything stands at one moment, from Postgres and Kafka alone.

Nothing is asked of the processes: they may be down, and their sessions in Postgres show who works what.
Reads only; locks nothing. What Kafka does not tell, or what takes longer than TIMEOUT_MS to count, is
named as unknown; the rest is shown.
"""

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
from orchestrator.operations.repair.partition import fault_of
from outbox import Connection, error_text, query, scalar
from outbox.admin import check_lanes, count_backlog, count_parked, count_relays, list_lanes

RATE_S = 60  # the rates are of this time
TIMEOUT_MS = 5000  # of one statement
BEHIND_S = 60.0  # as in the alert OutboxStalled
MOST_COUNTED = 100_000  # rows of a lane

T = TypeVar("T")


class LaneStatus(NamedTuple):
    """owner: application name and address of the session that holds the lane; None: nobody does.

    state: working, behind (its oldest row waits longer than BEHIND_S), no owner, or the outcome of a
    refusal. pending: rows in the outbox, MOST_COUNTED stands for any more; None: they could not be
    counted. inflight: those of batch `batch_number`, begun and not acknowledged. repair: the command that a refusal
    waits for.
    """

    lane: int
    owner: str | None
    epoch: int
    batch_number: int
    inflight: int
    state: str
    pending: int | None
    oldest_s: float | None
    repair: str | None


class PartitionStatus(NamedTuple):
    """A partition of the input. offset: the next one, in Postgres; lag: records up to the log's end.

    None: never consumed. fault: why the consumer pauses it; repair: the command for that.
    """

    partition: int
    offset: int | None
    log_end: int
    lag: int
    fault: str | None
    repair: str | None


class Rates(NamedTuple):
    """Commands whose records are of the last RATE_S, a second; None: could not be counted.

    While a backlog is worked off, what is accepted is older: see the lag, and batch_number, in two looks.
    """

    accepted: float | None
    deployed: float | None


class DeadLetters(NamedTuple):
    """Dead letters that are not dealt with; at_most: ends of transactions are counted, too."""

    waiting: int
    at_most: bool


class Status(NamedTuple):
    """What `status` shows. unknown: what Kafka did not tell, and why; it is None here."""

    at: datetime
    versions: Mapping[str, str]
    relays: int
    consumers: int
    lanes: Sequence[LaneStatus]
    partitions: Sequence[PartitionStatus] | None
    rates: Rates
    dead_letters: DeadLetters | None
    parked: Mapping[str, int]
    unknown: Mapping[str, Exception]

    @property
    def refusals(self) -> dict[str, str]:
        """Return what waits for a person, with its command."""
        lanes = {f"lane {one.lane}: {one.state}": one.repair for one in self.lanes}
        partitions = {
            f"partition {one.partition}: {one.fault}": one.repair for one in self.partitions or ()
        }
        return {what: command for what, command in (lanes | partitions).items() if command}


def read_status(settings: Settings, conn: Connection) -> Status:
    """Look at both sides. Raises psycopg.Error or DatabaseNotReady."""
    admin = topics.Admin(settings.kafka)
    conn.execute("SELECT set_config('statement_timeout', %s, false)", (str(TIMEOUT_MS),))
    unknown: dict[str, Exception] = {}

    def ask_kafka(what: str, look: Callable[[], T]) -> T | None:
        if "brokers" not in unknown:  # or each question would wait for its time-out
            try:
                return look()
            except (KafkaException, TopicMissing) as error:
                unknown[what] = error
        return None

    relays, consumers = count_relays(conn), scalar(conn, int, COUNT_CONSUMERS)
    ask_kafka("brokers", lambda: topics.check_access(settings.kafka))
    outcomes = ask_kafka("markers", lambda: read_outcomes(settings, conn))
    return Status(
        datetime.now(UTC),
        read_versions(conn),
        relays,
        consumers,
        read_lanes(conn, outcomes or {}),
        ask_kafka("partitions", lambda: read_partitions(settings, conn, admin)),
        read_rates(conn),
        ask_kafka("dead letters", lambda: count_dead_letters(settings, conn)),
        {parked.reason: parked.rows for parked in count_parked(conn)},
        unknown,
    )


def read_versions(conn: Connection) -> dict[str, str]:
    """Return the versions of what takes part; brokers do not tell theirs."""
    return {
        "orchestrator": release(),
        "postgres": ".".join(map(str, divmod(conn.info.server_version, 10_000))),
        "librdkafka": libversion()[0],
        "psycopg": psycopg.__version__,
    }


COUNT_CONSUMERS = """
    SELECT count(*)
      FROM pg_stat_activity
     WHERE datname = current_database() AND application_name = 'orchestrator consumer'
"""


def read_outcomes(settings: Settings, conn: Connection) -> dict[int, str]:
    """Compare every lane's batch with its marker; return the outcomes that refuse a lane."""
    checks = check_lanes(conn, settings.kafka, settings.marker_topic)
    return {
        check.lane: check.outcome.value for check in checks if check.outcome and check.outcome.refused
    }


def read_lanes(conn: Connection, outcomes: Mapping[int, str]) -> list[LaneStatus]:
    """Return every lane with what waits in it."""
    counted = in_time(lambda: count_backlog(conn, MOST_COUNTED)) or ()
    waiting = {backlog.lane: backlog for backlog in counted}
    found = []
    for lane in list_lanes(conn):
        backlog, refused = waiting.get(lane.lane), outcomes.get(lane.lane)
        oldest_s = backlog and backlog.oldest_s
        found.append(
            LaneStatus(
                lane.lane,
                lane.owner,
                lane.epoch,
                lane.batch_number,
                lane.inflight,
                state=refused or state_of(lane.owner is not None, oldest_s),
                pending=backlog and backlog.pending,
                oldest_s=oldest_s,
                repair=repair_of_lane(lane.lane) if refused else None,
            )
        )
    return found


def state_of(owned: bool, oldest_s: float | None) -> str:
    """Return how a lane is that nothing refuses."""
    if not owned:
        return "no owner"
    return "behind" if oldest_s is not None and oldest_s > BEHIND_S else "working"


def read_partitions(settings: Settings, conn: Connection, admin: topics.Admin) -> list[PartitionStatus]:
    """Compare every partition's offset in Postgres with its log."""
    topic = settings.input_topic
    positions = offsets.read_positions(conn, settings.consumer_group, topic)
    # After the positions: an end that is older than a position would look like a truncated log.
    topic_id, logs = topics.topic_id(admin, topic), find_ranges(admin, topic)
    return [
        _judge(number, positions.get(number), topic_id, log) for number, log in sorted(logs.items())
    ]


def _judge(number: int, position: Position | None, topic_id: UUID, log: OffsetRange) -> PartitionStatus:
    if position is None:
        return PartitionStatus(number, None, log.end, log.length, None, None)
    fault = fault_of(position, topic_id, log)
    return PartitionStatus(
        number,
        position.next_offset,
        log.end,
        log.length if fault else max(log.end - position.next_offset, 0),
        fault,
        repair_of_partition(number) if fault else None,
    )


class LatestWorkers(NamedTuple):
    """Workers whose commands were made lately, and how many of them are deployed."""

    accepted: int
    deployed: int


# A worker's id begins with the time of its command's record, in ms: the unique index finds the latest.
COUNT_LATEST = """
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
    counts = in_time(lambda: query(conn, args_row(LatestWorkers), COUNT_LATEST, limits))
    if counts is None:
        return Rates(None, None)
    (latest,) = counts
    return Rates(latest.accepted / RATE_S, latest.deployed / RATE_S)


FEW_LETTERS = 1000  # offsets that are looked at one by one; of more, an upper bound must do


def count_dead_letters(settings: Settings, conn: Connection) -> DeadLetters:
    """Count the letters that wait."""
    everything = RecordFilter()
    topic = find_dead_letters(settings, everything)
    length = sum(part.length for part in topic.ranges.values())
    if length > FEW_LETTERS:
        return DeadLetters(length - count_handled(conn, topic), at_most=True)
    chunks = read_dead_letters(conn, topic, everything, None)
    waiting = sum(letter.action is None for chunk in chunks for letter in chunk)
    return DeadLetters(waiting, at_most=False)


def in_time(read: Callable[[], T]) -> T | None:
    """Return what a statement that may be long finds; None: it took longer than TIMEOUT_MS."""
    try:
        return read()
    except psycopg.errors.QueryCanceled:
        return None


def as_fields(status: Status) -> dict[str, object]:
    """Return the status for a script: all of it, with the refusals by themselves."""
    letters = status.dead_letters
    return {
        **status._asdict(),
        "lanes": [lane._asdict() for lane in status.lanes],
        "partitions": status.partitions and [one._asdict() for one in status.partitions],
        "rates": status.rates._asdict(),
        "dead_letters": letters and letters.waiting,
        "dead_letters_at_most": letters and letters.at_most,
        "refusals": status.refusals,
        "unknown": {what: error_text(error) for what, error in status.unknown.items()},
    }
