"""Sessions and transactions on Postgres.

Invariant: a transaction counts as committed only when the server answered COMMIT with COMMIT. A lost
answer is an unknown outcome: the session is given up, and a new one decides from the rows, under
their lock. Without the check of the answer, an error swallowed inside a block would turn COMMIT into
a silent ROLLBACK.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import tenacity

from outbox.errors import TRANSACTION_AGAIN, RolledBack

Connection = psycopg.Connection[tuple[object, ...]]

# A peer that vanished is noticed within about 10 s on either side, instead of the system's 2 hours.
KEEPALIVES: dict[str, Any] = {
    "connect_timeout": 5,  # seconds for each address
    "keepalives_idle": 5,  # seconds of silence before the first probe
    "keepalives_interval": 2,  # seconds between probes
    "keepalives_count": 3,  # probes without an answer
    "tcp_user_timeout": 10_000,  # ms that sent data may stay unacknowledged
}

# A client whose host froze or vanished is given up by the server within about 10 s, in a transaction
# too: its row locks would hold up its successor.
# lock_timeout: a wait on a forgotten lock becomes 55P03, and the whole transaction is repeated.
# synchronous_commit: `off` acknowledges what a crash may lose; any other choice of the DBA stays.
PREPARE_SESSION = """
    SELECT set_config('TimeZone', 'UTC', false),
           set_config('lock_timeout', '10s', false),
           set_config('idle_in_transaction_session_timeout', '10s', false),
           set_config('tcp_keepalives_idle', '5', false),
           set_config('tcp_keepalives_interval', '2', false),
           set_config('tcp_keepalives_count', '3', false),
           CASE current_setting('synchronous_commit')
               WHEN 'off' THEN set_config('synchronous_commit', 'on', false)
           END
"""

# The whole transaction is repeated after a serialization failure, a deadlock or a lock time-out: the
# server said that it was rolled back. Bounded: then the session's owner decides.
transaction_again = tenacity.retry(
    retry=tenacity.retry_if_exception_type(TRANSACTION_AGAIN),
    stop=tenacity.stop_after_attempt(10),
    wait=tenacity.wait_random_exponential(multiplier=0.01, max=0.5),
    reraise=True,
)


def connect(conninfo: str, name: str) -> Connection:
    """Open an autocommit session on a writable server; `name` is shown as application_name."""
    conn = psycopg.connect(
        conninfo,
        autocommit=True,
        application_name=name,
        target_session_attrs="read-write",
        **KEEPALIVES,
    )
    try:
        conn.execute(PREPARE_SESSION)
    except psycopg.Error:
        conn.close()
        raise
    return conn


@contextmanager
def transaction(conn: Connection) -> Iterator[None]:
    """Run the block in one transaction and commit it.

    Raises RolledBack if the server rolled back instead. After any other error from COMMIT the
    outcome is unknown and the session must be given up.
    """
    conn.execute("BEGIN")
    try:
        yield
    except BaseException:
        with suppress(psycopg.Error):  # the session may be gone, and its transaction with it
            conn.execute("ROLLBACK")
        raise
    answer = conn.execute("COMMIT").statusmessage
    if answer != "COMMIT":
        raise RolledBack(f"COMMIT was answered with {answer}")
