"""The library's errors, and the one place that says what each of them ends.

| error              | ends                                                                       |
|--------------------|----------------------------------------------------------------------------|
| InDoubt            | the producer: recover, then decide from the marker                         |
| OnPublishedFailed  | a Postgres transaction: it is repeated without the call (outbox.deferred)   |
| RecordRejected     | the producer: recover, shrink the batch, park the row that fails alone     |
| OwnershipLost      | the session: another relay owns one of its lanes now                       |
| psycopg.Error      | the session: a new one reads the evidence again                            |
| KafkaException     | the session, outside of a batch: retried with back-off                     |
| DatabaseNotReady   | the session: retried with back-off                                         |
| Stopped            | the work, because the process was asked to stop                            |
Anything else is a bug and ends the process.
"""

import re
from collections.abc import Sequence

import psycopg
from confluent_kafka import KafkaError, KafkaException


class OutboxError(Exception):
    """Base of all errors of this library."""


class InDoubt(OutboxError):
    """The outcome of a Kafka call is unknown, or the producer can no longer be trusted."""


class LanesGivenUp(InDoubt):
    """The lanes go to a relay that Kafka answers: this one's work on them ends here."""


class RecordRejected(OutboxError):
    """Kafka rejects a record of the batch for what it is; another attempt would meet the same.

    lane: whose batch it was; None if the transaction had batches of several lanes.
    """

    def __init__(self, reason: str, lane: int | None = None) -> None:
        super().__init__(reason)
        self.lane = lane


class OwnershipLost(OutboxError):
    """Another relay has taken one of the lanes: its epoch is higher than ours."""

    def __init__(self, lanes: Sequence[int]) -> None:
        super().__init__(f"no longer the owner of all of the lanes {', '.join(map(str, lanes))}")


class OnPublishedFailed(OutboxError):
    """Postgres refused what `on_published` writes; the session goes on."""


class RolledBack(OutboxError):
    """COMMIT was answered with ROLLBACK: an error inside the transaction had been swallowed."""


class DatabaseNotReady(OutboxError):
    """The database is not what the code needs, or not yet; checked again with back-off."""


class RowsSkipped(DatabaseNotReady):
    """A trigger or a rule of a table skips what a statement writes, and no error says so."""

    def __init__(self, statement: str, table: str, skipped: int) -> None:
        super().__init__(
            f"{statement} of table {table} left out {skipped:,} rows without an error: a trigger or a"
            f" rule of {table} skips them: remove it"
        )


class NoTransaction(OutboxError):
    """The driver would commit the messages by themselves, and not with what they tell of."""

    def __init__(self, remedy: str) -> None:
        super().__init__(
            "no transaction: the driver would commit the messages by themselves. Enqueue them in the"
            f" transaction of what they tell of: {remedy}"
        )


class NotAwaited(OutboxError):
    """The messages are not written, and the transaction that they belong to must not commit."""

    def __init__(self) -> None:
        super().__init__(
            "enqueue_async(...) was not awaited: nothing was written, and the transaction fails"
        )


class Stopped(OutboxError):
    """The process was asked to stop while it waited for a server."""


# The whole transaction is repeated: serialization failure, deadlock, lock not available.
RETRYABLE_ERRORS = (
    OnPublishedFailed,
    psycopg.errors.SerializationFailure,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
)

# Kafka's errors that are about one record. RECORD_LIST_TOO_LARGE is about a batch of the protocol: a
# record sent alone gets a outcome of its own. Not INVALID_TIMESTAMP: the time is that of our clock.
RECORD_ERRORS = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_RECORD,
        KafkaError.POLICY_VIOLATION,
    }
)


# A server that refuses a session says so with a severity, in its language, and two spaces. libpq keeps
# the SQLSTATE to itself. Without two spaces it is libpq that speaks; here of a server that answered.
SERVER_REFUSES = re.compile(
    r"\S:  (?!.*(?:starting|shutting|recovery mode|yet accepting|_login_retry))"
)
LIBPQ_REFUSES = re.compile(
    r"session is read-only|hot standby|not support SSL|certificate|\balert\b|authentication|no password"
    "|not confirmed by the synchronous standby"
)


def is_server_away(error: psycopg.Error) -> bool:
    """Say whether the server could not be reached, or was lost; not if it answers, and refuses us."""
    if not isinstance(error, psycopg.OperationalError):
        return False
    if error.sqlstate:
        return error.sqlstate.startswith(("08", "57P"))
    text = str(error)
    return not (SERVER_REFUSES.search(text) or LIBPQ_REFUSES.search(text))


ATTEMPT = re.compile(r"^- (host: .*)", re.MULTILINE)  # psycopg's line for each of several hosts


def error_text(error: BaseException) -> str:
    """Return what an error of a server means, in one line and without the data it is about.

    psycopg's DETAIL and CONTEXT quote rows, and so credentials; they are left out.
    """
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return f"{error.diag.message_primary} ({error.sqlstate})"
    if isinstance(error, KafkaException):
        text = error.args[0].str().partition(" (after ")[0]  # how long it took is never the same
        return f"{text} ({error.args[0].name()})"
    attempts = ATTEMPT.findall(str(error)) if isinstance(error, psycopg.OperationalError) else ()
    return f"{type(error).__name__}: {'; '.join(attempts) or error}".splitlines()[0]
