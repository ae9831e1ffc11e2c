"""The lanes as an operator sees them: who owns each, what waits in it, do marker and row agree?

Reads only, and locks nothing: good to look at, not to decide by. `take_over` decides.
"""

from typing import NamedTuple
from uuid import UUID

from psycopg.rows import args_row

from outbox.kafka_calls import KafkaConfig
from outbox.lane import Outcome, compare, describe_mismatch
from outbox.lane_rows import read_identity
from outbox.log_reader import read_last_markers
from outbox.markers import Marker
from outbox.membership import KAFKA_LOCK, MEMBERSHIP_LOCK, RELAY_SESSION, lock_class
from outbox.output_topics import TopicEnd, decode_start
from outbox.postgres import Connection, query, scalar, scalars

# ---- what Postgres knows ------------------------------------------------------------------------


class LaneSummary(NamedTuple):
    """A lane's row and its owner.

    batch_number: of the last batch begun. inflight: how many of its rows are not yet acknowledged.
    owner: application name and address of the session that owns the lane; None: it has no owner.
    """

    lane: int
    epoch: int
    batch_number: int
    inflight: int
    owner: str | None


LIST_LANES = """
    WITH owned AS (
        SELECT held.objid::bigint AS lane,
               pg_catalog.concat_ws(' ', session.application_name,
                                    pg_catalog.host(session.client_addr)) AS owner
          FROM pg_locks AS held
          JOIN pg_stat_activity AS session USING (pid)
         WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 2
           AND held.classid::bigint = %(class)s
           AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    )
    SELECT outbox_lane.lane, epoch, batch_number, pg_catalog.cardinality(inflight) AS inflight, owner
      FROM outbox_lane
      LEFT JOIN owned ON owned.lane = outbox_lane.lane
     ORDER BY outbox_lane.lane
"""


def list_lanes(conn: Connection) -> list[LaneSummary]:
    """Return all lanes. Raises DatabaseNotReady before the first migration."""
    values = {"class": lock_class(read_identity(conn))}
    return query(conn, args_row(LaneSummary), LIST_LANES, values)


# Any login may choose the name of its session. A process is one that may do the work, too.
COUNT_SESSIONS = """
    SELECT count(*)
      FROM pg_stat_activity
     WHERE datname = current_database() AND application_name = %(name)s
       AND EXISTS (SELECT FROM pg_roles
                    WHERE pg_catalog.pg_has_role(usesysid, pg_roles.oid, 'MEMBER')
                      AND pg_catalog.has_any_column_privilege(
                              pg_roles.oid, pg_catalog.to_regclass(%(table)s)::oid, %(privilege)s))
"""


def count_sessions(conn: Connection, name: str, table: str, privilege: str) -> int:
    """Count the sessions of this name whose login has a privilege on a table, or on columns of it."""
    values = {"name": name, "table": table, "privilege": privilege}
    return scalar(conn, int, COUNT_SESSIONS, values)


def count_relays(conn: Connection) -> int:
    """Count the relays that are connected to this database."""
    return count_sessions(conn, RELAY_SESSION, "outbox", "UPDATE")


READ_SEARCH_STARTS = "SELECT search_start::text FROM outbox_lane WHERE search_start IS NOT NULL"


def read_search_starts(conn: Connection, topic: str) -> list[TopicEnd]:
    """Return where a topic ended before each batch in flight: what lies behind may be searched."""
    starts = map(decode_start, scalars(conn, str, READ_SEARCH_STARTS))
    return [start[topic] for start in starts if topic in start]


LIST_RELAYS_WITHOUT_KAFKA = """
    WITH held AS (
        SELECT objid::bigint AS number, pid
          FROM pg_locks
         WHERE locktype = 'advisory' AND granted AND objsubid = 2
           AND classid::bigint = %(class)s
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    )
    SELECT pg_catalog.concat_ws(' ', session.application_name,
                                pg_catalog.host(session.client_addr), 'pid', pid)
      FROM held
      JOIN pg_stat_activity AS session USING (pid)
     WHERE number = %(member)s
       AND pid NOT IN (SELECT pid FROM held WHERE number = %(kafka)s)
     ORDER BY pid
"""


