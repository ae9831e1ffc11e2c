"""The metrics, and the observers that update them once a batch, never once a message.

Every series of a counter or histogram exists from the start: otherwise rate() and increase() would
miss its first event. docs/glossary.md lists all names.
"""

import logging
import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from orchestrator.contract.messages import InvalidReason
from orchestrator.contract.records import Decided
from orchestrator.observability.health import Health
from orchestrator.observability.stages import (
    StageLog,
    log_accepted,
    log_many_accepted,
    log_many_orders,
    log_many_refused,
    log_order,
    log_refused,
)
from orchestrator.observability.tracing import new_tracing
from orchestrator.program import PROGRAM
from outbox import DeferredBacklog, Message, Observer, OutboxRow, Outcome, SyncCommitMonitor
from outbox.admin import DeferredReason

log = logging.getLogger(__name__)

DEAD_LOG_S = 60.0  # a writer that sends nothing but invalid commands must not fill the log
TRANSACTION_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
DELIVERY_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800)
ROWS_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def release() -> str:
    """Return the installed version, or `unknown` in a bare checkout."""
    try:
        return version("vap-orchestrator")
    except PackageNotFoundError:
        return "unknown"


def new_registry(process: str) -> CollectorRegistry:
    """Return a registry with what both processes report."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # else a second series for each counter
    registry = CollectorRegistry()
    info = Gauge(
        "orchestrator_build_info",
        "Always 1; the labels say which release runs, in which process.",
        ["version", "python", "process"],
        registry=registry,
    )
    info.labels(release(), platform.python_version(), process).set(1)
    registry.register(UnconfirmedCommits())
    return registry


class UnconfirmedCommits(Collector):
    """Exports the count that the library keeps for all sessions of the process."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the current count."""
        yield CounterMetricFamily(
            "orchestrator_unconfirmed_commits",
            "Commits whose wait for the synchronous standby was cancelled: treated as unknown.",
            value=SyncCommitMonitor.total,
        )


