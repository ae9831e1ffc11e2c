"""Gauges of whole tables and topics: read in the background, never inside a scrape.

Each process reports only what it works itself (its lanes, its partitions), so sums over all
processes count nothing twice. What cannot be read is not reported, rather than reported stale.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from threading import Event, Thread

import psycopg
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from psycopg_pool import ConnectionPool, PoolTimeout

from orchestrator import topics
from orchestrator.metrics import ConsumerMetrics, RelayMetrics
from orchestrator.settings import Settings
from outbox import Connection
from outbox.postgres import KEEPALIVES
from outbox.store import read_backlog

EVERY_S = 5.0
REST = 20  # a look that took long is followed by 20 times as long a rest: at most 5 % of the time
TIMEOUT_MS = 2000  # for the statement; counting a million rows takes a tenth of it


@contextmanager
def in_background(look: Callable[[], None]) -> Iterator[None]:
    """Call `look` every EVERY_S, or more seldom if it is slow, while the block runs."""
    stop = Event()

    def repeat() -> None:
        rest_s = 0.0
        while not stop.wait(rest_s):
            started = time.monotonic()
            look()
            rest_s = max(EVERY_S, REST * (time.monotonic() - started))

    Thread(target=repeat, name="gauges", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


@contextmanager
def backlog_gauges(settings: Settings, metrics: RelayMetrics) -> Iterator[None]:
    """Keep outbox_pending_rows and outbox_oldest_pending_age_seconds."""
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # the relay says what is away
    pool: ConnectionPool[Connection] = ConnectionPool(
        settings.database_url,
        kwargs={"autocommit": True, "application_name": "orchestrator gauges", **KEEPALIVES},
        configure=_limit_statements,
        min_size=0,
        max_size=1,
        timeout=TIMEOUT_MS / 1000,
        open=False,
    )

    def look() -> None:
        lanes = sorted(metrics.owned)
        metrics.pending.clear()
        metrics.oldest.clear()
        try:
            with pool.connection() as conn:
                backlog = read_backlog(conn, lanes)
        except (psycopg.Error, PoolTimeout):
            return
        for lane, waiting in backlog.items():
            metrics.pending.labels(str(lane)).set(waiting.pending)
            metrics.oldest.labels(str(lane)).set(waiting.oldest_s)

    with pool, in_background(look):
        yield


def _limit_statements(conn: Connection) -> None:
    conn.execute("SELECT set_config('statement_timeout', %s, false)", (str(TIMEOUT_MS),))


@contextmanager
def lag_gauges(
    settings: Settings,
    positions: Callable[[], Mapping[int, int]],
    paused: Callable[[], Sized],
    metrics: ConsumerMetrics,
) -> Iterator[None]:
    """Keep orchestrator_consumer_lag_messages and orchestrator_partitions_paused."""
    admin = AdminClient(dict(settings.kafka), logger=logging.getLogger("librdkafka"))

    def look() -> None:
        metrics.lag.clear()
        metrics.paused.set(len(paused()))
        offsets = positions()
        try:
            ends = topics.read_ends(admin, settings.input_topic, list(offsets))
        except KafkaException:
            return
        for partition, offset in offsets.items():
            metrics.lag.labels(str(partition)).set(max(ends[partition] - offset, 0))

    with in_background(look):
        yield
