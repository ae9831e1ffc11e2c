"""Sessions and transactions on Postgres.

Invariant: a transaction counts as committed only when the server answered COMMIT with COMMIT. A lost
answer is an unknown outcome: the session is given up, and a new one decides from the rows, under
their lock. Without the check of the answer, an error swallowed inside a block would turn COMMIT into
a silent ROLLBACK.

Nor does a COMMIT count whose wait for the synchronous standby was cancelled: it holds here, and would
be gone after a failover. The session is given up as after a lost answer. The next one writes before
it relies on anything (a lane's epoch, the lock of an offset), and the standby confirms WAL in its
order: what confirms that write confirms the commit before it.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Lock, Timer
from typing import Any, LiteralString, TypeVar

import psycopg
import tenacity
from psycopg.abc import Params, Query
from psycopg.rows import RowFactory, scalar_row

from outbox.errors import RETRYABLE_ERRORS, RolledBack

log = logging.getLogger(__name__)

T = TypeVar("T")
Connection = psycopg.Connection[tuple[object, ...]]


class CommitUnconfirmed(psycopg.OperationalError):
    """Committed on the primary alone: the wait for the synchronous standby was cancelled."""


class ServerSilent(psycopg.OperationalError):
    """The server took a statement and said nothing more."""


class SyncCommitMonitor:
    """Listens to a session's notices for a commit that no standby has confirmed.

    The server's text is in its administrator's language; the function that speaks is not.
    total: of this process, for a metric.
    """

    total = 0
    _counting = Lock()

    def __init__(self, session: str) -> None:
        self._session = session
        self.missing = False

    def __call__(self, notice: psycopg.errors.Diagnostic) -> None:
        """Take a notice that came with an answer. Must not raise: psycopg would swallow it."""
        if notice.source_function == "SyncRepWaitForLSN":
            self.missing = True
            with self._counting:
                SyncCommitMonitor.total += 1
            fields = {"session": self._session, "notice": notice.message_primary}
            log.error("commit not confirmed", extra=fields)


class Session(Connection):
    """A connection on which a statement fails if its commit was not confirmed."""

    sync_commit: SyncCommitMonitor | None = None

    def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> psycopg.Cursor[tuple[object, ...]]:
        """Execute a statement, which may be a COMMIT or commit by itself. Raises CommitUnconfirmed."""
        cursor = super().execute(query, params, prepare=prepare, binary=binary)  # type: ignore[arg-type]  # no templates here
        self.check_confirmed()
        return cursor

    def check_confirmed(self) -> None:
        """Raise CommitUnconfirmed if the standby did not confirm a commit of this session."""
        if self.sync_commit and self.sync_commit.missing:
            raise CommitUnconfirmed("a commit was not confirmed by the synchronous standby")


def query(
    conn: Connection,
    row_factory: RowFactory[T],
    statement: LiteralString,
    params: Params | None = None,
    *,
    prepare: bool | None = None,
    binary: bool = False,
) -> list[T]:
    """Run a statement; return its rows, each made by the row factory: `args_row(SomeNamedTuple)`."""
    with conn.cursor(row_factory=row_factory, binary=binary) as cursor:
        cursor.execute(statement, params, prepare=prepare)
        if isinstance(conn, Session):
            conn.check_confirmed()
        return cursor.fetchall()


def scalars(
    conn: Connection,
    kind: type[T],
    statement: LiteralString,
    params: Params | None = None,
    *,
    prepare: bool | None = None,
    binary: bool = False,
) -> list[T]:
    """Run a statement; return the first column, whose values are of this kind and never null."""
    del kind  # psycopg's loaders make it; it says so to the type checker
    return query(conn, scalar_row, statement, params, prepare=prepare, binary=binary)


def scalar(
    conn: Connection, kind: type[T], statement: LiteralString, params: Params | None = None
) -> T:
    """Run a statement that gives one row; return its first column, never null."""
    (value,) = scalars(conn, kind, statement, params)
    return value


# A peer that vanished is noticed within about 10 s on either side, instead of the system's 2 hours.
KEEPALIVES: dict[str, Any] = {
    "connect_timeout": 5,  # seconds for each address
    "keepalives_idle": 5,  # seconds of silence before the first probe
    "keepalives_interval": 2,  # seconds between probes
    "keepalives_count": 3,  # probes without an answer
    "tcp_user_timeout": 10_000,  # ms that sent data may stay unacknowledged
}

# A client whose host froze or vanished is given up by the server within about 10 s, in a transaction
# and while it is sent rows, too: its locks would hold up its successor.
# lock_timeout: a wait on a forgotten lock becomes 55P03, and the whole transaction is repeated.
# synchronous_commit: `off` acknowledges what a crash may lose; any other choice of the DBA stays.
# local: for the transaction alone, and not for the session.
SET_GUARANTEES = """
    SELECT set_config('TimeZone', 'UTC', %(local)s),
           set_config('lock_timeout', '10s', %(local)s),
           set_config('idle_in_transaction_session_timeout', '10s', %(local)s),
           set_config('tcp_keepalives_idle', '5', %(local)s),
           set_config('tcp_keepalives_interval', '2', %(local)s),
           set_config('tcp_keepalives_count', '3', %(local)s),
           set_config('tcp_user_timeout', '10000', %(local)s),
           CASE current_setting('synchronous_commit')
               WHEN 'off' THEN set_config('synchronous_commit', 'on', %(local)s)
           END
