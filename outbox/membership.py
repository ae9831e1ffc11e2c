"""Who works which lane: session advisory locks, and each relay's fair share of the lanes.

The lock is for liveness: Postgres frees it at once when its holder dies, so another relay can go on.
Safety does not rest on it: outbox_lane.epoch holds even where a lock is lost while its session lives,
as behind a pooler. All keys live under a class of the outbox's identity, so two outboxes in one
database do not meet.
"""

from contextlib import closing
from typing import NamedTuple, cast
from uuid import UUID

from psycopg.conninfo import make_conninfo

from outbox.errors import DatabaseNotReady
from outbox.postgres import SERVER_PROCESS, SILENCE_S, Connection, connect, hang_up_after

RELAY_SESSION = "outbox relay"  # application_name of a relay's session
MEMBER = 32_768  # lock number of the members: the first that no lane (smallint) can have

# A session whose host froze or vanished is ended by the server after this silence; an owner that
# waits for Kafka or is idle speaks at least once a second.
SESSION_SILENCE = "10s"

LIMIT_SILENCE = "SELECT set_config('idle_session_timeout', %(silence)s, false)"


LOOKS = 3  # one finds a quiet pool out; more, for other clients that come in between


class TransactionPoolingDetected(DatabaseNotReady):
    """A pooler lends server processes by the transaction: a session's locks are lost or another's."""

    def __init__(self) -> None:
        super().__init__(
            "a pooler in transaction mode (PgBouncer?) stands before Postgres; the relay needs locks"
            " of its session: connect it directly, or through a pool in session mode"
        )


def limit_silence(conn: Connection) -> None:
    """Let the server end this session, and free its locks, when its client falls silent."""
    conn.execute(LIMIT_SILENCE, {"silence": SESSION_SILENCE})


def lock_class(identity: UUID) -> int:
    """Return the advisory locks' class of an outbox: 31 bits of its identity."""
    return identity.int & 0x7FFF_FFFF


LOCK_LANE = "SELECT pg_try_advisory_lock(%(class)s, %(lane)s::int)"


def try_lock(conn: Connection, identity: UUID, lane: int) -> bool:
    """Try to become the lane's owner for as long as this session lives."""
    values = {"class": lock_class(identity), "lane": lane}
    (locked,) = cast("tuple[bool]", conn.execute(LOCK_LANE, values).fetchone())
    return locked


UNLOCK_LANE = "SELECT pg_advisory_unlock(%(class)s, %(lane)s::int)"


def release(conn: Connection, identity: UUID, lane: int) -> None:
    """Be the lane's owner no longer."""
    conn.execute(UNLOCK_LANE, {"class": lock_class(identity), "lane": lane})


def check_session(conn: Connection) -> None:
    """Raise TransactionPoolingDetected unless this session has a server process of its own.

    A direct connection begins with its process's number (BackendKeyData); a pooler that may exchange
    the process makes one up, and so gives itself away. What it does is then found out by doing it: is
    our process exchanged between two statements, or lent to another session? In transaction mode even
    a quiet PgBouncer lends the process used last, or with server_round_robin the next in turn.
    """
    if server_process(conn) == conn.info.backend_pid:
        return
    with (
        closing(connect(same_address(conn), "outbox relay's look at the pooler")) as other,
        hang_up_after(conn, SILENCE_S),  # a pool that is used up keeps either waiting
        hang_up_after(other, SILENCE_S),
    ):
        for _ in range(LOOKS):
            ours = {server_process(conn), server_process(conn)}
            if len(ours) > 1 or server_process(other) in ours:
                raise TransactionPoolingDetected


def server_process(conn: Connection) -> int:
    """Return the server process that works for this session right now."""
    (process,) = cast("tuple[int]", conn.execute(SERVER_PROCESS).fetchone())
    return process


def same_address(conn: Connection) -> str:
    """Return what opens another session where this one is; psycopg keeps the password apart."""
    return make_conninfo(conn.info.dsn, password=conn.info.password or None)


JOIN = "SELECT pg_advisory_lock_shared(%(class)s, %(member)s)"


def join(conn: Connection, identity: UUID) -> None:
    """Be counted as a relay for as long as this session lives. Raises TransactionPoolingDetected."""
    check_session(conn)
    conn.execute(JOIN, {"class": lock_class(identity), "member": MEMBER})


SURVEY = """
    WITH held AS (
        SELECT objid::bigint AS number, pid
          FROM pg_locks
         WHERE locktype = 'advisory' AND granted AND objsubid = 2
           AND classid::bigint = %(class)s
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    )
    SELECT EXISTS (SELECT FROM held WHERE number = %(member)s AND pid = pg_backend_pid()) AS joined,
           (SELECT count(*) FROM outbox_lane) AS lanes,
           (SELECT count(*) FROM held WHERE number = %(member)s) AS members,
           (SELECT count(*) FROM held WHERE number = %(member)s AND pid < pg_backend_pid()) AS rank,
           ARRAY(SELECT lane FROM outbox_lane
                  WHERE lane NOT IN (SELECT number FROM held)
                  ORDER BY lane) AS free
"""


class Survey(NamedTuple):
    """rank: how many relays come before this one. free: lanes without an owner."""

    lanes: int
    members: int
    rank: int
    free: list[int]

    def share(self) -> int:
        """Return how many lanes this relay should own; over all relays they add up to all lanes."""
        each, rest = divmod(self.lanes, max(self.members, 1))
        return each + (self.rank < rest)


def survey(conn: Connection, identity: UUID) -> Survey:
    """Look at all relays and lanes, from the session that joined.

    Raises TransactionPoolingDetected if our own lock is not here: a pooler that passed the look at the start.
    """
    values = {"class": lock_class(identity), "member": MEMBER}
    row = conn.execute(SURVEY, values, prepare=True).fetchone()
    joined, *seen = cast("tuple[bool, int, int, int, list[int]]", row)
    if not joined:
        raise TransactionPoolingDetected
    return Survey(*cast("tuple[int, int, int, list[int]]", seen))
