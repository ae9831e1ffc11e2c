"""A pause after a small batch while the machine is contended, so that the next batch is larger.

A batch costs much the same whatever its size. What it takes beyond the fastest one is waiting: for
other lanes, for a core, for the brokers. A pause of the same length makes that wait shorter, for this
process too; on an idle machine there is none.
"""

import math


class AdaptivePause:
    """The pause between the batches of a relay, or of a consumer. max_s: no pause is longer."""

    def __init__(self, max_s: float) -> None:
        self._max_s = max_s
        self._min_s = math.inf

    def after(self, took_s: float) -> float:
        """Return how long to pause after a batch that was not full and took so long."""
        self._min_s = min(self._min_s, took_s)
        return min(took_s - self._min_s, self._max_s)
