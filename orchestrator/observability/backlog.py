"""Gauges of the relay's tables: polled in the background, through a connection of their own."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from orchestrator.config.settings import Settings
from orchestrator.config.timings import ProcessTimings
from orchestrator.contract.workers import read_id_sequence
from orchestrator.observability.gauges import poll_in_background
from orchestrator.observability.metrics import RelayMetrics
from outbox import (
    Connection,
    Session,
    begin_session,
    hang_up_after,
    read_backlog,
    read_deferred_backlog,
    session_options,
)
from outbox.admin import count_parked, read_deferred_reasons

T = TypeVar("T")
GAUGES_SESSION = "orchestrator gauges"  # its application_name
COST_FACTOR = 20.0  # a poll that counts rows may take 5 % of the time


@contextmanager
def backlog_gauges(
    settings: Settings, metrics: RelayMetrics, timings: ProcessTimings
) -> Iterator[None]:
    """Keep the gauges of waiting and parked rows, of deferred workers, and of the share of ids used."""
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # the relay says what is down

    def begin(conn: Session) -> None:
        with hang_up_after(conn, timings.gauge_silence_s):
            begin_session(
                conn,
                GAUGES_SESSION,
                schema=settings.database_schema,
                statement_timeout_s=timings.gauge_statement_s,
            )

    pool = ConnectionPool(
        settings.database_url,
        connection_class=Session,
        kwargs={"autocommit": True, **session_options(GAUGES_SESSION)},
        configure=begin,
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
        parked = read(count_parked)
        metrics.set_parked(None if parked is None else sum(one.rows for one in parked))
        deferred = read(read_deferred_backlog)
        reasons = read(read_deferred_reasons) if deferred and deferred.rows else None
        metrics.set_deferred(deferred, reasons or ())
        ids = read(read_id_sequence)
        used = None if ids is None else ids.used
        metrics.ids_used.set(math.nan if used is None else used)

    metrics.ids_used.set(math.nan)  # not 0, before the first poll
    metrics.set_deferred(None)
    metrics.set_parked(None)
    pool.open()
    try:
        with poll_in_background(poll, timings, COST_FACTOR):
            yield
    finally:
        pool.close(timeout=0)  # a worker may be in a connect: the process must not wait for that
