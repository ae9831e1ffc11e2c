"""A line in the log for each stage of a message while they are few; one line for many.

So the log tells the story of a scenario where an operator can follow it, and costs nothing where none
can. No line has more of a message than its ids and where it is.
"""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from orchestrator.contract.messages import order_ids_in
from orchestrator.contract.records import Decided
from orchestrator.observability.masking import shown_bytes
from outbox import OutboxRow

log = logging.getLogger(__name__)

LINES_PER_S = 20
SUMMARY_S = 10.0  # between two lines about many

T = TypeVar("T")


class StageLog(Generic[T]):
    """Tells of one stage. Not for several threads.

    one(message): logs one. many(count, seconds): logs so many that had no line of their own.
    """

    def __init__(
        self,
        one: Callable[[T], None],
        many: Callable[[int, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._one = one
        self._many = many
        self._clock = clock
        self._left, self._refill_at = LINES_PER_S, clock() + 1
        self._untold = 0
        self._untold_since = 0.0

    def tell(self, count: int, messages: Iterable[T] = ()) -> None:
        """Tell of so many. messages: each of them, or none if they are too many."""
        if not count:
            return
        now = self._clock()
        if now >= self._refill_at:
            self._left, self._refill_at = LINES_PER_S, now + 1
        told = [] if self._untold or count > self._left else list(messages)
        for message in told:
            self._one(message)
        self._left -= len(told)
        self._untold_since = self._untold_since if self._untold else now
        self._untold += count - len(told)
        self.flush()

    def flush(self) -> None:
        """Tell of those that had no line of their own, now and then."""
        if self._untold and (took_s := self._clock() - self._untold_since) >= SUMMARY_S:
            self._many(self._untold, round(took_s))
            self._untold = 0


def log_accepted(one: Decided) -> None:
    """Log a command that became a worker."""
    log.info(
        "command accepted",
        extra={
            "worker_id": one.message.aggregate_id,
            "scenario_uuid": shown_bytes(one.message.key or b""),
            "partition": one.partition,
            "offset": one.offset,
        },
    )


def log_many_accepted(count: int, seconds: int) -> None:
    """Log so many of them."""
    log.info("commands accepted", extra={"count": count, "seconds": seconds})


def log_refused(one: Decided) -> None:
    """Log a command that became a dead letter; the error names what is wrong, and quotes nothing."""
    log.warning(
        "command refused",
        extra={"partition": one.partition, "offset": one.offset, "error": str(one.refused)},
    )


def log_many_refused(count: int, seconds: int) -> None:
    """Log so many of them."""
    log.warning("commands refused", extra={"count": count, "seconds": seconds})


def log_order(row: OutboxRow) -> None:
    """Log an order that a `read_committed` reader sees now."""
    ids = order_ids_in(row.value)
    log.info(
        "order sent",
        extra={"worker_id": ids.worker_id, "scenario_uuid": ids.scenario_uuid, "topic": row.topic},
    )


def log_many_orders(count: int, seconds: int) -> None:
    """Log so many of them."""
    log.info("orders sent", extra={"count": count, "seconds": seconds})
