"""Waiting until a condition holds, instead of sleeping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

GENEROUS_S = 30  # for a step that takes a second or two on a quiet machine
POLL_S, MAX_POLL_S = 0.02, 0.1  # short compared with a server's work, long compared with the check
POLL_SHARE = 0.05  # of the time waited so far: a session for each check costs as much as the work


def eventually(check: Callable[[], T], timeout: float = GENEROUS_S) -> T:
    """Call `check` until it returns something true, and return that.

    An AssertionError of the check means "not yet"; after `timeout` seconds it is raised.
    """
    started = time.monotonic()
    while True:
        waited_s = time.monotonic() - started
        late = waited_s > timeout
        try:
            result = check()
        except AssertionError:
            if late:
                raise
        else:
            if result:
                return result
            name = getattr(check, "__qualname__", "check")  # a partial has none
            assert not late, f"after {timeout} s still {result!r}: {name}"
        time.sleep(min(max(POLL_SHARE * waited_s, POLL_S), MAX_POLL_S))
