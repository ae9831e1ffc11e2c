"""The platform's table `workers`, and what we write into it."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

from psycopg.rows import args_row

from orchestrator.contract.messages import DeployOrder
from orchestrator.contract.records import RefusedRow
from orchestrator.contract.workers_catalog import insert_triggers
from outbox import LOCKED, Connection, arrays, query, scalars

# A trigger of the platform may skip a row, or give it another worker_id: then it has no worker.
# FILTER and not WHERE: Postgres hashes the ids, and never joins row by row.
INSERT = """
    WITH inserted AS (
        INSERT INTO workers (worker_id, scenario_uuid, camera_url)
        SELECT worker_id, scenario_uuid, camera_url
          FROM unnest(%(worker_ids)b::uuid[], %(scenarios)b::uuid[], %(urls)b::text[])
               AS new (worker_id, scenario_uuid, camera_url)
     RETURNING worker_id
    )
    SELECT count(*) FILTER (WHERE worker_id IN (SELECT pg_catalog.unnest(%(worker_ids)b::uuid[])))
      FROM inserted
"""


def insert(conn: Connection, orders: Sequence[DeployOrder]) -> list[UUID]:
    """Insert one pending worker per order; return their ids.

    Raises UniqueViolation if one exists, RefusedRow if there is an order without a worker.
    """
    (inserted,) = scalars(conn, int, INSERT, _order_columns(orders), prepare=True)
    if inserted != len(orders):
        raise left_out(conn)
    return [order.worker_id for order in orders]


INSERT_IGNORING_EXISTING = """
    INSERT INTO workers (worker_id, scenario_uuid, camera_url)
    SELECT worker_id, scenario_uuid, camera_url
      FROM unnest(%(worker_ids)b::uuid[], %(scenarios)b::uuid[], %(urls)b::text[])
           AS new (worker_id, scenario_uuid, camera_url)
        ON CONFLICT (worker_id) DO NOTHING
 RETURNING worker_id
"""


def insert_ignoring_existing(conn: Connection, orders: Sequence[DeployOrder]) -> list[UUID]:
    """Insert the workers that do not exist yet; return their ids. Raises RefusedRow as `insert`."""
    inserted = scalars(conn, UUID, INSERT_IGNORING_EXISTING, _order_columns(orders))
    missing = {order.worker_id for order in orders}.difference(inserted)
    if missing and find_existing(conn, list(missing)) != missing:
        raise left_out(conn)
    return inserted


def left_out(conn: Connection) -> RefusedRow:
    """Return why an order has no worker though no statement failed."""
    triggers = " ".join(insert_triggers(conn))
    return RefusedRow(
        f"Postgres skips the row, or changes its worker_id: table workers, triggers {triggers}"
    )


FIND_EXISTING = "SELECT worker_id FROM workers WHERE worker_id = ANY(%(ids)b::uuid[])"


def find_existing(conn: Connection, worker_ids: Sequence[UUID]) -> set[UUID]:
    """Return those of the ids that have a worker."""
    return set(scalars(conn, UUID, FIND_EXISTING, {"ids": arrays.uuids(worker_ids)}))


def _order_columns(orders: Sequence[DeployOrder]) -> dict[str, arrays.Array]:
    return {
        "worker_ids": arrays.uuids(order.worker_id for order in orders),
        "scenarios": arrays.uuids(order.scenario_uuid for order in orders),
        "urls": arrays.texts(order.camera_url for order in orders),
    }


# FOR NO KEY UPDATE is the lock that the update takes: a reference to the row (KEY SHARE) does not
# conflict with it. What was not updated is looked up only where fewer rows than ids were: it is locked
# by another session, or a trigger or a policy passed over it, or set it back, in silence.
SET_DEPLOYED = """
    WITH free AS (
        SELECT worker_id
          FROM workers
         WHERE worker_id = ANY(%(ids)b::uuid[]) AND status::text = 'pending'
           FOR NO KEY UPDATE SKIP LOCKED
    ), deployed AS (
        UPDATE workers
           SET status = 'deployed', updated_at = NOW()
         WHERE worker_id = ANY(ARRAY(SELECT worker_id FROM free))
           AND status::text = 'pending'
     RETURNING worker_id, status
    ), done AS (
        SELECT worker_id FROM deployed WHERE status::text <> 'pending'
    )
    SELECT worker_id, worker_id IN (SELECT worker_id FROM free)
      FROM workers
     WHERE (SELECT count(*) FROM done) < pg_catalog.cardinality(%(ids)b::uuid[])
       AND worker_id = ANY(%(ids)b::uuid[]) AND status::text = 'pending'
       AND NOT EXISTS (SELECT FROM done WHERE done.worker_id = workers.worker_id)
