"""Back-off for what must not give up: a session is opened again until the process is to stop."""

import time
from collections.abc import Callable
from threading import Event

from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_when_event_set,
    wait_random_exponential,
)

LIMIT_S = 5.0  # below the silence after which Postgres ends a relay's session


def persist(
    session: Callable[[Callable[[], None]], None],
    errors: tuple[type[Exception], ...],
    note: Callable[[Exception], None],
    stop: Event,
    steady_s: float = 0.0,
) -> None:
    """Run `session(good)` until it returns without an error or `stop` is set; back off on errors.

    session calls good() as soon as it works: a later error then starts a new session at once, and
    the back-off from its beginning, unless that was within steady_s: it may be of what every session
    meets once it works. errors: what a new session may cure, told to `note` every time; anything else
    is raised.
    """

    def attempt() -> bool:
        works, began = Event(), time.monotonic()
        try:
            session(works.set)
        except errors as error:
            note(error)
            if not works.is_set() or time.monotonic() - began < steady_s:
                raise
            return False
        return True

    backing_off = Retrying(
        retry=retry_if_exception_type(errors),
        wait=wait_random_exponential(multiplier=0.1, max=LIMIT_S),
        stop=stop_when_event_set(stop),
        sleep=sleep_using_event(stop),
    )
    finished = False
    while not (finished or stop.is_set()):
        try:
            finished = backing_off(attempt)
        except RetryError:  # asked to stop while backing off
            return
