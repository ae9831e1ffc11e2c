"""Who works which lane: session advisory locks, and each relay's fair share of the lanes.

The lock is for liveness: Postgres frees it at once when its holder dies, so another relay can go on.
Safety rests on outbox_lane.epoch alone. All keys live under a class of the outbox's identity, so two
outboxes in one database do not meet.
"""

from typing import NamedTuple, cast
from uuid import UUID

from outbox.postgres import Connection

MEMBER = 32_768  # lock number of the members: the first that no lane (smallint) can have

# A session whose host froze or vanished is ended by the server after this silence; an owner that
# waits for Kafka or is idle speaks at least once a second.
SESSION_SILENCE = "10s"

LIMIT_SILENCE = "SELECT set_config('idle_session_timeout', %(silence)s, false)"


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


JOIN = "SELECT pg_advisory_lock_shared(%(class)s, %(member)s)"


def join(conn: Connection, identity: UUID) -> None:
    """Be counted as a relay for as long as this session lives."""
    conn.execute(JOIN, {"class": lock_class(identity), "member": MEMBER})


SURVEY = """
    WITH held AS (
        SELECT objid::bigint AS number, pid
          FROM pg_locks
         WHERE locktype = 'advisory' AND granted AND objsubid = 2
           AND classid::bigint = %(class)s
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    )
    SELECT (SELECT count(*) FROM outbox_lane) AS lanes,
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
    """Look at all relays and lanes, from the session that joined."""
    values = {"class": lock_class(identity), "member": MEMBER}
    row = conn.execute(SURVEY, values, prepare=True).fetchone()
    return Survey(*cast("tuple[int, int, int, list[int]]", row))
