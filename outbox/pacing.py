"""A breath after a small batch where batches wait for each other: the next one is larger instead.

A batch costs much the same whatever its size. What it takes beyond the quickest one is waiting: for
other lanes, for a core, for the brokers. Whoever gives as much time back makes that wait shorter, for
itself too; where nothing waits, there is no pause.
"""

import math


class Pace:
    """Paces the batches of a relay, or of a consumer. longest_s: no pause is longer."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._quickest_s = math.inf

    def pause_s(self, took_s: float) -> float:
        """Return how long to wait after a batch that was not full and took so long."""
        self._quickest_s = min(self._quickest_s, took_s)
        return min(took_s - self._quickest_s, self._longest_s)
