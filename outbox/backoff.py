"""Pauses between attempts that fail: longer each time, until one works."""

import random
import time
from threading import Event

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0  # below the silence after which Postgres ends a relay's session


class Backoff:
    """The pause after a failed attempt, for one visible loop:

        backoff = Backoff(stop)
        while not stop.is_set():
            try:
                work(on_healthy=backoff.healthy)
                return
            except RETRIED as error:
                report(error)
                backoff.wait()

    stop: ends a pause early. max_s: no pause is longer. min_healthy_s: an attempt that called `healthy`
    and failed sooner counts as failed: it may have met what every attempt meets once it works.
    """

    def __init__(self, stop: Event, min_healthy_s: float = 0.0, max_s: float = MAX_BACKOFF_S) -> None:
        self._stop = stop
        self._max_s = max_s
        self._min_healthy_s = min_healthy_s
        self._longest_s = 0.0  # of the next pause
        self._healthy = False
        self._began = time.monotonic()

    def healthy(self) -> None:
        """Note that the attempt works: after its end the next one begins at once."""
        self._healthy = True

    def wait(self) -> None:
        """Pause before the next attempt: not at all after one that worked, else longer each time."""
        worked = self._healthy and time.monotonic() - self._began >= self._min_healthy_s
        self._longest_s = 0.0 if worked else min(2 * self._longest_s or FIRST_BACKOFF_S, self._max_s)
        # Full jitter: processes that failed together must not come back together.
        self._stop.wait(random.uniform(0, self._longest_s))  # noqa: S311  # no secret
        self._healthy = False
        self._began = time.monotonic()
