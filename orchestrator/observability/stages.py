"""A line in the log for each stage of a message while they are few; one line for many.

So the log tells the story of a scenario where a person can read it, and costs nothing where none can.
No line has more of a message than its ids and where it is.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping

LINES_PER_S = 20
SUMMARY_S = 10.0  # between two lines about many

log = logging.getLogger(__name__)


class StageLog:
    """Tells of one stage. one, many: the events of the two kinds of line. Not for several threads."""

    def __init__(
        self,
        one: str,
        many: str,
        level: int = logging.INFO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._one = one
        self._many = many
        self._level = level
        self._clock = clock
        self._left, self._refill_at = LINES_PER_S, clock() + 1
        self._untold = 0
        self._untold_since = 0.0

    def tell(self, count: int, lines: Iterable[Mapping[str, object]] = ()) -> None:
        """Tell of so many messages. lines: the fields of each; none if they are too many."""
        if not (count and log.isEnabledFor(self._level)):
            return
        now = self._clock()
        if now >= self._refill_at:
            self._left, self._refill_at = LINES_PER_S, now + 1
        told = [] if self._untold or count > self._left else list(lines)
        for fields in told:
            log.log(self._level, self._one, extra=dict(fields))
        self._left -= len(told)
        self._untold_since = self._untold_since if self._untold else now
        self._untold += count - len(told)
        self.flush()

    def flush(self) -> None:
        """Tell of those that had no line of their own, now and then."""
        if self._untold and (took_s := self._clock() - self._untold_since) >= SUMMARY_S:
            log.log(self._level, self._many, extra={"count": self._untold, "seconds": round(took_s)})
            self._untold = 0