def list_relays_without_kafka(conn: Connection) -> list[str]:
    """Return the relays that Kafka does not answer, by name, address and process in Postgres.

    Raises DatabaseNotReady before the first migration.
    """
    values = {
        "class": lock_class(read_identity(conn)),
        "member": MEMBERSHIP_LOCK,
        "kafka": KAFKA_LOCK,
    }
    return scalars(conn, str, LIST_RELAYS_WITHOUT_KAFKA, values)


class LaneBacklog(NamedTuple):
    """Rows in a lane, at most as many as were to be counted. oldest_s, topic: of the first one."""

    lane: int
    pending: int
    oldest_s: float | None
    topic: str | None


COUNT_BACKLOG = """
    SELECT lane,
           (SELECT count(*)
              FROM (SELECT FROM outbox
                     WHERE lane = outbox_lane.lane
                     LIMIT %(at_most)s) AS counted) AS pending,
           oldest.age_s,
           oldest.topic
      FROM outbox_lane
      LEFT JOIN LATERAL (
               SELECT CASE WHEN isfinite(created_at)
                           THEN extract(epoch FROM clock_timestamp() - created_at)::float8
                           ELSE 0 END AS age_s,
                      topic
                 FROM outbox
                WHERE lane = outbox_lane.lane
                ORDER BY id
                LIMIT 1
           ) AS oldest ON true
"""


def count_backlog(conn: Connection, at_most: int) -> list[LaneBacklog]:
    """Count the rows of all lanes, in each no more than `at_most`: bounded, however many there are."""
    return query(conn, args_row(LaneBacklog), COUNT_BACKLOG, {"at_most": at_most})


# ---- what both know -----------------------------------------------------------------------------


class LaneCheck(NamedTuple):
    """A lane's batch in Postgres beside its marker in Kafka.

    outcome: what a recovery would find, but for the rows in flight; None if the lane moved on
    meanwhile, as an active one does.
    """

    lane: int
    batch: "LaneBatch"
    marker: Marker | None
    outcome: Outcome | None

    @property
    def refusal(self) -> str | None:
        """Say in one line why the lane waits for an operator; None: it does not."""
        if self.outcome is None or not self.outcome.refused:
            return None
        mismatch = describe_mismatch(self.marker, self.batch)
        return f"lane {self.lane}: {self.outcome.value}: {mismatch}"


class LaneBatch(NamedTuple):
    """What a lane row says of its batch; equal as long as the lane does not move on."""

    lane: int
    epoch: int
    batch_number: int
    token: UUID | None
    marker_token: UUID | None
    log_refusal: str | None


READ_BATCHES = """
    SELECT lane, epoch, batch_number, token, marker_token, log_refusal
      FROM outbox_lane
     ORDER BY lane
"""
MARKER_READ_S = 15.0  # the brokers may be electing leaders


def check_lanes(conn: Connection, kafka: KafkaConfig, marker_topic: str) -> list[LaneCheck]:
    """Compare all lanes' markers and rows, without a fence or a lock.

    Raises KafkaException, or DatabaseNotReady before the first migration.
    """
    identity = read_identity(conn)
    before = query(conn, args_row(LaneBatch), READ_BATCHES)
    lanes = [batch.lane for batch in before]
    markers = read_last_markers(kafka, identity, marker_topic, lanes, MARKER_READ_S)
    after = set(query(conn, args_row(LaneBatch), READ_BATCHES))
    checks = []
    for batch in before:
        marker = markers[batch.lane]
        outcome = compare(marker, batch) if batch in after else None
        checks.append(LaneCheck(batch.lane, batch, marker, outcome))
    return checks
