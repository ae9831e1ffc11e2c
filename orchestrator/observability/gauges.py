"""Gauges of whole tables and topics: polled in the background, never inside a scrape.

Each process reports only what it owns (its lanes, its partitions), so that sums over all processes
count nothing twice. What cannot be read is absent, or NaN, rather than stale. The check of the brokers,
for /readyz, works in the same way.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import TypeVar

import psycopg
from confluent_kafka import KafkaException
from psycopg_pool import ConnectionPool, PoolTimeout

from orchestrator.config.settings import Settings
from orchestrator.config.timings import ProcessTimings
from orchestrator.contract.workers import read_id_sequence
from orchestrator.kafka import topics
from orchestrator.observability.metrics import ConsumerMetrics, RelayMetrics
from outbox import KEEPALIVES, Connection, error_text, hang_up_after
from outbox.admin import read_backlog

T = TypeVar("T")
COST_FACTOR = 20.0  # a poll that counts rows may take 5 % of the time


@contextmanager
def poll_in_background(
    poll: Callable[[], None], timings: ProcessTimings, cost_factor: float = 0
) -> Iterator[None]:
    """Call `poll` every gauge_period_s while the block runs.

    cost_factor: pause for this multiple of the time that the poll took, at most gauge_max_pause_s: it
    bounds the cost of expensive polls.
    """
    stop = Event()

    def repeat() -> None:
        pause_s = 0.0
        while not stop.wait(pause_s):
            started = time.monotonic()
            poll()
            slow_s = min(cost_factor * (time.monotonic() - started), timings.gauge_max_pause_s)
            pause_s = max(timings.gauge_period_s, slow_s)

    Thread(target=repeat, name="gauges", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


class KafkaProbe:
    """Checks brokers and topics, for a process whose own clients are silent while idle."""

    def __init__(self, settings: Settings, wanted: Sequence[str]) -> None:
        self._admin = topics.Admin(settings.kafka)
        self._wanted = wanted
        self.last_error: str | None = None

    def check(self) -> None:
        """Note what is wrong: brokers that do not answer, topics that are missing."""
        try:
            self.last_error = "; ".join(topics.find_missing(self._admin, self._wanted)) or None
        except KafkaException as error:
            self.last_error = error_text(error)


@contextmanager
def backlog_gauges(
    settings: Settings, metrics: RelayMetrics, timings: ProcessTimings
) -> Iterator[None]:
    """Keep outbox_pending_rows, outbox_oldest_pending_age_seconds and the share of ids used."""
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # the relay says what is down

    def limit_statements(conn: Connection) -> None:
        timeout_ms = int(timings.gauge_statement_s * 1000)
        with hang_up_after(conn, timings.gauge_silence_s):
            conn.execute("SELECT set_config('statement_timeout', %s, false)", (str(timeout_ms),))

    pool: ConnectionPool[Connection] = ConnectionPool(
        settings.database_url,
        kwargs={
            "autocommit": True,
            "application_name": "orchestrator gauges",
            "target_session_attrs": "read-write",  # a standby may be far behind
            **KEEPALIVES,
        },
        configure=limit_statements,
        min_size=0,
        max_size=1,
        timeout=timings.gauge_statement_s,
        open=False,
    )

    def read(what: Callable[[Connection], T]) -> T | None:
        """Read one thing, whatever happens to the others; None if it cannot be read."""
        try:
            with pool.connection() as conn, hang_up_after(conn, timings.gauge_silence_s):
                return what(conn)
        except (psycopg.Error, PoolTimeout):
            return None

    def poll() -> None:
        backlog = read(lambda conn: read_backlog(conn, sorted(metrics.owned))) or {}
        metrics.pending.clear()
        metrics.oldest.clear()
        for lane, rows in backlog.items():
            metrics.pending.labels(str(lane)).set(rows.pending)
            metrics.oldest.labels(str(lane)).set(rows.oldest_s)
        ids = read(read_id_sequence)
        used = None if ids is None else ids.used
        metrics.ids_used.set(math.nan if used is None else used)

    metrics.ids_used.set(math.nan)  # not 0, before the first poll
    with pool, poll_in_background(poll, timings, COST_FACTOR):
        yield


@contextmanager
def consumer_gauges(
    settings: Settings,
    positions: Callable[[], Mapping[int, int]],
    refused: Callable[[], Collection[int]],
    metrics: ConsumerMetrics,
    timings: ProcessTimings,
) -> Iterator[None]:
    """Keep what the consumer reports of its partitions: lag, position, how many are refused."""
    admin = topics.Admin(settings.kafka)

    def poll() -> None:
        offsets, waiting = positions(), refused()
        metrics.refused.set(len(waiting))
        metrics.position.clear()
        for partition in offsets.keys() - set(waiting):
            metrics.position.labels(str(partition)).set(offsets[partition])
        try:
            ends = topics.read_high_watermarks(admin, settings.input_topic, list(offsets))
        except KafkaException:
            ends = {}
        metrics.lag.clear()
        for partition, end in ends.items():
            metrics.lag.labels(str(partition)).set(max(end - offsets[partition], 0))

    with poll_in_background(poll, timings):
        yield
