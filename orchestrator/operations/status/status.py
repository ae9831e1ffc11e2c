"""`status`: the state of the installation at one moment, from Postgres and Kafka alone.

The processes are not asked: they may be down, and their sessions in Postgres show who owns what. Reads
only; locks nothing. What Kafka does not answer, or what takes longer than TIMEOUT_S to count, is
reported as unknown; the rest is shown.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

import psycopg
from confluent_kafka import KafkaException, libversion

from orchestrator.config.settings import Settings
from orchestrator.consumer.loop import CONSUMER_SESSION
from orchestrator.contract.workers_table import WorkersRefused, check_workers
from orchestrator.kafka import topics
from orchestrator.kafka.topics import TopicMissing
from orchestrator.observability.metrics import release
from orchestrator.operations.id_sequences import (
    find_sources,
    outbox_set_back,
    sequences_set_back,
)
from orchestrator.operations.row_filters import find_row_filters
from orchestrator.operations.status import problems
from orchestrator.operations.status.input import (
    DeadLetterCount,
    PartitionReport,
    Rates,
    count_dead_letters,
    read_last_accepted,
    read_rates,
    report_partitions,
)
from orchestrator.operations.status.lanes import (
    MAX_COUNTED,
    LaneReport,
    find_unwritable_topics,
    read_backlogs,
    read_lane_refusals,
    report_lanes,
)
from orchestrator.operations.status.statements import TIMEOUT_S, in_time
from outbox import (
    RELAY_SESSION,
    Connection,
    count_lanes,
    error_text,
    read_standby_wait,
)
from outbox.admin import (
    DeferredReason,
    count_parked,
    count_relays,
    count_sessions,
    list_relays_without_kafka,
    read_deferred_reasons,
    read_first_parked,
    read_last_id,
)

T = TypeVar("T")


class Status(NamedTuple):
    """What `status` shows.

    consumers: sessions in Postgres. members: of the consumer group; None: they may not be seen.
    workers: why no process writes to the table `workers`; then what is read from it is unknown.
    sequences: those that were set back. filters: triggers and rules that may leave rows of ours out.
    last_accepted: when the latest command was sent that was accepted. last_row_id: of the outbox.
    deferred: workers that are published and not yet deployed, by reason, the oldest of them. standby:
    why COMMIT waits for one. unknown: what Kafka did not answer, or Postgres did not count in
    time, and why; the field itself is None.
    """

    at: datetime
    versions: Mapping[str, str]
    relays: int
    relays_without_kafka: Sequence[str]
    consumers: int
    members: int | None
    workers: str | None
    sequences: Sequence[str]
    filters: Sequence[str]
    lanes: Sequence[LaneReport]
    partitions: Sequence[PartitionReport] | None
    rates: Rates
    last_accepted: datetime | None
    last_row_id: int | None
    dead_letters: DeadLetterCount | None
    parked: Mapping[str, int]
    first_parked: datetime | None
    deferred: Sequence[DeferredReason]
    standby: str | None
    unknown: Mapping[str, Exception]

    @property
    def problems(self) -> list[str]:
        """Return what is wrong, most serious first; none: the installation is well."""
        letters = self.dead_letters
        return [
            *problems.missing_processes(
                self.consumers, self.members, self.relays, self.last_accepted, self.oldest_s
            ),
            *filter(None, [self.standby, self.workers]),
            *self.sequences,
            *self.filters,
            *(f"refused: {what}: {command}" for what, command in self.refusals.items()),
            *(f"partition {p.partition}: {p.unread}" for p in self.partitions or () if p.unread),
            *problems.waiting_lanes({one.lane: one.waits_for for one in self.lanes if one.waits_for}),
            *problems.old_rows({one.lane: one.oldest_s for one in self.lanes}),
            *problems.relays_cut_off(self.relays_without_kafka),
            *problems.parked_rows(self.parked, self.first_parked),
            *(problems.dead_letters(*letters) if letters else ()),
            *problems.deferred_workers(self.deferred),
        ]

    @property
    def oldest_s(self) -> float | None:
        """Return the age of the oldest row that waits."""
        return max((one.oldest_s for one in self.lanes if one.oldest_s is not None), default=None)

    @property
    def waiting(self) -> int | None:
        """Return how many rows wait; None: they could not be counted."""
        rows = [one.pending for one in self.lanes]
        known = [count for count in rows if count is not None and count < MAX_COUNTED]
        return sum(known) if len(known) == len(rows) else None

    @property
    def position(self) -> int | None:
        """Return how many offsets of the input were consumed."""
        return None if self.partitions is None else sum(one.position or 0 for one in self.partitions)

    @property
    def lag(self) -> int | None:
        """Return how many offsets of the input wait."""
        return None if self.partitions is None else sum(one.lag for one in self.partitions)

    @property
    def refusals(self) -> dict[str, str]:
        """Return what waits for an operator, each with its command."""
        lanes = {f"lane {one.lane}: {one.refusal}": one.repair for one in self.lanes}
        partitions = {
            f"partition {one.partition}: {one.refusal}": one.repair for one in self.partitions or ()
        }
        return {what: command for what, command in (lanes | partitions).items() if command}


def count_consumers(conn: Connection) -> int:
    """Count the consumers that are connected to this database."""
    return count_sessions(conn, CONSUMER_SESSION, "consumed_offsets", "INSERT")


def read_status(settings: Settings, conn: Connection) -> Status:
    """Read both sides. Raises psycopg.Error or DatabaseNotReady."""
    admin = topics.Admin(settings.kafka)
    unknown: dict[str, Exception] = {}

    def ask_kafka(what: str, read: Callable[[], T]) -> T | None:
        if "brokers" not in unknown:  # or each question would wait for its time-out
            try:
                return read()
            except (KafkaException, TopicMissing) as error:
                unknown[what] = error
        return None

    relays, consumers = count_relays(conn), count_consumers(conn)
    workers = read_workers_refusal(conn)
    ask_kafka("brokers", lambda: topics.check_access(settings.kafka))
    group = settings.consumer_group
    members = ask_kafka("consumer group", lambda: topics.count_members(admin, group))
    count_lanes(conn)  # or some lanes would be missing below, in silence
    wait = read_standby_wait(conn, RELAY_SESSION, CONSUMER_SESSION)
    backlogs = read_backlogs(conn)
    if not backlogs:
        unknown["waiting rows"] = TimeoutError(f"not counted within {TIMEOUT_S:.0f} s")
    refusals = ask_kafka("markers", lambda: read_lane_refusals(settings, conn))
    unwritable = ask_kafka("topics", lambda: find_unwritable_topics(admin, backlogs))
    return Status(
        datetime.now(UTC),
        read_versions(conn),
        relays,
        list_relays_without_kafka(conn),
        consumers,
        members,
        workers,
        in_time(lambda: [*sequences_set_back(conn, find_sources(conn)), *outbox_set_back(conn)]) or (),
        list(find_row_filters(conn)),
        report_lanes(conn, refusals or {}, backlogs, unwritable or {}),
        ask_kafka("partitions", lambda: report_partitions(settings, conn, admin)),
        Rates(None, None) if workers else read_rates(conn),
        None if workers else read_last_accepted(conn),
        read_last_id(conn),
        None if workers else ask_kafka("dead letters", lambda: count_dead_letters(settings, conn)),
        {parked.reason: parked.rows for parked in count_parked(conn)},
        read_first_parked(conn),
        read_deferred_reasons(conn),
        wait.text if wait.is_missing else None,
        unknown,
    )


def read_workers_refusal(conn: Connection) -> str | None:
    """Return why the processes do not write to the table `workers`; None: they do."""
    try:
        check_workers(conn)
    except WorkersRefused as error:
        return str(error)
    return None


def read_versions(conn: Connection) -> dict[str, str]:
    """Return the versions of all parts; brokers do not tell theirs."""
    return {
        "orchestrator": release(),
        "postgres": ".".join(map(str, divmod(conn.info.server_version, 10_000))),
        "librdkafka": libversion()[0],
        "psycopg": psycopg.__version__,
    }


def status_fields(status: Status) -> dict[str, object]:
    """Return the status for a script: all of it, with problems and refusals by themselves."""
    letters = status.dead_letters
    return {
        **status._asdict(),
        "lanes": [lane._asdict() for lane in status.lanes],
        "partitions": status.partitions and [one._asdict() for one in status.partitions],
        "rates": status.rates._asdict(),
        "deferred": [one._asdict() for one in status.deferred],
        "dead_letters": letters and letters.letters,
        "dead_letters_is_upper_bound": letters and letters.is_upper_bound,
        "problems": status.problems,
        "refusals": status.refusals,
        "unknown": {what: error_text(error) for what, error in status.unknown.items()},
    }
