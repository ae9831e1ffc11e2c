"""The consumer's loop: one session after another, each ended by its first doubt."""

import gc
import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from threading import Event
from typing import Generic

from orchestrator.config.timings import ConsumerTimings
from orchestrator.consumer.narrowing import RefusedRows
from orchestrator.consumer.session import SESSION_ERRORS, ConsumerSession, open_consumer_session
from orchestrator.consumer.subscription import ConsumerObserver, Subscription, T
from outbox import Backoff, Connection, error_text

log = logging.getLogger(__name__)

CONSUMER_SESSION = "orchestrator consumer"  # application_name of a consumer's session


class ConsumerLoop(Generic[T]):
    """Runs sessions until it is stopped, and knows why there is none."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        subscription: Subscription[T],
        observer: ConsumerObserver,
        timings: ConsumerTimings,
    ) -> None:
        self._connect = connect
        self._subscription = subscription
        self._observer = observer
        self._timings = timings
        self._session: ConsumerSession[T] | None = None
        self._logged: set[str] = set()
        self.refused_rows = RefusedRows()
        self.last_error: str | None = "not started"  # why no session works, for operators

    def run(self, stop: Event) -> None:
        """Consume until `stop` is set. A server that is down is retried."""
        backoff = Backoff(stop, self._timings.min_healthy_s)
        while not stop.is_set():
            try:
                self._run_session(stop, backoff)
            except SESSION_ERRORS as error:
                self._set_error(error_text(error))
                backoff.wait()

    def _run_session(self, stop: Event, backoff: Backoff) -> None:
        """Consume in one session; its end, whatever the reason, leaves the group."""
        self._observer.tick()
        gc.collect()  # what the last session left: threads of the client, a batch in progress
        with (
            closing(self._connect()) as conn,
            open_consumer_session(
                self._subscription, conn, self._observer, self._timings, self.refused_rows
            ) as session,
        ):
            self._session = session
            while not stop.is_set():
                session.run_once()
                self._observer.tick()
                backoff.healthy()
                self._set_error(None)

    def positions(self) -> Mapping[int, int]:
        """Return the next offset of each partition assigned here, including refused ones."""
        return self._session.positions() if self._session else {}

    def refused(self) -> Mapping[int, str]:
        """Return the partitions that wait for an operator, and why."""
        return self._session.refused() if self._session else {}

    def unread(self) -> Mapping[int, str]:
        """Return the partitions whose records are in the log and do not come, and why."""
        return self._session.unread() if self._session else {}

    def _set_error(self, error: str | None) -> None:
        """Log a change; each error once until a session works."""
        if error == self.last_error:
            return
        self.last_error = error
        if error is None:
            log.info("consumer connected")
            self._logged.clear()
        elif error not in self._logged:
            log.warning("consumer waiting", extra={"error": error, "next": "trying again"})
            self._logged.add(error)
