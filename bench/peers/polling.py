"""A common polling relay: lock some rows, produce them, wait for the brokers, delete them, commit.

At least once. After a crash between the brokers' answer and its commit, the whole batch is sent again.
One process, because a second one would break the order of the rows. Idempotent, without transactions.

Tuned: delivery reports only for errors, rows deleted by an array of their ids, prepared statements from
the start, an eager autovacuum, and a pause of only 2 ms when nothing waits.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psycopg
from confluent_kafka import Producer
from psycopg.rows import args_row

from bench.peers import OutboxPeer
from bench.peers.resources import child, new_database, new_producer
from orchestrator.embedded import Servers
from testkit.eventually import eventually

IDLE_S = 0.002
PRODUCER = {
    "enable.idempotence": True,
    "linger.ms": 5,  # fills requests while a batch is produced; flush() does not wait for it
}

OUTBOX = b"""
    CREATE TABLE outbox (
        id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        topic text NOT NULL,
        key   text NOT NULL,
        value text NOT NULL
    ) WITH (
        autovacuum_vacuum_scale_factor = 0,
        autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 0
    )
"""


@contextmanager
def polling(servers: Servers, batch_size: int) -> Iterator["PollingPeer"]:
    """Yield the polling relay, with an outbox of its own."""
    with new_database(servers, OUTBOX) as url:
        yield PollingPeer(servers, url, batch_size)


class PollingPeer(OutboxPeer):
    """From an outbox to the output topic, by polling for rows."""

    insert = b"INSERT INTO outbox (topic, key, value) VALUES (%s, %s, %s)"

    def __init__(self, servers: Servers, database_url: str, batch_size: int) -> None:
        super().__init__(servers, database_url)
        self.name = f"polling relay, batches of {batch_size}"
        self._batch_size = batch_size

    @contextmanager
    def _running(self, topic: str) -> Iterator[None]:
        with child(serve, self.database_url, self.servers.bootstrap_servers, self._batch_size):
            yield
            eventually(self._is_empty)  # otherwise the next run would send the last batch again

    def _is_empty(self) -> bool:
        with psycopg.connect(self.database_url) as conn:
            return conn.execute("SELECT count(*) FROM outbox").fetchone() == (0,)


# ---- the relay ------------------------------------------------------------------------------------


def serve(database_url: str, bootstrap_servers: str, batch_size: int) -> None:
    """Publish batch after batch; never returns."""
    producer = new_producer(bootstrap_servers, PRODUCER)
    with psycopg.connect(database_url, autocommit=True, prepare_threshold=0) as conn:
        while True:
            if not publish(conn, producer, batch_size):
                time.sleep(IDLE_S)


class WaitingOrder(NamedTuple):
    """A row of the outbox."""

    id: int
    topic: str
    key: str
    value: str


CLAIM = """
    SELECT id, topic, key, value
      FROM outbox
     ORDER BY id
     LIMIT %s
       FOR UPDATE SKIP LOCKED
"""
DELETE = "DELETE FROM outbox WHERE id = ANY(%s)"


def publish(conn: psycopg.Connection[tuple[object, ...]], producer: Producer, limit: int) -> int:
    """Publish one batch and delete its rows; return how many they were."""
    with conn.transaction():
        rows = conn.cursor(row_factory=args_row(WaitingOrder)).execute(CLAIM, (limit,)).fetchall()
        for _, topic, key, value in rows:
            producer.produce(topic, value, key)
        if rows:
            producer.flush()
            conn.execute(DELETE, ([row.id for row in rows],))
    return len(rows)
