"""The workers: their ids, and what we write into the platform's table.

Invariant: a worker's id is a function of the place of its record in the input. If offsets are ever
lost or moved back, reading again yields the same ids, and the unique constraint turns the repeat into
a counted no-op instead of a second worker.
"""

import struct
from collections.abc import Sequence
from decimal import Decimal
from hashlib import blake2b
from typing import NamedTuple, cast
from uuid import UUID

import msgspec

from orchestrator.contract.messages import DeployOrder
from outbox import Connection, arrays

PLACE = struct.Struct(">16siq")  # topic id, partition, offset
MS_BITS, HASH_BITS, LOW_BITS = 48, 74, 62

# As MessagePack, since that makes a UUID five times as fast as UUID() does.
SIXTEEN_BYTES = b"\xc4\x10"
decode_uuid = msgspec.msgpack.Decoder(UUID).decode


def worker_id(topic_id: UUID, partition: int, offset: int, timestamp_ms: int) -> UUID:
    """Return the UUIDv8 (RFC 9562) of a record: 48 bits of its time in ms, 74 bits of hash.

    Ordered by time, so that the unique index grows at its end. A record without a timestamp counts
    as time 0.
    """
    place = PLACE.pack(topic_id.bytes, partition, offset)
    digest = int.from_bytes(blake2b(place, digest_size=10).digest(), "big") >> (80 - HASH_BITS)
    time_ms = max(timestamp_ms, 0) & ((1 << MS_BITS) - 1)
    high, low = digest >> LOW_BITS, digest & ((1 << LOW_BITS) - 1)
    made = time_ms << 80 | 8 << 76 | high << 64 | 0b10 << 62 | low
    return decode_uuid(SIXTEEN_BYTES + made.to_bytes(16, "big"))


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


def _columns(orders: Sequence[DeployOrder]) -> tuple[arrays.Array, arrays.Array, arrays.Array]:
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


# The column may be SERIAL, an identity, or have another sequence or none as its default.
READ_IDS = """
    WITH id AS (
        SELECT atttypid,
               CASE WHEN attidentity <> ''
                    THEN pg_get_serial_sequence(attrelid::regclass::text, attname)::regclass::oid
                    ELSE (SELECT refobjid
                            FROM pg_attrdef
                            JOIN pg_depend ON classid = 'pg_attrdef'::regclass
                                          AND objid = pg_attrdef.oid
                            JOIN pg_class ON pg_class.oid = refobjid AND relkind = 'S'
                           WHERE adrelid = attrelid AND adnum = attnum
                           LIMIT 1) END AS sequence
          FROM pg_attribute
         WHERE attrelid = to_regclass('workers') AND attname = 'id' AND NOT attisdropped
    )
    SELECT format_type(atttypid, NULL),
           seqrelid::regclass::text,
           CASE WHEN has_sequence_privilege(seqrelid, 'USAGE, SELECT')
                THEN coalesce(pg_sequence_last_value(seqrelid)::numeric - seqmin + 1, 0) END,
           least(seqmax, CASE atttypid WHEN 'int2'::regtype THEN 32767
                                       WHEN 'int4'::regtype THEN 2147483647
                                       ELSE 9223372036854775807 END)::numeric - seqmin + 1
      FROM id
      LEFT JOIN pg_sequence ON seqrelid = sequence
"""


class Ids(NamedTuple):
    """The ids of `workers`: where they come from, and how many that can give.

    kind: the column's type. sequence: None if they come from none. given: how many are given out, None
    if the role may not look.
    """

    kind: str
    sequence: str | None
    given: Decimal | None
    limit: Decimal | None

    @property
    def used(self) -> float | None:
        """Return the share that is given out, 0 to 1; None if it is not known."""
        return None if self.given is None or not self.limit else float(self.given / self.limit)


def read_ids(conn: Connection) -> Ids | None:
    """Look how many ids are given out: SERIAL ends at 2^31. None: there is no column workers.id."""
    row = conn.execute(READ_IDS).fetchone()
    if row is None:
        return None
    return Ids(*cast("tuple[str, str | None, Decimal | None, Decimal | None]", row))
