"""Statements that may take long: after a time-out their result is unknown, and the rest is shown."""

from collections.abc import Callable
from typing import TypeVar

import psycopg

TIMEOUT_S = 5.0  # of one statement of the session

T = TypeVar("T")


def in_time(read: Callable[[], T]) -> T | None:
    """Return the result of a statement that may take long; None: longer than TIMEOUT_S."""
    try:
        return read()
    except psycopg.errors.QueryCanceled:
        return None
