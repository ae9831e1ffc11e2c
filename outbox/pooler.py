"""Finds a pooler between us and Postgres that lends server processes by the transaction.

A session's locks and settings are then lost, or another session's.
"""

from contextlib import closing

from psycopg.conninfo import make_conninfo

from outbox.errors import DatabaseNotReady
from outbox.postgres import SERVER_PROCESS, SILENCE_S, Connection, connect, hang_up_after, scalar

PROBES = 3  # one detects an idle pool; more, for other clients that come in between


class TransactionPoolingDetected(DatabaseNotReady):
    """A pooler in transaction mode stands before Postgres."""

    def __init__(self) -> None:
        super().__init__(
            "a pooler in transaction mode (PgBouncer?) stands before Postgres; locks and temporary"
            " tables need a session: connect it directly, or through a pool in session mode"
        )


def check_session(conn: Connection) -> None:
    """Raise TransactionPoolingDetected unless this session has a server process of its own.

    A direct connection begins with its process's number (BackendKeyData). A pooler that may exchange
    the process makes one up, and so gives itself away. What it really does is then tested: is our
    process exchanged between two statements, or lent to another session? In transaction mode even an
    idle PgBouncer lends the process used last, or with server_round_robin the next in turn.
    """
    if server_process(conn) == conn.info.backend_pid:
        return
    with (
        closing(connect(reconnect_conninfo(conn), "outbox pooler probe")) as other,
        hang_up_after(conn, SILENCE_S),  # a pool without a free process keeps either waiting
        hang_up_after(other, SILENCE_S),
    ):
        for _ in range(PROBES):
            ours = {server_process(conn), server_process(conn)}
            if len(ours) > 1 or server_process(other) in ours:
                raise TransactionPoolingDetected


def server_process(conn: Connection) -> int:
    """Return the server process that works for this session right now."""
    return scalar(conn, int, SERVER_PROCESS)


def reconnect_conninfo(conn: Connection) -> str:
    """Return what opens another session to the same server; psycopg keeps the password apart."""
    return make_conninfo(conn.info.dsn, password=conn.info.password or None)
