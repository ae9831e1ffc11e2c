"""The workers: their ids, and what we write into the platform's table.

Invariant: a worker's id is a function of the place of its record in the input. If offsets are ever
lost or moved back, reading again yields the same ids, and the unique constraint turns the repeat into
a counted no-op instead of a second worker.
"""

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import cast
from uuid import UUID

from orchestrator.messages import DeployOrder
from outbox import Connection, arrays
from outbox.arrays import Array

PLACE = struct.Struct(">16siq")  # topic id, partition, offset
MS_BITS, HASH_BITS, LOW_BITS = 48, 74, 62


def worker_id(topic_id: UUID, partition: int, offset: int, timestamp_ms: int) -> UUID:
    """Return the UUIDv8 (RFC 9562) of a record: 48 bits of its time in ms, 74 bits of hash.

    Ordered by time, so that the unique index grows at its end. A record without a timestamp counts
    as time 0.
    """
    place = PLACE.pack(topic_id.bytes, partition, offset)
    digest = int.from_bytes(blake2b(place, digest_size=10).digest(), "big") >> (80 - HASH_BITS)
    time_ms = max(timestamp_ms, 0) & ((1 << MS_BITS) - 1)
    high, low = digest >> LOW_BITS, digest & ((1 << LOW_BITS) - 1)
    return UUID(int=time_ms << 80 | 8 << 76 | high << 64 | 0b10 << 62 | low)


INSERT_ALL = """
    INSERT INTO workers (worker_id, scenario_uuid, camera_url)
    SELECT worker_id, scenario_uuid, camera_url
      FROM unnest(%b::uuid[], %b::uuid[], %b::text[]) AS new (worker_id, scenario_uuid, camera_url)
"""


def insert_all(conn: Connection, orders: Sequence[DeployOrder]) -> list[UUID]:
    """Insert one pending worker an order; return their ids. A worker that is there is an error."""
    conn.execute(INSERT_ALL, _columns(orders), prepare=True)
    return [order.worker_id for order in orders]


INSERT_NEW = """
    INSERT INTO workers (worker_id, scenario_uuid, camera_url)
    SELECT worker_id, scenario_uuid, camera_url
      FROM unnest(%b::uuid[], %b::uuid[], %b::text[]) AS new (worker_id, scenario_uuid, camera_url)
        ON CONFLICT (worker_id) DO NOTHING
 RETURNING worker_id
"""


def insert_new(conn: Connection, orders: Sequence[DeployOrder]) -> list[UUID]:
    """Insert the workers that are not there yet; return their ids."""
    return [cast("UUID", row[0]) for row in conn.execute(INSERT_NEW, _columns(orders))]


def _columns(orders: Sequence[DeployOrder]) -> tuple[Array, Array, Array]:
    return (
        arrays.uuids(order.worker_id for order in orders),
        arrays.uuids(order.scenario_uuid for order in orders),
        arrays.texts(order.camera_url for order in orders),
    )


SET_DEPLOYED = """
    UPDATE workers
       SET status = 'deployed', updated_at = NOW()
     WHERE worker_id = ANY(%(ids)b::uuid[]) AND status = 'pending'
"""


def set_deployed(conn: Connection, worker_ids: Sequence[UUID]) -> None:
    """Mark pending workers deployed; one that the Runner already moved on stays as it is."""
    conn.execute(SET_DEPLOYED, {"ids": arrays.uuids(worker_ids)}, prepare=True)


IDS_USED = """
    SELECT coalesce(numbers.last_value, 0)::float8
           / least(numbers.max_value, CASE id.atttypid WHEN 'int4'::regtype THEN 2147483647
                                                       ELSE 9223372036854775807 END)
      FROM pg_attribute AS id
      JOIN pg_sequences AS numbers
        ON format('%%I.%%I', numbers.schemaname, numbers.sequencename)::regclass
           = pg_get_serial_sequence('workers', 'id')::regclass
     WHERE id.attrelid = 'workers'::regclass AND id.attname = 'id'
       AND has_sequence_privilege(pg_get_serial_sequence('workers', 'id'), 'SELECT, USAGE')
"""


def ids_used(conn: Connection) -> float | None:
    """Return the share of workers.id that is given out, 0 to 1; SERIAL ends at 2^31.

    None: the table was adopted without a sequence, or the role may not see it.
    """
    row = conn.execute(IDS_USED, {}).fetchone()
    return None if row is None else cast("float", row[0])
