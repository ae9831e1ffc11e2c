"""The id up to which a lane holds no rows, so that a claim need not read through them.

An acknowledged row stays in the index until vacuum may remove it, and a long transaction anywhere in
the database forbids that. Without the watermark every claim would read through all that was
acknowledged since. Invariant: no row up to `id` is in the lane or can still come into it, provided that
the sequence gave its id and no other session locks rows, except those that are left out (waiting_rows):
when others are left out, the watermarks are forgotten.

The highest id that was seen is not the watermark: ids commit out of order. But they are given in
ascending order, to transactions that hold a lock on the table from before until after. So once a row
was seen, and every transaction that held the lock at that time has ended, no lower id can appear.

The watermark is never the truth. A row with an id from elsewhere, or one that was locked when it was
claimed, is found by scans of the whole lane: every FULL_SCAN_S as a rule, every MAX_SCAN_PAUSE_S at the
latest. It is published after what came in between, also of its key.
"""

import math
import time
from collections.abc import Iterable, Sequence

from outbox.outbox_rows import BEFORE_ALL, PREPARED_TRANSACTION, open_writers
from outbox.postgres import Connection

WRITER_POLL_S = 0.2  # how often to ask which transactions write
FULL_SCAN_S = 5.0  # how often to scan the whole lane
MAX_TIME_SHARE, MAX_SCAN_PAUSE_S = 0.01, 30.0  # at most so much of the time; not less often than that


class ClaimWatermark:
    """The watermark of one lane, for one owner: it follows what is acknowledged."""

    def __init__(self) -> None:
        self.id = BEFORE_ALL
        self._seen = BEFORE_ALL  # the highest id that was claimed
        self._next = BEFORE_ALL  # the watermark to be, once its writers have ended
        self._writers: frozenset[str] = frozenset()
        self._full_scan_at = self._scan_began = -math.inf

    @property
    def needs_writers(self) -> bool:
        """Say whether `note_writers` could raise it."""
        return self._seen != self.id

    def note_writers(self, writers: frozenset[str]) -> None:
        """Note which transactions still write, and may hold lower ids. Asked outside a transaction."""
        if self._next <= self.id:
            self._next, self._writers = self._seen, writers
        else:
            self._writers = (self._writers | {PREPARED_TRANSACTION}) & writers

    def scan_start(self) -> int:
        """Return the id after which the next scan of the lane begins: now and then that before all."""
        self._scan_began = time.monotonic()
        return self.id if self._scan_began < self._full_scan_at else BEFORE_ALL

    def note_scan(self, ids: Sequence[int]) -> None:
        """Note what a scan found, in its order, that began with `scan_start`, after `note_writers`."""
        if self._scan_began >= self._full_scan_at:
            self._full_scan_at = next_time(self._scan_began, FULL_SCAN_S)
        if not self._writers:
            self.id = max(self.id, self._next)
        if ids:
            if ids[0] <= self.id:  # ids were not given in ascending order: what they proved is void
                self._seen = self._next = BEFORE_ALL
            self.id = min(self.id, ids[0] - 1)
            self._seen = max(self._seen, ids[-1])


class WriterPoll:
    """Asks now and then which transactions write, for the watermarks of all lanes of an owner."""

    def __init__(self) -> None:
        self._ask_at = -math.inf

    def update(self, conn: Connection, watermarks: Iterable[ClaimWatermark]) -> None:
        """Tell it to the watermarks that need it, if it is time. Outside a transaction."""
        began = time.monotonic()
        needing = [mark for mark in watermarks if mark.needs_writers] if began >= self._ask_at else []
        if needing:
            writers = open_writers(conn)
            for mark in needing:
                mark.note_writers(writers)
            self._ask_at = next_time(began, WRITER_POLL_S)


def next_time(began: float, pause_s: float) -> float:
    """Return when to do again what began then and ends now."""
    now = time.monotonic()
    return now + min(max(pause_s, (now - began) / MAX_TIME_SHARE), MAX_SCAN_PAUSE_S)
