"""The usual polling relay: lock some rows, produce them, wait for the brokers, delete them, commit.

At least once. When it dies between the brokers' word and its commit, the whole batch is sent again.
One process, as order asks for. The producer is idempotent, without transactions.

Tuned: rows deleted by an array of ids, statements prepared from the start, an eager autovacuum and a
pause of 2 ms when nothing waits.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import cast

import psycopg
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from bench.peers import MeasuredPeer, Order, child, insert_waiting, new_database
from orchestrator.embedded import Servers

IDLE_S = 0.002

OUTBOX = """
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
INSERT = "INSERT INTO outbox (topic, key, value) VALUES (%s, %s, %s)"


@contextmanager
def polling(servers: Servers, batch_size: int) -> Iterator["PollingPeer"]:
    """Give the polling relay with an outbox of its own, for the block."""
    with new_database(servers, OUTBOX) as url:
        yield PollingPeer(servers, url, batch_size)


class PollingPeer(MeasuredPeer):
    """From an outbox to the output topic."""

    def __init__(self, servers: Servers, url: str, batch_size: int) -> None:
        super().__init__(servers)
        self.name = f"polling relay, batches of {batch_size}"
        self._url = url
        self._batch_size = batch_size

    def _fill(self, topic: str, orders: Sequence[Order]) -> None:
        insert_waiting(self._url, INSERT, [(topic, *order) for order in orders])

    def _running(self, topic: str) -> AbstractContextManager[None]:
        return child(serve, self._url, self.servers.bootstrap_servers, self._batch_size)

    @contextmanager
    def _sending(self, topic: str) -> Iterator[Callable[[Order], None]]:
        with psycopg.connect(self._url, autocommit=True, prepare_threshold=0) as conn:
            yield lambda order: conn.execute(INSERT, (topic, *order)) and None


# ---- the relay ------------------------------------------------------------------------------------


def serve(url: str, bootstrap_servers: str, batch_size: int) -> None:
    """Publish batch after batch, for ever."""

    def check(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            raise KafkaException(error)

    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "enable.idempotence": True,
            "linger.ms": 5,  # fills requests while a batch is produced; flush() does not wait for it
            "on_delivery": check,
            "delivery.report.only.error": True,
        }
    )
    with psycopg.connect(url, prepare_threshold=0) as conn:
        while True:
            if not publish(conn, producer, batch_size):
                time.sleep(IDLE_S)


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
        rows = cast("list[tuple[int, str, str, str]]", conn.execute(CLAIM, (limit,)).fetchall())
        for _, topic, key, value in rows:
            producer.produce(topic, value, key)
        if rows:
            producer.flush()
            conn.execute(DELETE, ([row[0] for row in rows],))
    return len(rows)
