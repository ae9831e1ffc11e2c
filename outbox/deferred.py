"""Tell the service what is in Kafka: `on_published`, at once where it can, later where it cannot.

Invariant: an aggregate whose outbox rows are deleted was given to `on_published` in that transaction,
or is in `outbox_deferred`; it leaves that table in the transaction in which `on_published` did it. So a
table of the service never holds up the lanes, whether it is locked or refuses a write, and nothing is
forgotten.

A transaction that fails in `on_published` is repeated without it. It is left out from then on, until
a call of a retry succeeds: what refuses one batch may refuse all, and may take the lock time-out.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn
from uuid import UUID

import psycopg

from outbox import deferred_rows
from outbox.crash_points import crash_point
from outbox.errors import OnPublishedFailed, error_text
from outbox.options import RelayOptions
from outbox.postgres import Connection, transaction

log = logging.getLogger(__name__)

MAX_GROUP = 500  # rows in one transaction of a retry
RETRY_BUDGET_S = 0.1  # after which a retry begins no further group: the lanes wait meanwhile
RETRY_LOCK_TIMEOUT = "100ms"  # should `on_published` wait for a lock after all
REPORTED_ATTEMPTS = 3  # what is done sooner is not worth a line
MAX_REASON = 200  # characters

SET_LOCK_TIMEOUT = "SELECT pg_catalog.set_config('lock_timeout', %(timeout)s, true)"


class Deferred:
    """Calls `on_published`, keeps the list of what it could not do, and retries that."""

    def __init__(self, conn: Connection, options: RelayOptions) -> None:
        self._conn = conn
        self._on_published = options.on_published
        self._retry_s = options.timings.deferred_retry_s
        self._failure: str | None = None  # of the last call of on_published
        self._was_called = False  # on_published, in this transaction
        self._group_size = MAX_GROUP
        self._next_retry_at = 0.0  # monotonic
        self._reported: frozenset[str] = frozenset()  # reasons in the log

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in one transaction. Raises OnPublishedFailed: repeat it, without the call.

        A deferred constraint of the service refuses what it wrote only at COMMIT.
        """
        self._was_called = is_committing = False
        try:
            with transaction(self._conn):
                yield
                is_committing = True
        except psycopg.Error as error:
            if not (is_committing and self._was_called):
                raise
            self._raise_failure(error)

    def tell(self, aggregate_ids: Sequence[UUID]) -> None:
        """Call `on_published`, or put aggregates on the list; in the caller's transaction.

        Raises OnPublishedFailed: repeat the transaction, and the call is left out.
        """
        if self._failure:
            deferred_rows.defer(self._conn, dict.fromkeys(aggregate_ids, self._failure))
        elif left := self._call(aggregate_ids):
            deferred_rows.defer(self._conn, left)

    def _call(self, aggregate_ids: Sequence[UUID]) -> Mapping[UUID, str]:
        """Call `on_published`; return what it left undone, each with the reason."""
        self._was_called = True
        try:
            left = self._on_published(self._conn, aggregate_ids) or ()
        except psycopg.Error as error:
            self._raise_failure(error)
        return left if isinstance(left, Mapping) else dict.fromkeys(left, deferred_rows.LOCKED)

    def _raise_failure(self, error: psycopg.Error) -> NoReturn:
        """Keep why Postgres refused a call. Raises OnPublishedFailed."""
        if error.sqlstate is None or self._conn.closed:
            raise error  # the session is over, or its commit is in doubt
        # A trigger may quote a row: a URL may contain a password.
        self._failure = error_text(error).partition("://")[0][:MAX_REASON]
        raise OnPublishedFailed(self._failure) from error

    # ---- the list -----------------------------------------------------------------------------------

    def retry(self) -> None:
        """Try what is due, now and then, outside of the lanes' transactions."""
        started = time.monotonic()
        if started < self._next_retry_at:
            return
        tried = self._retry_group()
        while tried and time.monotonic() < started + RETRY_BUDGET_S and self._retry_group():
            pass
        if tried or self._reported:
            self._report()
        self._next_retry_at = time.monotonic() + self._retry_s

    def _retry_group(self) -> bool:
        """Try the rows that were not tried for the longest time; say whether there were any.

        A group that fails is tried again with half of its rows, down to one, which is postponed: one
        aggregate that is refused does not keep its neighbours on the list.
        """
        ids = deferred_rows.find_due(self._conn, self._retry_s, self._group_size)
        if not ids:
            return False
        try:
            locked = self._retry_rows(ids)
        except OnPublishedFailed as failed:
            if len(ids) == 1:
                deferred_rows.postpone(self._conn, ids, str(failed))
            self._group_size = max(len(ids) // 2, 1)
            return True
        self._group_size = min(2 * self._group_size, MAX_GROUP)
        return locked

    def _retry_rows(self, ids: Sequence[int]) -> bool:
        """Call `on_published` for rows of the list in one transaction; False: another relay has them.

        Raises OnPublishedFailed.
        """
        with self.transaction():
            rows = deferred_rows.lock(self._conn, ids)
            if rows:
                self._conn.execute(SET_LOCK_TIMEOUT, {"timeout": RETRY_LOCK_TIMEOUT})
                left = self._call([row.aggregate_id for row in rows])
                done = [row.id for row in rows if row.aggregate_id not in left]
                deferred_rows.delete(self._conn, done)
                for reason in set(left.values()):
                    undone = [row.id for row in rows if left.get(row.aggregate_id) == reason]
                    deferred_rows.postpone(self._conn, undone, reason)
            crash_point("relay.retried")
        if rows:
            self._failure = None
        return bool(rows)

    def _report(self) -> None:
        """Log once per change why aggregates stay on the list, and when none does any more."""
        reasons = deferred_rows.read_deferred_reasons(self._conn, REPORTED_ATTEMPTS)
        for one in reasons:
            if one.reason not in self._reported:
                fields = {"reason": one.reason, "rows": one.rows, "aggregate_ids": one.aggregate_ids}
                log.warning("aggregates deferred", extra=fields)
        if self._reported and not reasons:
            log.info("aggregates done")
        self._reported = frozenset(one.reason for one in reasons)
