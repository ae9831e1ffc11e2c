"""Does a COMMIT wait for a synchronous standby? The loop that waits is silent and cannot say so."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg

from orchestrator.config.settings import Settings
from orchestrator.config.timings import ProcessTimings
from orchestrator.observability.gauges import poll_in_background
from orchestrator.observability.health import Health
from outbox import connect, hang_up_after, read_standby_wait

log = logging.getLogger(__name__)


@contextmanager
def watch_standby(
    settings: Settings, health: Health, loop: str, session: str, timings: ProcessTimings
) -> Iterator[None]:
    """Look why a loop is silent, in another session, while the block runs.

    A loop whose COMMIT waits is not ready, but it does not hang. session: its application_name.
    """

    def find_wait() -> str | None:
        if health.silent_s(loop) < timings.gauge_period_s:
            return None
        try:
            with (
                closing(connect(settings.database_url, "orchestrator standby")) as conn,
                hang_up_after(conn, timings.gauge_silence_s),
            ):
                wait = read_standby_wait(conn, session)
        except psycopg.Error:
            return None
        return None if wait.waiting_s is None else wait.text

    def poll() -> None:
        found, before = find_wait(), health.waits.get(loop)
        if found:
            health.waits[loop] = found
            if not before:
                log.error("commit waiting", extra={"session": session, "error": found})
        elif before:
            del health.waits[loop]
            log.info("commit done", extra={"session": session})

    health.checks["commit"] = lambda: health.waits.get(loop)
    with poll_in_background(poll, timings):
        yield