class ConsumerMetrics:
    """Metrics of the consumer. topic: the input topic, for the spans."""

    def __init__(self, registry: CollectorRegistry, health: Health, topic: str | None = None) -> None:
        self._health = health
        self._tracing = new_tracing(topic)
        self._records = Counter(
            "orchestrator_records_total",
            "Input records consumed: accepted, duplicate (read again, no effect) or dead_letter.",
            ["result"],
            registry=registry,
        )
        for result in ("accepted", "duplicate", "dead_letter"):
            self._records.labels(result)
        self._dead = Counter(
            "orchestrator_dead_letters_total",
            "Input records sent to the dead-letter topic, by reason.",
            ["reason"],
            registry=registry,
        )
        for reason in InvalidReason:
            self._dead.labels(reason.value)
        self._duration = Histogram(
            "orchestrator_transaction_duration_seconds",
            "Duration of a Postgres transaction: positions, workers and outbox rows of a batch.",
            buckets=TRANSACTION_BUCKETS,
            registry=registry,
        )
        self.lag = Gauge(
            "orchestrator_consumer_lag_records",
            "High watermark minus the position in Postgres, by partition assigned to this process.",
            ["partition"],
            registry=registry,
        )
        self.position = Gauge(
            "orchestrator_consumer_position",
            "Next offset to consume, by partition assigned to this process and not refused.",
            ["partition"],
            registry=registry,
        )
        self._accepted = StageLog(log_accepted, log_many_accepted)
        self._refused = StageLog(log_refused, log_many_refused)
        self.has_accepted = False  # anything, since the start of the process
        self._dead_by_reason: dict[str, int] = {}  # since the start of the process
        self._dead_logged, self._dead_log_at = 0, 0.0  # how many were logged; when to log more
        self.refused = Gauge(
            "orchestrator_partitions_refused",
            "Partitions that wait for an operator: topic recreated, or position not in the log.",
            registry=registry,
        )

    def tick(self) -> None:
        """Record that the loop is alive."""
        self._health.tick("consumer")
        self._accepted.flush()
        self._refused.flush()

    def consumed(
        self,
        accepted: int,
        duplicates: int,
        dead: Mapping[str, int],
        seconds: float,
        messages: Sequence[Message] = (),
    ) -> None:
        """Count a committed batch, and trace its messages."""
        if self._tracing:
            self._tracing.accepted(messages, seconds)
        self._records.labels("accepted").inc(accepted)
        if duplicates:
            self._records.labels("duplicate").inc(duplicates)
        if dead:
            self._count_dead(dead)
        self._duration.observe(seconds)
        log.debug(
            "batch accepted",
            extra={
                "accepted": accepted,
                "duplicates": duplicates,
                "dead_letters": sum(dead.values()),
                "seconds": round(seconds, 4),
            },
        )

    def decided(self, few: Sequence[Decided], accepted: int, dead: int) -> None:
        """Log what became of each record, where they are few. It never shows a camera URL."""
        self.has_accepted = self.has_accepted or accepted > 0
        self._accepted.tell(accepted, (one for one in few if not one.refused))
        self._refused.tell(dead, (one for one in few if one.refused))

    def _count_dead(self, dead: Mapping[str, int]) -> None:
        """Count dead letters, also in /readyz; log them at most every DEAD_LOG_S."""
        for reason, records in dead.items():
            self._records.labels("dead_letter").inc(records)
            self._dead.labels(reason).inc(records)
            self._dead_by_reason[reason] = self._dead_by_reason.get(reason, 0) + records
        named = ", ".join(f"{records:,} {reason}" for reason, records in self._dead_by_reason.items())
        note = f"invalid commands since the start of this process ({named}): `{PROGRAM} dlq list`"
        self._health.notes["dead letters"] = lambda: note
        if time.monotonic() >= self._dead_log_at:
            total = sum(self._dead_by_reason.values())
            log.warning("dead letters", extra={"records": total - self._dead_logged, "advice": note})
            self._dead_logged, self._dead_log_at = total, time.monotonic() + DEAD_LOG_S


