"""A write that begins when it is awaited, and is not lost in silence when it never is."""

import logging
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any

from outbox.errors import NotAwaited

log = logging.getLogger(__name__)


class PendingWrite(Coroutine[Any, Any, None]):
    """What `enqueue_async` returns. Dropped before it was awaited, it makes the transaction fail.

    Python drops it at the end of the statement, and so before the transaction commits. One that is kept
    in a variable is dropped later, and then only the log says it.
    """

    def __init__(self, write: Coroutine[Any, Any, None], fail: Callable[[], None]) -> None:
        self._write = write
        self._fail = fail
        self._begun = False

    def __await__(self) -> Generator[Any, Any, None]:
        """Begin."""
        self._begun = True
        return self._write.__await__()

    def send(self, value: Any, /) -> Any:
        """Begin, or go on: a task calls it."""
        self._begun = True
        return self._write.send(value)

    def throw(self, *error: Any) -> Any:
        """Raise an error inside: a task that is cancelled calls it."""
        self._begun = True
        return self._write.throw(*error)

    def close(self) -> None:
        """Give it up, on purpose."""
        self._begun = True
        self._write.close()

    def __del__(self) -> None:
        """Say so, if nothing was written."""
        if not self._begun:
            log.error("messages not enqueued", extra={"reason": str(NotAwaited())})
            with suppress(Exception):  # whatever the connection is by now
                self._fail()
