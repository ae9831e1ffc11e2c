"""`submit`: stands in for the API, for trying out."""

import argparse
import json
import logging
import os
from collections.abc import Iterator, Mapping
from uuid import UUID, uuid4

from confluent_kafka import KafkaError, KafkaException, Producer

from orchestrator.cli.addresses import with_addresses
from orchestrator.cli.exit_codes import OK
from orchestrator.config.settings import read_kafka_settings
from orchestrator.kafka.topics import check_access

DELIVERY_S = 10  # until then the brokers have acknowledged, or they are unreachable


def submit_commands(options: argparse.Namespace) -> int:
    """Send commands as the API would; print each scenario's UUID."""
    kafka, topic = read_kafka_settings(with_addresses(os.environ))
    check_access(kafka)
    for scenario in send_commands(kafka, topic, options.camera_url, options.scenario, options.count):
        print(scenario)
    return OK


def send_commands(
    kafka: Mapping[str, str], topic: str, camera_url: str, scenario: UUID | None, count: int
) -> Iterator[UUID]:
    """Send `count` commands; yield each scenario's UUID once all are acknowledged.

    scenario: the same for all; None: a new one for each. Raises KafkaException.
    """
    failures: list[KafkaError] = []
    producer = Producer(
        {
            **kafka,
            "enable.idempotence": True,
            "linger.ms": 5,
            "message.timeout.ms": DELIVERY_S * 1000,
            "delivery.report.only.error": True,
            "queue.buffering.max.messages": max(count, 100_000),
            "on_delivery": lambda error, _message: failures.append(error),
        },
        logger=logging.getLogger("librdkafka"),
    )
    scenarios = [scenario or uuid4() for _ in range(count)]
    for one in scenarios:
        command = {"scenario_uuid": str(one), "camera_url": camera_url}
        producer.produce(topic, json.dumps(command).encode(), str(one).encode())
    producer.flush()
    if failures:
        raise KafkaException(failures[0])
    yield from scenarios
