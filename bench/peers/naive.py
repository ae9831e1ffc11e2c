"""The naive service: for each message a transaction, a flush and another transaction, all in turn.

At least once. Between any two of its steps it may die; the message is then worked again from the
start, which makes a second worker and a second order.

Tuned: no linger, statements prepared from the start, offsets committed in the background and only
for messages that are done.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import cast
from uuid import UUID, uuid4

import msgspec
import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from bench.peers import MeasuredPeer, Order, child, new_database
from orchestrator.embedded import Servers
from orchestrator.messages import Command, DeployOrder, encode_order

INPUT = ".in"  # the ending of the input topic's name

WORKERS = """
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
    """Give the naive service, for the block."""
    with new_database(servers, WORKERS) as url:
        yield NaivePeer(servers, url)


class NaivePeer(MeasuredPeer):
    """From the input topic to the output topic."""

    name = "naive service"
    more_topics = (INPUT,)

    def __init__(self, servers: Servers, url: str) -> None:
        super().__init__(servers)
        self._url = url

    def _fill(self, topic: str, orders: Sequence[Order]) -> None:
        with self._producing(topic) as produce:
            for order in orders:
                produce(order)

    def _running(self, topic: str) -> AbstractContextManager[None]:
        return child(serve, self._url, self.servers.bootstrap_servers, topic)

    @contextmanager
    def _producing(self, topic: str) -> Iterator[Callable[[Order], None]]:
        """Stand in for the API; its orders are commands with a field too many."""
        producer = new_producer(self.servers.bootstrap_servers)

        def produce(order: Order) -> None:
            producer.produce(topic + INPUT, order.value, order.key)
            producer.poll(0)

        yield produce
        producer.flush()

    _sending = _producing


# ---- the service ----------------------------------------------------------------------------------


def serve(url: str, bootstrap_servers: str, topic: str) -> None:
    """Work message after message, for ever."""
    producer = new_producer(bootstrap_servers)
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": topic,
            "auto.offset.reset": "earliest",
            "enable.auto.offset.store": False,
        }
    )
    consumer.subscribe([topic + INPUT])
    with psycopg.connect(url, prepare_threshold=0) as conn:
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
    """Do all that one message asks for."""
    command = decode(message.value() or b"")
    worker_id = uuid4()
    conn.execute(INSERT, (worker_id, command.scenario_uuid, command.camera_url))
    conn.commit()
    order = DeployOrder(worker_id, command.scenario_uuid, command.camera_url)
    producer.produce(topic, encode_order(order), message.key())
    producer.flush()
    conn.execute(SET_DEPLOYED, (worker_id,))
    conn.commit()


def new_producer(bootstrap_servers: str) -> Producer:
    """Return a producer that raises KafkaException for what is not delivered."""

    def check(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            raise KafkaException(error)

    return Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "linger.ms": 0,
            "queue.buffering.max.messages": 1_000_000,
            "on_delivery": check,
            "delivery.report.only.error": True,
        }
    )
