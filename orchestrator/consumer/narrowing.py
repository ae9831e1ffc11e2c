"""A batch that Postgres refuses is narrowed to the record whose row it refuses: a dead letter.

Evidence decides whether an error is about a row: other rows are taken. Without an accepted row in
between, at most LIMIT records become dead letters; then Postgres must take one of the other records
that were polled. Otherwise the table is the reason, whatever the error says, and the consumer waits: a
mistake in the schema must not turn the whole input into dead letters. An error that is about the schema
as a rule needs that evidence for each record.
"""

import math
import time
from collections.abc import Sequence
from typing import TypeVar

import psycopg

from orchestrator.contract.records import RefusedRow
from orchestrator.program import PROGRAM
from outbox import DatabaseNotReady, error_text

T = TypeVar("T")

LIMIT = 20  # dead letters without an accepted row in between
SAMPLE = 3  # other records that are tried: Postgres may log each failure, with the row in it
SINGLY = 32  # records that are tried one by one
SHOWN_S = 600.0  # as in the alert DeadLetters

# Classes of errors that are never about a row: of the session, the server or a lock.
NOT_OF_A_ROW = frozenset(["08", "25", "28", "40", "53", "55", "57", "58", "F0", "XX"])
# Classes and codes of errors that are about a statement or the schema as a rule; but a trigger may fail
# with one for some rows: it calls what is not there, or raises it.
RARELY_OF_A_ROW = frozenset(["0A", "26", "3D", "3F", "42", "55000", "XX000"])


class EveryRowRefused(DatabaseNotReady):
    """Postgres refused many records in a row and took none: the reason must be the table."""

    def __init__(self, last: str) -> None:
        super().__init__(
            f"the last {LIMIT} records were refused, and others are, too: {last}; change the table, and"
            f" this record is accepted; `{PROGRAM} dlq retry --reason {RefusedRow.REASON}` sends the"
            " others again"
        )


class RowOrSchema(DatabaseNotReady):
    """A row is refused for what is the schema's fault as a rule; no other row has shown otherwise."""

    def __init__(self, place: str, error: BaseException) -> None:
        # A trigger may quote the row: a URL may contain a password.
        super().__init__(
            f"{place}: {error_text(error).partition('://')[0]}: mend the table, its triggers or its"
            " permissions; if Postgres takes the row of another record, this one becomes a dead letter"
        )


def may_be_of_a_row(error: psycopg.Error) -> bool:
    """Return whether Postgres may take other rows than the one that it refused with this error."""
    is_other = error.sqlstate is not None and error.sqlstate[:2] not in NOT_OF_A_ROW
    return is_other or is_rarely_of_a_row(error)


def is_rarely_of_a_row(error: BaseException) -> bool:
    """Return whether other rows must be taken before this error is one of a row."""
    code = (isinstance(error, psycopg.Error) and error.sqlstate) or ""
    return bool({code, code[:2]} & RARELY_OF_A_ROW)


def parts_of(records: Sequence[T]) -> list[Sequence[T]]:
    """Return the parts of a refused batch that are tried next, in its order.

    Few attempts fail: three for one record of a thousand, and not ten as by halves.
    """
    size = 1 if len(records) <= SINGLY else math.isqrt(len(records))
    return [records[start : start + size] for start in range(0, len(records), size)]


class RefusedRows:
    """What the sessions of a process know of refused rows: how many in a row, and the last one."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._is_any_accepted = False  # since the last poll, or refusal
        self._last = ""
        self._last_at = -math.inf

    def needs_proof(self, error: BaseException) -> bool:
        """Return whether too little was accepted to take the row for the reason of its error."""
        if is_rarely_of_a_row(error):
            return not self._is_any_accepted
        return self._in_a_row >= LIMIT

    def begin_poll(self) -> None:
        """Forget what was accepted before."""
        self._is_any_accepted = False

    def note_accepted(self) -> None:
        """Note that Postgres took a row."""
        self._in_a_row, self._is_any_accepted = 0, True

    def note_refused(self, text: str) -> None:
        """Note that a record became a dead letter."""
        self._in_a_row += 1
        self._is_any_accepted = False
        self._last, self._last_at = text, time.monotonic()

    def describe(self) -> str | None:
        """Return the last refused record, for some time: a note of the process's health."""
        return self._last if time.monotonic() < self._last_at + SHOWN_S else None
