"""How fast rows and commands move: what changed between two looks, and when they will be gone."""

from typing import NamedTuple

from orchestrator.operations.status.status import Status


class Flow(NamedTuple):
    """Per second, between two looks; None: could not be counted.

    read: records of the input. enqueued, sent: rows of the outbox. rows_end_s, lag_end_s: at this rate,
    the time until none wait; None: never, or none wait.
    """

    read: float | None
    enqueued: float | None
    sent: float | None
    rows_end_s: float | None
    lag_end_s: float | None


def flow_between(before: Status, now: Status) -> Flow:
    """Return what moved between two looks.

    Rows have ids that count up by one, so what was sent is what was added and does not wait any more.
    An id of a transaction that is still open, or was rolled back, counts as added.
    """
    seconds = max((now.at - before.at).total_seconds(), 0.001)
    read, lag = _change(before.position, now.position), _change(before.lag, now.lag)
    added = _change(before.last_row_id, now.last_row_id)
    waiting = _change(before.waiting, now.waiting)
    sent = None if added is None or waiting is None else max(added - waiting, 0)
    return Flow(
        _rate(read, seconds),
        _rate(added, seconds),
        _rate(sent, seconds),
        _end(now.waiting, waiting, seconds),
        _end(now.lag, lag, seconds),
    )


def _change(before: int | None, now: int | None) -> int | None:
    return None if before is None or now is None else now - before


def _rate(change: int | None, seconds: float) -> float | None:
    return None if change is None else max(change, 0) / seconds


def _end(left: int | None, change: int | None, seconds: float) -> float | None:
    return left * seconds / -change if left and change is not None and change < 0 else None
