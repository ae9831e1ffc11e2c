"""The scenarios whose records are in several partitions: there is no order between those.

Added partitions explain it: from then on the partitioner divides by more. So the records of a scenario,
in the order of its workers, must fit to numbers of partitions that never fall. A record that fits to
none was placed by something else: a random partitioner, another one than now, or another producer.
"""

from typing import NamedTuple
from uuid import UUID

from psycopg.rows import args_row

from orchestrator.contract.messages import encode_uuid
from orchestrator.kafka.partitioners import fitting_count, hash_key
from outbox import Connection, arrays, query, scalar

ROWS_AT_ONCE = 10_000

CREATE_MOVED = """
    CREATE TEMP TABLE moved (
        number        BIGINT PRIMARY KEY,
        scenario_uuid UUID NOT NULL,
        worker_id     UUID NOT NULL,
        partition     INTEGER NOT NULL,
        record_offset BIGINT NOT NULL
    )
"""
FIND_MOVED = """
    INSERT INTO pg_temp.moved (number, scenario_uuid, worker_id, partition, record_offset)
    WITH in_several AS (
        SELECT scenario_uuid
          FROM pg_temp.published
         GROUP BY scenario_uuid
        HAVING min(partition) < max(partition)
    )
    SELECT row_number() OVER (ORDER BY scenario_uuid, workers.id < 0, workers.id,
                                       partition, record_offset),
           scenario_uuid, worker_id, partition, record_offset
      FROM pg_temp.published
      JOIN in_several USING (scenario_uuid)
      JOIN workers USING (worker_id, scenario_uuid)
     WHERE NOT EXISTS (SELECT FROM pg_temp.sent_late WHERE sent_late.worker_id = published.worker_id)
"""
READ_MOVED = """
    SELECT number, scenario_uuid, worker_id, partition, record_offset
      FROM pg_temp.moved
     WHERE number > %(after)s
     ORDER BY number
     LIMIT %(limit)s
"""
INSERT_SCATTERED = """
    INSERT INTO pg_temp.faults (kind, worker_id, partition, record_offset)
    SELECT 'scattered', worker_id, partition, record_offset
      FROM pg_temp.moved
     WHERE number = ANY (%(numbers)b::bigint[])
"""
COUNT_MOVED = "SELECT pg_catalog.count(DISTINCT scenario_uuid) FROM pg_temp.moved"


class MovedRecord(NamedTuple):
    """A record of a scenario that is in several partitions. number: in the order of their workers."""

    number: int
    scenario_uuid: UUID
    worker_id: UUID
    partition: int
    record_offset: int


def find_scattered(conn: Connection, partitioner: str, partitions: int) -> int:
    """Write the records that added partitions do not explain to `faults`; count the scenarios moved."""
    conn.execute(CREATE_MOVED)
    conn.execute(FIND_MOVED)
    scenario, key_hash, count, after = None, 0, 1, 0
    while rows := read_moved(conn, after):
        scattered = []
        for row in rows:
            if row.scenario_uuid != scenario:
                scenario, count = row.scenario_uuid, 1
                key_hash = hash_key(partitioner, encode_uuid(scenario))
            if fits := fitting_count(key_hash, row.partition, count, partitions):
                count = fits
            else:
                scattered.append(row.number)
        conn.execute(INSERT_SCATTERED, {"numbers": arrays.bigints(scattered)})
        after = rows[-1].number
    return scalar(conn, int, COUNT_MOVED)


def read_moved(conn: Connection, after: int) -> list[MovedRecord]:
    """Return the next records of scenarios that are in several partitions."""
    values = {"after": after, "limit": ROWS_AT_ONCE}
    return query(conn, args_row(MovedRecord), READ_MOVED, values)
