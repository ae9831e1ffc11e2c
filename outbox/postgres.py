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
from typing import Any, LiteralString, NamedTuple, TypeVar

import psycopg
import tenacity
from psycopg.abc import Params, Query
from psycopg.pq import TransactionStatus
from psycopg.rows import RowFactory, args_row, scalar_row

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
    """A connection on which a statement fails if its commit was not confirmed.

    guarantees: the values of SET_GUARANTEES. Through a pooler they are set in each transaction, and a
    statement outside one gets its own: what is set for a session would be missing, or another's, where
    its next transaction runs.
    """

    sync_commit: SyncCommitMonitor | None = None
    guarantees: dict[str, object]

    @property
    def schema(self) -> str:
        """Return where our tables are, if they have a schema of their own."""
        return str(self.guarantees["schema"])

    @property
    def is_pooled(self) -> bool:
        """Say whether a pooler stands between."""
        return self.prepare_threshold is None

    @property
    def needs_transaction(self) -> bool:
        """Say whether a statement would run without the guarantees."""
        return self.is_pooled and self.info.transaction_status is TransactionStatus.IDLE

    def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> psycopg.Cursor[tuple[object, ...]]:
        """Execute a statement, which may be a COMMIT or commit by itself. Raises CommitUnconfirmed."""
        if self.needs_transaction:
            with transaction(self):
                return self.execute(query, params, prepare=prepare, binary=binary)
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
    if isinstance(conn, Session) and conn.needs_transaction:
        with transaction(conn):
            return query(conn, row_factory, statement, params, prepare=prepare, binary=binary)
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

# What an administrator may have set otherwise for the server, the database or the role, and on which we
# depend. Not here: what makes us slower alone (enable_*, jit, work_mem), and
# default_transaction_read_only, by which an administrator keeps all from writing.
# local: for the transaction alone, and not for the session. An older server does not know all of them.
SET_GUARANTEES = """
    SELECT pg_catalog.set_config(name, setting, %(local)s)
      FROM (VALUES
               -- the tables of `schema` come before all others, temporary ones after all; what is
               -- not named, and so comes first, is pg_catalog
               ('search_path', (SELECT pg_catalog.string_agg(quoted, ', ' ORDER BY number)
                                  FROM (SELECT 0, pg_catalog.quote_ident(nullif(%(schema)s::text, ''))
                                     UNION ALL
                                        SELECT number, pg_catalog.quote_ident(name::text)
                                          FROM pg_catalog.unnest(pg_catalog.current_schemas(false))
                                               WITH ORDINALITY AS schema (name, number)
                                         WHERE name::text !~ '^pg_'
                                     UNION ALL
                                        SELECT 1000, 'pg_temp'
                                         WHERE current_schema() IS NOT NULL  -- or be the first
                                       ) AS path (number, quoted))),
               -- a row that a policy hides is an error, and not missing in silence
               ('row_security', 'off'),
               -- `off` acknowledges what a crash may lose; any other choice of the administrator stays
               ('synchronous_commit', CASE pg_catalog.current_setting('synchronous_commit')
                                      WHEN 'off' THEN 'on'
                                      ELSE pg_catalog.current_setting('synchronous_commit') END),
               -- that a commit was not confirmed is a warning: see SyncCommitMonitor
               ('client_min_messages', 'warning'),
               -- what we write may hold passwords, and belongs into no log
               ('log_parameter_max_length_on_error', '0'),
               -- a statement sees what was committed before it, and is not refused for it
               ('default_transaction_isolation', 'read committed'),
               -- an error ends the transaction, and not the session
               ('exit_on_error', 'off'),
               -- a column without a time zone means the same to all who write NOW() into it: the zone
               -- set for the database, or for all; else what a session begins with (NULL)
               ('TimeZone', (SELECT pg_catalog.substr(line, 10)  -- behind the =
                               FROM pg_catalog.pg_db_role_setting
                               LEFT JOIN pg_catalog.pg_database ON pg_database.oid = setdatabase
                              CROSS JOIN pg_catalog.unnest(setconfig) AS line
                              WHERE setrole = 0::oid
                                AND pg_catalog.starts_with(pg_catalog.lower(line), 'timezone=')
                                AND (setdatabase = 0::oid OR datname = pg_catalog.current_database())
                              ORDER BY setdatabase DESC
                              LIMIT 1)),
               -- names, times and arrays as they are written and read here
               ('quote_all_identifiers', 'off'),
               ('DateStyle', 'ISO, MDY'),
               ('IntervalStyle', 'postgres'),
               ('extra_float_digits', '1'),
               ('array_nulls', 'on'),
               ('standard_conforming_strings', 'on'),
               -- cancelled, the wait of a COMMIT for its standby would leave it unconfirmed
               ('statement_timeout', %(statement_timeout)s::text),
               ('transaction_timeout', '0'),
               ('idle_session_timeout', '0'),
               -- a wait on a forgotten lock becomes 55P03: the whole transaction is repeated
               ('lock_timeout', '10s'),
               -- a client whose host froze or vanished is given up by the server within about 10 s, in
               -- a transaction and while it is sent rows, too: its locks would hold up its successor
               ('idle_in_transaction_session_timeout', '10s'),
               ('tcp_keepalives_idle', '5'),
               ('tcp_keepalives_interval', '2'),
               ('tcp_keepalives_count', '3'),
               ('tcp_user_timeout', '10000')
           ) AS guarantee (name, setting)
     WHERE pg_catalog.current_setting(name, true) IS NOT NULL
"""
SERVER_PROCESS = "SELECT pg_catalog.pg_backend_pid()"  # before the search_path is ours

