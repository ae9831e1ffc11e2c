"""Gauges of whole tables and topics: read in the background, never inside a scrape.

Each process reports only what it works itself (its lanes, its partitions), so sums over all
processes count nothing twice. What cannot be read is not reported, or as NaN, rather than stale.
In the same way it is looked, for /readyz, whether the brokers answer.
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
from orchestrator.contract.workers import read_id_sequence
from orchestrator.kafka import topics
from orchestrator.observability.metrics import ConsumerMetrics, RelayMetrics
from outbox import KEEPALIVES, Connection, error_text, hang_up_after
from outbox.admin import read_backlog

T = TypeVar("T")
EVERY_S = 5.0
REST, REST_S = 20.0, 30.0  # counting a long table may take 5 % of the time; pauses end at 30 s
TIMEOUT_MS = 2000  # for the statement; counting a million rows takes a tenth of it
SILENCE_S = 5.0  # for a server that does not even say that the statement took too long


@contextmanager
def in_background(look: Callable[[], None], rest: float = 0) -> Iterator[None]:
    """Call `look` every EVERY_S while the block runs.

    rest: if it took long, wait so many times as long, up to REST_S: for looks that cost something.
    """
    stop = Event()

    def repeat() -> None:
        rest_s = 0.0
        while not stop.wait(rest_s):
            started = time.monotonic()
            look()
            rest_s = max(EVERY_S, min(rest * (time.monotonic() - started), REST_S))

    Thread(target=repeat, name="gauges", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


class KafkaLook:
    """Looks at the brokers and topics, for processes whose own clients keep silent while idle."""

    def __init__(self, settings: Settings, wanted: Sequence[str]) -> None:
        self._admin = topics.Admin(settings.kafka)
        self._wanted = wanted
        self.trouble: str | None = None

    def look(self) -> None:
        """Note what is wrong: brokers that do not answer, topics that are missing."""
        try:
            self.trouble = "; ".join(topics.find_missing(self._admin, self._wanted)) or None
        except KafkaException as error:
            self.trouble = error_text(error)


@contextmanager
def backlog_gauges(settings: Settings, metrics: RelayMetrics) -> Iterator[None]:
    """Keep outbox_pending_rows, outbox_oldest_pending_age_seconds and the share of ids used."""
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # the relay says what is away
    pool: ConnectionPool[Connection] = ConnectionPool(
        settings.database_url,
        kwargs={
            "autocommit": True,
            "application_name": "orchestrator gauges",
            "target_session_attrs": "read-write",  # a standby may be far behind
            **KEEPALIVES,
        },
        configure=_limit_statements,
        min_size=0,
        max_size=1,
        timeout=TIMEOUT_MS / 1000,
        open=False,
    )

    def read(what: Callable[[Connection], T]) -> T | None:
        """Read one thing, whatever becomes of the others; None if that cannot be done."""
        try:
            with pool.connection() as conn, hang_up_after(conn, SILENCE_S):
                return what(conn)
        except (psycopg.Error, PoolTimeout):
            return None

    def look() -> None:
        backlog = read(lambda conn: read_backlog(conn, sorted(metrics.owned))) or {}
        metrics.pending.clear()
        metrics.oldest.clear()
        for lane, waiting in backlog.items():
            metrics.pending.labels(str(lane)).set(waiting.pending)
            metrics.oldest.labels(str(lane)).set(waiting.oldest_s)
        ids = read(read_id_sequence)
        used = None if ids is None else ids.used
        metrics.ids_used.set(math.nan if used is None else used)

    metrics.ids_used.set(math.nan)  # not 0, before the first look
    with pool, in_background(look, REST):
        yield


def _limit_statements(conn: Connection) -> None:
    with hang_up_after(conn, SILENCE_S):
        conn.execute("SELECT set_config('statement_timeout', %s, false)", (str(TIMEOUT_MS),))


@contextmanager
def lag_gauges(
    settings: Settings,
    positions: Callable[[], Mapping[int, int]],
    paused: Callable[[], Collection[int]],
    metrics: ConsumerMetrics,
) -> Iterator[None]:
    """Keep what the consumer reports of its partitions: lag, offset, how many are paused."""
    admin = topics.Admin(settings.kafka)

    def look() -> None:
        offsets, waiting = positions(), paused()
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

    with in_background(look):
        yield