"""
SERVER_PROCESS = "SELECT pg_backend_pid()"

SILENCE_S = 10.0  # for the first statement of a session

# The whole transaction is repeated after a serialization failure, a deadlock or a lock time-out: the
# server said that it was rolled back. Bounded: then the session's owner decides.
retry_transaction = tenacity.retry(
    retry=tenacity.retry_if_exception_type(RETRYABLE_ERRORS),
    stop=tenacity.stop_after_attempt(10),
    wait=tenacity.wait_random_exponential(multiplier=0.01, max=0.5),
    reraise=True,
)


def connect(conninfo: str, name: str) -> Connection:
    """Open an autocommit session on a writable server; `name` is shown as application_name."""
    conn = Session.connect(
        conninfo,
        autocommit=True,
        application_name=name,
        target_session_attrs="read-write",
        client_encoding="UTF8",  # outbox.arrays
        **KEEPALIVES,
    )
    conn.sync_commit = SyncCommitMonitor(name)
    conn.add_notice_handler(conn.sync_commit)
    try:
        with hang_up_after(conn, SILENCE_S):
            if conn.execute(SERVER_PROCESS).fetchone() == (conn.info.backend_pid,):
                conn.execute(SET_GUARANTEES, {"local": False})
            else:
                # A pooler stands between: it makes up the number that a connection begins with. What
                # was prepared or set could be missing, or another's, where the next transaction runs.
                conn.prepare_threshold = None
    except psycopg.Error:
        conn.close()
        raise
    return conn


@contextmanager
def hang_up_after(conn: Connection, seconds: float) -> Iterator[None]:
    """Hang up if the block takes longer: psycopg has no time-out of its own. Raises ServerSilent.

    Keepalives detect a host that is gone, but not a server or a pooler that does not answer.
    """
    over = Event()

    def hang_up() -> None:
        over.set()
        with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(conn.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)  # what waits for an answer fails at once

    timer = Timer(seconds, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    except psycopg.OperationalError as error:
        if over.is_set():
            raise ServerSilent(f"no answer for {seconds:.0f} s") from error
        raise
    finally:
        timer.cancel()
        timer.join()  # once the connection is closed its number may be another one's


@contextmanager
def transaction(conn: Connection) -> Iterator[None]:
    """Run the block in one transaction and commit it.

    Raises RolledBack if the server rolled back instead. After any other error from COMMIT the
    outcome is unknown and the session must be given up.
    """
    conn.execute("BEGIN")
    if conn.prepare_threshold is None:  # through a pooler
        conn.execute(SET_GUARANTEES, {"local": True})
    try:
        yield
    except BaseException:
        with suppress(psycopg.Error):  # the session may be gone, and its transaction with it
            conn.execute("ROLLBACK")
        raise
    answer = conn.execute("COMMIT").statusmessage
    if answer != "COMMIT":
        raise RolledBack(f"COMMIT was answered with {answer}")
