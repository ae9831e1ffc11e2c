"""Statements that may take long: after a time-out their result is unknown, and the rest is shown."""

from collections.abc import Callable
from typing import TypeVar

import psycopg

from outbox import Connection

TIMEOUT_MS = 5000  # of one statement

T = TypeVar("T")

LIMIT_STATEMENTS = "SELECT set_config('statement_timeout', %(timeout)s, false)"


def limit_statements(conn: Connection) -> None:
    """Let Postgres cancel each statement of the session after TIMEOUT_MS."""
    conn.execute(LIMIT_STATEMENTS, {"timeout": str(TIMEOUT_MS)})


def in_time(read: Callable[[], T]) -> T | None:
    """Return the result of a statement that may take long; None: longer than TIMEOUT_MS."""
    try:
        return read()
    except psycopg.errors.QueryCanceled:
        return None
