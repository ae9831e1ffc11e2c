"""Up to which id a lane holds no rows any more, so that a claim need not read through them.

A acknowledged row stays in the index until vacuum may remove it, and a long transaction anywhere in the
database forbids that; without the low-water mark every claim would read through all that was acknowledged
since. Invariant: no row up to `id` is in the lane or can still come into it, if the sequence gave its
id and nobody else locks rows.

The highest id that was seen is not the mark: ids commit out of order. But they are given in ascending
order, to transactions that hold a lock on the table from before until after. So once a row was seen,
and all that held the lock then have ended, what a look does not find below it is not there for good.

So the mark is never the truth. A row with an id from elsewhere, or that somebody had locked when it was
claimed, is found by looks at the whole lane: after WHOLE_S as a rule, after LONGEST_S at the latest. It
goes out after what came in between, also of its key.
"""

import math
import time
from collections.abc import Iterable, Sequence

from outbox import store
from outbox.postgres import Connection

ENDED_S = 0.2  # how often to ask who is writing
WHOLE_S = 5.0  # how often to look at the whole lane
SHARE, LONGEST_S = 0.01, 30.0  # of the time, at most, goes into either; but not more seldom than that


class LowWater:
    """The low-water mark of one lane, for one owner: 0 at first, then it follows what is acknowledged."""

    def __init__(self) -> None:
        self.id = 0
        self._seen = 0  # the highest id that was claimed
        self._next = 0  # the mark to be, once its writers have ended
        self._writers: frozenset[str] = frozenset()
        self._whole_at = self._began = -math.inf

    @property
    def asks(self) -> bool:
        """Say whether there is something that it could learn from `hear`."""
        return self._seen != self.id

    def hear(self, writing: frozenset[str]) -> None:
        """Take in who is still writing that may hold lower ids. Asked outside a transaction."""
        if self._next <= self.id:
            self._next, self._writers = self._seen, writing
        else:
            self._writers = (self._writers | {store.PREPARED}) & writing

    def above(self) -> int:
        """Return the id above which the next look at the lane begins: now and then 0."""
        self._began = time.monotonic()
        return self.id if self._began < self._whole_at else 0

    def saw(self, ids: Sequence[int]) -> None:
        """Take in what a look found, in its order, that began at `above` and after `hear`."""
        if self._began >= self._whole_at:
            self._whole_at = pause_after(self._began, WHOLE_S)
        if not self._writers:
            self.id = max(self.id, self._next)
        if ids:
            if ids[0] <= self.id:  # ids were not given in ascending order: what they proved is void
                self._seen = self._next = 0
            self.id = min(self.id, ids[0] - 1)
            self._seen = max(self._seen, ids[-1])


class Writers:
    """Asks now and then who is writing, for the marks of all lanes of an owner."""

    def __init__(self) -> None:
        self._ask_at = -math.inf

    def tell(self, conn: Connection, marks: Iterable[LowWater]) -> None:
        """Let the marks hear it if one asks and it is time. Outside a transaction."""
        began = time.monotonic()
        asking = [mark for mark in marks if mark.asks] if began >= self._ask_at else []
        if asking:
            writing = store.writers(conn)
            for mark in asking:
                mark.hear(writing)
            self._ask_at = pause_after(began, ENDED_S)


def pause_after(began: float, pause_s: float) -> float:
    """Return when to do again what began then and ends now."""
    now = time.monotonic()
    return now + min(max(pause_s, (now - began) / SHARE), LONGEST_S)