class RelayMetrics(Observer):
    """Metrics of the relay. topic: of the orders."""

    def __init__(self, registry: CollectorRegistry, health: Health, topic: str | None = None) -> None:
        self._health = health
        self._topic = topic
        self._orders = StageLog(log_order, log_many_orders)
        self._tracing = new_tracing()
        self.owned: frozenset[int] = frozenset()
        self._published = Counter(
            "outbox_published_total", "Rows published to Kafka.", registry=registry
        )
        self._rows = Histogram(
            "outbox_batch_rows",
            "Rows of one Kafka transaction.",
            buckets=ROWS_BUCKETS,
            registry=registry,
        )
        self._latency = Histogram(
            "outbox_delivery_latency_seconds",
            "From the enqueueing transaction to the Kafka commit, for the oldest row of each batch.",
            buckets=DELIVERY_BUCKETS,
            registry=registry,
        )
        self._transactions = Histogram(
            "outbox_transaction_duration_seconds",
            "Duration of a transaction of a batch: postgres (acknowledge, claim) or kafka (publish).",
            ["server"],
            buckets=TRANSACTION_BUCKETS,
            registry=registry,
        )
        for server in ("postgres", "kafka"):
            self._transactions.labels(server)
        self._recoveries = Counter(
            "outbox_recoveries_total", "Recoveries by outcome.", ["outcome"], registry=registry
        )
        for outcome in Outcome:
            self._recoveries.labels(outcome.value)
        self._parked = Counter(
            "outbox_parked_total", "Rows that Kafka rejected and that were parked.", registry=registry
        )
        self.parked_waiting = Gauge(
            "outbox_parked_rows",
            "Parked rows of the installation that wait for an operator.",
            registry=registry,
        )
        self.without_kafka = Gauge(
            "outbox_relay_without_kafka",
            "1 while Kafka does not answer this relay, so that others have its lanes; else 0.",
            registry=registry,
        )
        self._lanes = Gauge("outbox_lanes_owned", "Lanes owned by this relay.", registry=registry)
        self.refused = Gauge(
            "outbox_lanes_refused",
            "Lanes of this relay that wait for an operator: a marker that disagrees, an unusable log.",
            registry=registry,
        )
        self.ids_used = Gauge(
            "orchestrator_worker_ids_used_ratio",
            "Share of workers.id that is used: SERIAL ends at 2^31.",
            registry=registry,
        )
        self.deferred = Gauge(
            "outbox_deferred_rows",
            "Workers of the installation that are published and not yet deployed: locked or refused.",
            registry=registry,
        )
        self.oldest_deferred = Gauge(
            "outbox_oldest_deferred_age_seconds",
            "For how long the oldest of them has been deferred; 0 if there is none.",
            registry=registry,
        )
        self._success = Gauge(
            "outbox_last_success_timestamp_seconds",
            "Unix time of the last batch published, or of the last check that found no rows.",
            registry=registry,
        )
        self.pending = Gauge(
            "outbox_pending_rows",
            "Rows in the outbox, by lane of this relay.",
            ["lane"],
            registry=registry,
        )
        self.oldest = Gauge(
            "outbox_oldest_pending_age_seconds",
            "Age of the oldest row in the outbox, by lane of this relay; 0 if there is none.",
            ["lane"],
            registry=registry,
        )

    def set_deferred(
        self, backlog: DeferredBacklog | None, reasons: Sequence[DeferredReason] = ()
    ) -> None:
        """Report deferred workers, also in /readyz: delivery goes on. None: they are not known."""
        self.deferred.set(math.nan if backlog is None else backlog.rows)
        self.oldest_deferred.set(math.nan if backlog is None else backlog.oldest_s)
        note = _describe_deferred(backlog, reasons) if backlog and backlog.rows else None
        self._health.notes["deferred"] = lambda: note

    def set_parked(self, rows: int | None) -> None:
        """Report parked rows, also in /readyz. None: they are not known."""
        self.parked_waiting.set(math.nan if rows is None else rows)
        note = f"{rows:,} rows wait for the operator: `{PROGRAM} parked list`" if rows else None
        self._health.notes["parked"] = lambda: note

    def tick(self) -> None:
        """Record that the loop is alive."""
        self._health.tick("relay")
        self._orders.flush()

    def idle(self) -> None:
        """Record that the lanes are empty."""
        self._success.set_to_current_time()

    def transaction(self, server: str, seconds: float) -> None:
        """Note a transaction's duration."""
        self._transactions.labels(server).observe(seconds)

    def published(self, rows: Sequence[OutboxRow], oldest_s: float, took_s: float) -> None:
        """Count and trace a batch that is in Kafka."""
        self._published.inc(len(rows))
        self._rows.observe(len(rows))
        self._latency.observe(oldest_s)
        self._success.set_to_current_time()
        log.debug("batch published", extra={"rows": len(rows), "seconds": round(took_s, 4)})
        if self._tracing:
            self._tracing.published(rows, took_s)
        orders = [row for row in rows if row.topic == self._topic]
        self._orders.tell(len(orders), orders)

    def recovered(self, outcome: Outcome) -> None:
        """Count a recovery."""
        self._recoveries.labels(outcome.value).inc()

    def parked(self) -> None:
        """Count a parked row."""
        self._parked.inc()

    def lanes_owned(self, lanes: frozenset[int]) -> None:
        """Report the lanes that this relay owns."""
        self._lanes.set(len(lanes))
        self.owned = lanes


def _describe_deferred(backlog: DeferredBacklog, reasons: Sequence[DeferredReason]) -> str:
    named = "; ".join(f"{one.reason}: {', '.join(map(str, one.aggregate_ids))}" for one in reasons)
    return (
        f"{backlog.rows:,} workers are published and not yet deployed, the oldest for"
        f" {backlog.oldest_s:.0f} s: {named}: see `{PROGRAM} status`"
    )
