"""`submit`: stands in for the API, for trying out."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from uuid import UUID, uuid4

from confluent_kafka import KafkaError, KafkaException, Producer

from orchestrator.cli.addresses import with_addresses
from orchestrator.cli.exit_codes import OK
from orchestrator.cli.terminal import UsageError
from orchestrator.config.settings import read_kafka_settings
from orchestrator.kafka.topics import check_access

DELIVERY_S = 10  # until then the brokers have acknowledged, or they are unreachable


def submit_commands(options: argparse.Namespace) -> int:
    """Send commands as the API would; print each scenario's UUID."""
    kafka, topic = read_kafka_settings(with_addresses(os.environ))
    urls = read_urls() if options.camera_url == "-" else [options.camera_url]
    check_access(kafka)
    for scenario in send_commands(kafka, topic, urls * options.count, options.scenario):
        print(scenario)
    return OK


def read_urls() -> list[str]:
    """Return the camera URLs on stdin, one a line. Raises UsageError if there is none."""
    if urls := [line.strip() for line in sys.stdin if line.strip()]:
        return urls
    raise UsageError("no camera URL on stdin: write one a line")


def send_commands(
    kafka: Mapping[str, str], topic: str, camera_urls: Sequence[str], scenario: UUID | None
) -> Iterator[UUID]:
    """Send a command for each camera; yield each scenario's UUID once all are acknowledged.

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
            "queue.buffering.max.messages": max(len(camera_urls), 100_000),
            "on_delivery": lambda error, _message: failures.append(error),
        },
        logger=logging.getLogger("librdkafka"),
    )
    scenarios = [scenario or uuid4() for _ in camera_urls]
    for one, camera_url in zip(scenarios, camera_urls, strict=True):
        command = {"scenario_uuid": str(one), "camera_url": camera_url}
        producer.produce(topic, json.dumps(command).encode(), str(one).encode())
    producer.flush()
    if failures:
        raise KafkaException(failures[0])
    yield from scenarios
