"""`status`: how everything stands at one moment, from Postgres and Kafka alone.

Nothing is asked of the processes: they may be down, and their sessions in Postgres show who works what.
Reads only; locks nothing. What Kafka does not tell, or what takes longer than TIMEOUT_MS to count, is
named as unknown; the rest is shown.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar, cast
from uuid import UUID

import psycopg
from confluent_kafka import KafkaException, libversion

from orchestrator.config.settings import Settings
from orchestrator.consumer import offsets
from orchestrator.consumer.offsets import Position
from orchestrator.contract.repair_commands import repair_of_lane, repair_of_partition
from orchestrator.kafka import topics
from orchestrator.kafka.reader import OffsetRange, find_ranges
from orchestrator.kafka.topics import TopicMissing
from orchestrator.observability.metrics import release
from orchestrator.operations.dead_letters.filter import Selection
from orchestrator.operations.dead_letters.letters import count_handled, find_letters, read_letters
from orchestrator.operations.repair.partition import fault_of
from outbox import Connection, error_text
from outbox.admin import MarkerReader, lock_class, look, read_identity

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
    identity = read_identity(conn)
    sessions = read_sessions(conn, identity)
    unknown: dict[str, Exception] = {}

    def ask_kafka(what: str, look: Callable[[], T]) -> T | None:
        if "brokers" not in unknown:  # or each question would wait for its time-out
            try:
                return look()
            except (KafkaException, TopicMissing) as error:
                unknown[what] = error
        return None

    ask_kafka("brokers", lambda: topics.check_access(settings.kafka))
    outcomes = ask_kafka("markers", lambda: read_outcomes(settings, conn, identity))
    return Status(
        datetime.now(UTC),
        read_versions(conn),
        sessions.relays,
        sessions.consumers,
        read_lanes(conn, sessions.owners, outcomes or {}),
        ask_kafka("partitions", lambda: read_partitions(settings, conn, admin)),
        read_rates(conn),
        ask_kafka("dead letters", lambda: count_dead_letters(settings, conn)),
        count_parked(conn),
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


class Sessions(NamedTuple):
    """Who is connected. owners: of the lanes."""

    relays: int
    consumers: int
    owners: Mapping[int, str]


OWNERS = """
    SELECT held.objid::int AS lane,
           concat_ws(' ', session.application_name, host(session.client_addr)) AS owner
      FROM pg_locks AS held
      JOIN pg_stat_activity AS session USING (pid)
      JOIN outbox_lane ON outbox_lane.lane = held.objid::bigint
     WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 2
       AND held.classid::bigint = %(class)s
       AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
MEMBERS = """
    SELECT count(*) FILTER (WHERE application_name = 'outbox relay') AS relays,
           count(*) FILTER (WHERE application_name = 'orchestrator consumer') AS consumers
      FROM pg_stat_activity
     WHERE datname = current_database()
"""


def read_sessions(conn: Connection, identity: UUID) -> Sessions:
    """Find the owners by their advisory locks, and the processes by their sessions' names."""
    held = conn.execute(OWNERS, {"class": lock_class(identity)}).fetchall()
    relays, consumers = cast("tuple[int, int]", conn.execute(MEMBERS).fetchone())
    return Sessions(relays, consumers, dict(cast("list[tuple[int, str]]", held)))


def read_outcomes(settings: Settings, conn: Connection, identity: UUID) -> dict[int, str]:
    """Compare every lane's batch with its marker; return the outcomes that refuse a lane."""
    with closing(MarkerReader(settings.kafka, identity, settings.marker_topic)) as markers:
        sights = look(conn, markers)
    return {
        sight.lane: sight.outcome.value for sight in sights if sight.outcome and sight.outcome.refused
    }


LANES = "SELECT lane, epoch, batch_number, cardinality(inflight) FROM outbox_lane ORDER BY lane"
PENDING = """
    SELECT lane,
           (SELECT count(*)
              FROM (SELECT FROM outbox
                     WHERE lane = outbox_lane.lane
                     LIMIT %(most)s) AS counted) AS pending,
           (SELECT extract(epoch FROM clock_timestamp() - created_at)::float8
              FROM outbox
             WHERE lane = outbox_lane.lane
             ORDER BY id
             LIMIT 1) AS oldest_s
      FROM outbox_lane
"""


def read_lanes(
    conn: Connection, owners: Mapping[int, str], outcomes: Mapping[int, str]
) -> list[LaneStatus]:
    """Return every lane with what waits in it."""
    counted = in_time(conn, PENDING, {"most": MOST_COUNTED}) or ()
    waiting = {lane: (rows, oldest_s) for lane, rows, oldest_s in counted}
    found = []
    for lane, epoch, batch_number, inflight in cast(
        "list[tuple[int, int, int, int]]", conn.execute(LANES).fetchall()
    ):
        pending, oldest_s = waiting.get(lane, (None, None))
        refused = outcomes.get(lane)
        state = refused or state_of(lane in owners, oldest_s)
        repair = repair_of_lane(lane) if refused else None
        found.append(
            LaneStatus(
                lane, owners.get(lane), epoch, batch_number, inflight, state, pending, oldest_s, repair
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
    rows = in_time(conn, COUNT_LATEST, limits)
    if rows is None:
        return Rates(None, None)
    ((accepted, deployed),) = rows
    return Rates(accepted / RATE_S, deployed / RATE_S)


FEW_LETTERS = 1000  # offsets that are looked at one by one; of more, an upper bound must do


def count_dead_letters(settings: Settings, conn: Connection) -> DeadLetters:
    """Count the letters that wait."""
    everything = Selection()
    letters = find_letters(settings, everything)
    length = sum(span.length for span in letters.spans.values())
    if length > FEW_LETTERS:
        return DeadLetters(length - count_handled(conn, letters), at_most=True)
    chunks = read_letters(conn, letters, everything, None)
    waiting = sum(letter.action is None for chunk in chunks for letter in chunk)
    return DeadLetters(waiting, at_most=False)


PARKED = """
    SELECT reason, count(*)
      FROM outbox_parked
     WHERE discarded_at IS NULL
     GROUP BY reason
     ORDER BY reason
"""


def count_parked(conn: Connection) -> dict[str, int]:
    """Count the rows that are set aside and wait, by Kafka's word for it."""
    return dict(cast("list[tuple[str, int]]", conn.execute(PARKED).fetchall()))


def in_time(
    conn: Connection, statement: str, values: Mapping[str, object] | None = None
) -> list[tuple[int, ...]] | None:
    """Return the rows of a statement that may be long; None: it took longer than TIMEOUT_MS."""
    try:
        return cast("list[tuple[int, ...]]", conn.execute(statement, values).fetchall())
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
