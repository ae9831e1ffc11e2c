"""Which relays there are, and each one's fair share of the lanes: session advisory locks.

A relay has a second lock while Kafka answers it. The lanes are shared by those that have it; all relays
count only while none has it.

The locks are for liveness: Postgres frees them at once when their holder dies, so another relay can
take the lanes. Safety does not rest on them: the epoch in outbox_lane holds even where a lock is lost
while its session lives, as behind a pooler. All keys are in a class of the outbox's identity, so two
outboxes in one database do not meet.
"""

from typing import NamedTuple
from uuid import UUID

from psycopg.rows import args_row

from outbox.enqueue import check_lanes_visible
from outbox.pooler import TransactionPoolingDetected, check_session
from outbox.postgres import Connection, query, scalar

RELAY_SESSION = "outbox relay"  # application_name of a relay's session
MEMBERSHIP_LOCK = 32_768  # number of the members' lock: the first that no lane (smallint) can have
KAFKA_LOCK = MEMBERSHIP_LOCK + 2  # of those that Kafka answers; one is between, see outbox.admin.trials

SET_IDLE_TIMEOUT = "SELECT pg_catalog.set_config('idle_session_timeout', %(timeout)s, false)"


def set_idle_timeout(conn: Connection, seconds: float) -> None:
    """Let the server end this session, and free its locks, after such a silence of its client.

    An owner that waits for Kafka or is idle sends a statement at least once a second.
    """
    conn.execute(SET_IDLE_TIMEOUT, {"timeout": f"{seconds * 1000:.0f}ms"})


def lock_class(identity: UUID) -> int:
    """Return the class of an outbox's advisory locks: 31 bits of its identity."""
    return identity.int & 0x7FFF_FFFF


LOCK_LANE = "SELECT pg_catalog.pg_try_advisory_lock(%(class)s, %(lane)s::int)"


def try_lock_lane(conn: Connection, identity: UUID, lane: int) -> bool:
    """Try to become the lane's owner for as long as this session lives."""
    return scalar(conn, bool, LOCK_LANE, {"class": lock_class(identity), "lane": lane})


UNLOCK_LANE = "SELECT pg_catalog.pg_advisory_unlock(%(class)s, %(lane)s::int)"


def unlock_lane(conn: Connection, identity: UUID, lane: int) -> None:
    """Stop being the lane's owner."""
    conn.execute(UNLOCK_LANE, {"class": lock_class(identity), "lane": lane})


JOIN = "SELECT pg_catalog.pg_advisory_lock_shared(%(class)s, %(member)s)"


def join(conn: Connection, identity: UUID) -> None:
    """Count as a relay for as long as this session lives. Raises TransactionPoolingDetected."""
    check_session(conn)
    conn.execute(JOIN, {"class": lock_class(identity), "member": MEMBERSHIP_LOCK})


LOCK_KAFKA = "SELECT pg_catalog.pg_advisory_lock_shared(%(class)s, %(kafka)s)"
UNLOCK_KAFKA = "SELECT pg_catalog.pg_advisory_unlock_shared(%(class)s, %(kafka)s)"


def set_has_kafka(conn: Connection, identity: UUID, has_kafka: bool) -> None:
    """Count from now on as a relay that Kafka answers, or no longer; the caller knows what it was."""
    statement = LOCK_KAFKA if has_kafka else UNLOCK_KAFKA
    conn.execute(statement, {"class": lock_class(identity), "kafka": KAFKA_LOCK})


class Membership(NamedTuple):
    """All relays and lanes. joined: our own lock is there. has_kafka: Kafka answers us. visible: lanes.

    members: how many relays there are. with_kafka: how many of them Kafka answers. rank: how many come
    before this one, of those that share the lanes. unowned: lanes without an owner.
    """

    joined: bool
    has_kafka: bool
    lanes: int
    visible: list[int]
    members: int
    with_kafka: int
    rank: int
    unowned: list[int]

    @property
    def without_kafka(self) -> int:
        """Return how many relays Kafka does not answer."""
        return self.members - self.with_kafka

    @property
    def is_spare(self) -> bool:
        """Say whether the lanes are for others: those that Kafka answers, as it does not answer us."""
        return self.with_kafka > 0 and not self.has_kafka

    def fair_share(self) -> int:
        """Return how many lanes this relay should own; over all relays they add up to all lanes."""
        if self.is_spare:
            return 0
        each, left = divmod(self.lanes, max(self.with_kafka or self.members, 1))
        return each + (self.rank < left)


READ_MEMBERSHIP = """
    WITH held AS (
        SELECT objid::bigint AS number, pid
          FROM pg_locks
         WHERE locktype = 'advisory' AND granted AND objsubid = 2
           AND classid::bigint = %(class)s
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    ),
    member AS (SELECT pid FROM held WHERE number = %(member)s),
    with_kafka AS (SELECT pid FROM held WHERE number = %(kafka)s),
    sharing AS (
        SELECT pid FROM with_kafka
        UNION ALL
        SELECT pid FROM member WHERE NOT EXISTS (SELECT FROM with_kafka)
    )
    SELECT pg_backend_pid() IN (SELECT pid FROM member) AS joined,
           pg_backend_pid() IN (SELECT pid FROM with_kafka) AS has_kafka,
           (SELECT lanes FROM outbox_identity) AS lanes,
           ARRAY(SELECT lane FROM outbox_lane ORDER BY lane)::int[] AS visible,
           (SELECT count(*) FROM member) AS members,
           (SELECT count(*) FROM with_kafka) AS with_kafka,
           (SELECT count(*) FROM sharing WHERE pid < pg_backend_pid()) AS rank,
           ARRAY(SELECT lane FROM outbox_lane
                  WHERE lane NOT IN (SELECT number FROM held)
                  ORDER BY lane) AS unowned
"""


def read_membership(conn: Connection, identity: UUID) -> Membership:
    """Read all relays and lanes, in the session that joined.

    Raises TransactionPoolingDetected if our own lock is gone: a pooler that the first check missed; and
    DatabaseNotReady if lanes are.
    """
    values = {"class": lock_class(identity), "member": MEMBERSHIP_LOCK, "kafka": KAFKA_LOCK}
    (found,) = query(conn, args_row(Membership), READ_MEMBERSHIP, values, prepare=True)
    if not found.joined:
        raise TransactionPoolingDetected
    check_lanes_visible(found.lanes, found.visible)
    return found
