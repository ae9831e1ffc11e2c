"""The limit of the Kafka half: what brokers and client can do with such records."""

import time
from contextlib import closing
from uuid import uuid4

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from bench.testbed import Testbed
from orchestrator.contract.messages import DeployOrder, encode_order
from outbox.admin import DEFAULT_CONFIG
from testkit.system import PARTITIONS, System

BATCH = 1000


def kafka_limit(testbed: Testbed, rows: int) -> dict[str, float]:
    """Measure only transactions of one batch each, with a marker; only produce; only consume."""
    scenario = uuid4()
    order = DeployOrder(uuid4(), scenario, "rtsp://bench:secret@camera.example/123456")
    record = (str(scenario).encode(), encode_order(order))
    with testbed.system(lanes=1) as system:
        return {
            "transactions_rate": transactions(system, record, rows),
            "produce_rate": produce(system, record, rows),
            "consume_rate": consume(system, 2 * rows),
        }


def transactions(system: System, record: tuple[bytes, bytes], rows: int) -> float:
    """Return records a second in transactions of BATCH, each with a marker."""
    kafka, topic = system.settings.kafka, system.settings.output_topic
    producer = Producer({**DEFAULT_CONFIG, **kafka, "transactional.id": f"bench-{uuid4()}"})
    producer.init_transactions(30)
    key, value = record
    began = time.perf_counter()
    for _ in range(rows // BATCH):
        producer.begin_transaction()
        for _ in range(BATCH):
            producer.produce(topic, value, key)
        producer.produce(system.settings.marker_topic, b"marker", b"bench", 0)
        producer.commit_transaction(30)
    return rows / (time.perf_counter() - began)


def produce(system: System, record: tuple[bytes, bytes], rows: int) -> float:
    """Return records a second of an idempotent producer without transactions."""
    producer = Producer({**DEFAULT_CONFIG, **system.settings.kafka, "enable.idempotence": True})
    key, value = record
    began = time.perf_counter()
    for _ in range(rows):
        producer.produce(system.settings.output_topic, value, key)
    if producer.flush(60):
        raise TimeoutError("records were not acknowledged")
    return rows / (time.perf_counter() - began)


def consume(system: System, rows: int) -> float:
    """Return records a second of only a read_committed consumer."""
    topic = system.settings.output_topic
    settings = {"group.id": "bench", "isolation.level": "read_committed", "enable.auto.commit": False}
    with closing(Consumer({**system.settings.kafka, **settings})) as consumer:
        consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(PARTITIONS)])
        seen = len(consumer.consume(1, 30))
        began = time.perf_counter()
        while seen < rows:
            seen += len(consumer.consume(10_000, 0.05))
        return rows / (time.perf_counter() - began)
