"""The consumer process: one session after another, each ended by the first doubt."""

import gc
import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from threading import Event

from orchestrator.config.settings import Settings
from orchestrator.consumer.session import NEW_SESSION, ConsumerSession
from orchestrator.observability.gauges import lag_gauges
from orchestrator.observability.health import Health
from orchestrator.observability.metrics import ConsumerMetrics, new_registry
from orchestrator.runtime.process import run_process
from outbox import LIMIT_S, connect, error_text, persist

log = logging.getLogger(__name__)


def run_consumer(settings: Settings) -> int:
    """Be the consumer until stopped; return the exit code."""
    health, registry = Health(), new_registry("consumer")
    metrics = ConsumerMetrics(registry, health, settings.input_topic)
    consumer = InputConsumer(settings, metrics)
    health.checks = {
        "session": lambda: consumer.trouble,
        "partitions": lambda: describe_paused(consumer.paused()),
    }
    with lag_gauges(settings, consumer.positions, consumer.paused, metrics):
        return run_process(settings, registry, health, consumer.run)


def describe_paused(paused: Mapping[int, str]) -> str | None:
    """Name the partitions that wait for a person, None if there are none."""
    return "; ".join(f"partition {number}: {why}" for number, why in sorted(paused.items())) or None


class InputConsumer:
    """Runs sessions until it is stopped; says what they wait for."""

    def __init__(self, settings: Settings, metrics: ConsumerMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._session: ConsumerSession | None = None
        self.trouble: str | None = "not started"  # why no session works, for people

    def run(self, stop: Event) -> None:
        """Consume until `stop` is set. Servers that are away are waited for."""
        persist(lambda good: self._consume(stop, good), NEW_SESSION, self._note_trouble, stop, LIMIT_S)

    def positions(self) -> Mapping[int, int]:
        """Return the committed offset of each partition assigned here."""
        return self._session.positions() if self._session else {}

    def paused(self) -> Mapping[int, str]:
        """Return the partitions that wait for a person, and why."""
        return dict(self._session.paused) if self._session else {}

    def _consume(self, stop: Event, good: Callable[[], None]) -> None:
        """One session: its end, whatever the reason, leaves the group."""
        self._metrics.tick()
        gc.collect()  # the session before: the client's threads, what was in hand
        with closing(connect(self._settings.database_url, "orchestrator consumer")) as conn:
            self._session = ConsumerSession(self._settings, conn, self._metrics)
            with closing(self._session):
                while not stop.is_set():
                    self._session.run_once()
                    self._metrics.tick()
                    good()
                    self._note_trouble(None)

    def _note_trouble(self, error: Exception | None) -> None:
        """Say it once per change."""
        trouble = None if error is None else error_text(error)
        if trouble != self.trouble:
            if trouble is None:
                log.info("consumer works")
            else:
                log.warning("consumer waits", extra={"error": trouble})
        self.trouble = trouble