"""
SKIPPED = "a trigger on workers skips or undoes the update"


class StillPending(NamedTuple):
    """A worker that was not set to deployed. skipped: although no other session has locked it."""

    worker_id: UUID
    skipped: bool


def set_deployed(conn: Connection, worker_ids: Sequence[UUID]) -> Mapping[UUID, str]:
    """Mark pending workers deployed; return those that are still pending, without waiting, and why.

    One that the Runner already moved on stays as it is.
    """
    values = {"ids": arrays.uuids(worker_ids)}
    found = query(conn, args_row(StillPending), SET_DEPLOYED, values, prepare=True, binary=True)
    return {one.worker_id: SKIPPED if one.skipped else LOCKED for one in found}


# The column may be SERIAL, an identity, or have another sequence or none as its default.
READ_ID_SEQUENCE = """
    WITH id AS (
        SELECT atttypid,
               CASE WHEN attidentity <> ''
                    THEN pg_catalog.pg_get_serial_sequence(
                             attrelid::regclass::text, attname)::regclass::oid
                    ELSE (SELECT refobjid
                            FROM pg_attrdef
                            JOIN pg_depend ON classid = 'pg_attrdef'::regclass::oid
                                          AND objid = pg_attrdef.oid
                            JOIN pg_class ON pg_class.oid = refobjid AND relkind = 'S'
                           WHERE adrelid = attrelid AND adnum = attnum
                           LIMIT 1) END AS sequence
          FROM pg_attribute
         WHERE attrelid = pg_catalog.to_regclass('workers')::oid AND attname = 'id' AND NOT attisdropped
    )
    SELECT pg_catalog.format_type(atttypid, NULL),
           seqrelid::regclass::text,
           CASE WHEN pg_catalog.has_sequence_privilege(seqrelid, 'USAGE, SELECT')
                THEN coalesce(pg_catalog.pg_sequence_last_value(seqrelid)::numeric
                              - seqmin::numeric + 1::numeric, 0) END,
           least(seqmax, CASE atttypid WHEN 'int2'::regtype::oid THEN 32767
                                       WHEN 'int4'::regtype::oid THEN 2147483647
                                       ELSE 9223372036854775807 END)::numeric
           - seqmin::numeric + 1::numeric
      FROM id
      LEFT JOIN pg_sequence ON seqrelid = sequence
"""


class IdSequence(NamedTuple):
    """Where the ids of `workers` come from, and how many it has.

    type: of the column. sequence: None if the ids come from none. allocated: how many are used; None if
    the role may not read it.
    """

    type: str
    sequence: str | None
    allocated: Decimal | None
    capacity: Decimal | None

    @property
    def used(self) -> float | None:
        """Return the share that is allocated, 0 to 1; None if it is not known."""
        if self.allocated is None or not self.capacity:
            return None
        return float(self.allocated / self.capacity)


def read_id_sequence(conn: Connection) -> IdSequence | None:
    """Return how many ids are used: SERIAL ends at 2^31. None: there is no column workers.id."""
    return next(iter(query(conn, args_row(IdSequence), READ_ID_SEQUENCE)), None)