SILENCE_S = 10.0  # for the first statement of a session

# The whole transaction is repeated after a serialization failure, a deadlock or a lock time-out: the
# server said that it was rolled back. Bounded: then the session's owner decides.
retry_transaction = tenacity.retry(
    retry=tenacity.retry_if_exception_type(RETRYABLE_ERRORS),
    stop=tenacity.stop_after_attempt(10),
    wait=tenacity.wait_random_exponential(multiplier=0.01, max=0.5),
    reraise=True,
)


def connect(
    conninfo: str, name: str, *, schema: str = "", statement_timeout_s: float = 0
) -> Connection:
    """Open an autocommit session on a writable server; `name` is shown as application_name.

    schema: where our tables are, if they have one of their own; the search_path follows it.
    statement_timeout_s: after which the server cancels a statement; 0: never.
    """
    conn = Session.connect(conninfo, autocommit=True, **session_options(name))
    try:
        begin_session(conn, name, schema=schema, statement_timeout_s=statement_timeout_s)
    except psycopg.Error:
        conn.close()
        raise
    return conn


def session_options(name: str) -> dict[str, Any]:
    """Return what a session asks of libpq."""
    return {
        "application_name": name,
        "target_session_attrs": "read-write",
        "client_encoding": "UTF8",  # outbox.arrays
        **KEEPALIVES,
    }


def begin_session(
    conn: Session, name: str, *, schema: str = "", statement_timeout_s: float = 0
) -> None:
    """Set what we depend on; the first that a session does, as in `connect`."""
    conn.guarantees = {"schema": schema, "statement_timeout": f"{statement_timeout_s * 1000:.0f}"}
    conn.sync_commit = SyncCommitMonitor(name)
    conn.add_notice_handler(conn.sync_commit)
    with hang_up_after(conn, SILENCE_S):
        if conn.execute(SERVER_PROCESS).fetchone() == (conn.info.backend_pid,):
            conn.execute(SET_GUARANTEES, {**conn.guarantees, "local": False})
        else:  # a pooler: it makes up the number that a connection begins with
            conn.prepare_threshold = None


@contextmanager
def hang_up_after(conn: Connection, seconds: float) -> Iterator[None]:
    """Hang up if the block takes longer: psycopg has no time-out of its own. Raises ServerSilent.

    Keepalives detect a host that is gone, but not a server or a pooler that does not answer.
    """
    over = Event()

    def end() -> None:
        over.set()
        hang_up(conn)

    timer = Timer(seconds, end)
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


def hang_up(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """End a connection in the midst of what it does: what waits for an answer fails at once."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(conn.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


@contextmanager
def transaction(
    conn: Connection, begin: LiteralString = "BEGIN ISOLATION LEVEL READ COMMITTED"
) -> Iterator[None]:
    """Run the block in one transaction and commit it; inside another one, in a savepoint.

    begin: not heeded in a savepoint, which has the isolation of its transaction. Raises RolledBack if
    the server rolled back instead. After any other error from COMMIT the outcome is unknown and the
    session must be given up.
    """
    if conn.info.transaction_status != TransactionStatus.IDLE:
        with conn.transaction():  # of the caller, who commits it
            yield
        return
    psycopg.Connection.execute(conn, begin)
    try:
        if isinstance(conn, Session) and conn.is_pooled:
            conn.execute(SET_GUARANTEES, {**conn.guarantees, "local": True})
        yield
    except BaseException:
        with suppress(psycopg.Error):  # the session may be gone, and its transaction with it
            conn.execute("ROLLBACK")
        raise
    answer = conn.execute("COMMIT").statusmessage
    if answer != "COMMIT":
        raise RolledBack(f"COMMIT was answered with {answer}")


COMMIT_S = 5.0  # a standby that is there confirms sooner


class StandbyWait(NamedTuple):
    """Which synchronous standbys a COMMIT waits for. names: the setting of the server; empty: none.

    is_connected: one of them is, as far as this role may see. waiting_s: how long the COMMIT has waited
    that began first, of the sessions asked for; None: none of those that this role may see.
    """

    names: str
    is_connected: bool
    waiting_s: float | None

    @property
    def is_missing(self) -> bool:
        """Say whether commits wait for good."""
        return bool(self.names) and (not self.is_connected or (self.waiting_s or 0) > COMMIT_S)

    @property
    def text(self) -> str:
        """Say what waits for what, and what to do."""
        state = "is connected, but has not confirmed it" if self.is_connected else "is not connected"
        return (
            f"COMMIT waits for a synchronous standby, which {state}: bring it back, or take it out of"
            f" synchronous_standby_names, now {self.names!r}"
        )


READ_STANDBY_WAIT = """
    SELECT CASE WHEN pg_catalog.current_setting('synchronous_commit') NOT IN ('off', 'local')
                THEN pg_catalog.current_setting('synchronous_standby_names') ELSE '' END,
           EXISTS (SELECT FROM pg_stat_replication
                    WHERE coalesce(sync_state, 'sync') IN ('sync', 'quorum')),
           (SELECT extract(epoch FROM max(clock_timestamp() - query_start))::float8
              FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event = 'SyncRep'
               AND application_name = ANY(%(sessions)s::text[]))
"""


def read_standby_wait(conn: Connection, *sessions: str) -> StandbyWait:
    """Return what COMMITs wait for, of sessions by their application_name."""
    (wait,) = query(conn, args_row(StandbyWait), READ_STANDBY_WAIT, {"sessions": list(sessions)})
    return wait
