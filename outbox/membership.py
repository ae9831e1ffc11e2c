"""Which relays there are, and each one's fair share of the lanes: session advisory locks.

The lock is for liveness: Postgres frees it at once when its holder dies, so another relay can take the
lane. Safety does not rest on it: the epoch in outbox_lane holds even where a lock is lost while its
session lives, as behind a pooler. All keys are in a class of the outbox's identity, so two outboxes in
one database do not meet.
"""

from typing import NamedTuple
from uuid import UUID

from psycopg.rows import args_row

from outbox.pooler import TransactionPoolingDetected, check_session
from outbox.postgres import Connection, query, scalar

RELAY_SESSION = "outbox relay"  # application_name of a relay's session
MEMBERSHIP_LOCK = 32_768  # number of the members' lock: the first that no lane (smallint) can have

SET_IDLE_TIMEOUT = "SELECT set_config('idle_session_timeout', %(timeout)s, false)"


def set_idle_timeout(conn: Connection, seconds: float) -> None:
    """Let the server end this session, and free its locks, after such a silence of its client.

    An owner that waits for Kafka or is idle sends a statement at least once a second.
    """
    conn.execute(SET_IDLE_TIMEOUT, {"timeout": f"{seconds * 1000:.0f}ms"})


def lock_class(identity: UUID) -> int:
    """Return the class of an outbox's advisory locks: 31 bits of its identity."""
    return identity.int & 0x7FFF_FFFF


LOCK_LANE = "SELECT pg_try_advisory_lock(%(class)s, %(lane)s::int)"


def try_lock_lane(conn: Connection, identity: UUID, lane: int) -> bool:
    """Try to become the lane's owner for as long as this session lives."""
    return scalar(conn, bool, LOCK_LANE, {"class": lock_class(identity), "lane": lane})


UNLOCK_LANE = "SELECT pg_advisory_unlock(%(class)s, %(lane)s::int)"


def unlock_lane(conn: Connection, identity: UUID, lane: int) -> None:
    """Stop being the lane's owner."""
    conn.execute(UNLOCK_LANE, {"class": lock_class(identity), "lane": lane})


JOIN = "SELECT pg_advisory_lock_shared(%(class)s, %(member)s)"


def join(conn: Connection, identity: UUID) -> None:
    """Count as a relay for as long as this session lives. Raises TransactionPoolingDetected."""
    check_session(conn)
    conn.execute(JOIN, {"class": lock_class(identity), "member": MEMBERSHIP_LOCK})


class Membership(NamedTuple):
    """All relays and lanes. joined: our own lock is there. rank: how many relays come before this one.

    unowned: lanes without an owner.
    """

    joined: bool
    lanes: int
    members: int
    rank: int
    unowned: list[int]

    def fair_share(self) -> int:
        """Return how many lanes this relay should own; over all relays they add up to all lanes."""
        each, left = divmod(self.lanes, max(self.members, 1))
        return each + (self.rank < left)


READ_MEMBERSHIP = """
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
                  ORDER BY lane) AS unowned
"""


def read_membership(conn: Connection, identity: UUID) -> Membership:
    """Read all relays and lanes, in the session that joined.

    Raises TransactionPoolingDetected if our own lock is gone: a pooler that the first check missed.
    """
    values = {"class": lock_class(identity), "member": MEMBERSHIP_LOCK}
    (found,) = query(conn, args_row(Membership), READ_MEMBERSHIP, values, prepare=True)
    if not found.joined:
        raise TransactionPoolingDetected
    return found
