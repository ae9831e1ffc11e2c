"""The naive service: for each message a transaction, a flush and another transaction, in turn.

At least once. After a crash between two steps the message is processed again from the start, which
makes a second worker and a second order.

Tuned: no linger, delivery reports only for errors, prepared statements from the start, offsets
committed in the background and only for processed messages.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from uuid import uuid4

import msgspec
import psycopg
from confluent_kafka import Consumer, Message, Producer

from bench.peers import MeasuredPeer
from bench.peers.orders import Order
from bench.peers.resources import child, new_database, new_producer
from orchestrator.contract.messages import Command, DeployOrder, encode_order
from orchestrator.embedded import Servers

INPUT = ".in"  # suffix of the input topic
PRODUCER = {"linger.ms": 0}

WORKERS = b"""
    CREATE TABLE workers (
        id            serial PRIMARY KEY,
        worker_id     uuid UNIQUE NOT NULL,
        scenario_uuid uuid NOT NULL,
        camera_url    text NOT NULL,
        status        varchar(50) NOT NULL DEFAULT 'pending'
    ) WITH (fillfactor = 50)
"""


@contextmanager
def naive(servers: Servers) -> Iterator["NaivePeer"]:
    """Yield the naive service, with a table of its own."""
    with new_database(servers, WORKERS) as url:
        yield NaivePeer(servers, url)


class NaivePeer(MeasuredPeer):
    """From an input topic to the output topic."""

    name = "naive service"
    more_topics = (INPUT,)

    def __init__(self, servers: Servers, database_url: str) -> None:
        super().__init__(servers)
        self._database_url = database_url

    def _fill(self, topic: str, orders: Sequence[Order]) -> None:
        with self._sending(topic) as send:
            for order in orders:
                send(order)

    def _running(self, topic: str) -> AbstractContextManager[None]:
        return child(serve, self._database_url, self.servers.bootstrap_servers, topic)

    @contextmanager
    def _sending(self, topic: str) -> Iterator[Callable[[Order], None]]:
        """Act as the API: an order is a command with an additional field."""
        producer = new_producer(self.servers.bootstrap_servers, PRODUCER)

        def send(order: Order) -> None:
            producer.produce(topic + INPUT, order.value, order.key)
            producer.poll(0)

        yield send
        producer.flush()


# ---- the service ----------------------------------------------------------------------------------


def serve(database_url: str, bootstrap_servers: str, topic: str) -> None:
    """Process message after message; never returns."""
    producer = new_producer(bootstrap_servers, PRODUCER)
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": topic,
            "auto.offset.reset": "earliest",
            "enable.auto.offset.store": False,
        }
    )
    consumer.subscribe([topic + INPUT])
    with psycopg.connect(database_url, prepare_threshold=0) as conn:
        while True:
            message = consumer.poll(1.0)
            if message is not None and message.error() is None:
                deploy(conn, producer, topic, message)
                consumer.store_offsets(message)


INSERT = "INSERT INTO workers (worker_id, scenario_uuid, camera_url) VALUES (%s, %s, %s)"
SET_DEPLOYED = "UPDATE workers SET status = 'deployed' WHERE worker_id = %s"

decode = msgspec.json.Decoder(Command).decode


def deploy(
    conn: psycopg.Connection[tuple[object, ...]], producer: Producer, topic: str, message: Message
) -> None:
    """Process one message."""
    command = decode(message.value() or b"")
    worker_id = uuid4()
    conn.execute(INSERT, (worker_id, command.scenario_uuid, command.camera_url))
    conn.commit()
    order = DeployOrder(worker_id, command.scenario_uuid, command.camera_url)
    producer.produce(topic, encode_order(order), message.key())
    producer.flush()
    conn.execute(SET_DEPLOYED, (worker_id,))
    conn.commit()
