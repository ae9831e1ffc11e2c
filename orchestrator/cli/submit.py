"""`submit`: stands in for the API, for trying out."""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID, uuid4

from confluent_kafka import KafkaError, KafkaException, Producer

from orchestrator.cli.addresses import with_addresses
from orchestrator.cli.exit_codes import OK
from orchestrator.cli.terminal import UsageError
from orchestrator.config.settings import read_kafka_settings
from orchestrator.kafka.topics import check_access
from orchestrator.program import PROGRAM

DELIVERY_S = 10  # until then the brokers have acknowledged, or they are unreachable
PROGRESS_S = 0.2  # between two figures on a terminal


def submit_commands(options: argparse.Namespace) -> int:
    """Send commands as the API would; on a terminal show how far it is, else print the scenarios."""
    kafka, topic = read_kafka_settings(with_addresses(os.environ))
    urls = read_urls() if options.camera_url == "-" else [options.camera_url]
    check_access(kafka)
    commands = [(options.scenario or uuid4(), url) for url in urls * options.count]
    began = time.monotonic()

    def progress(sent: int) -> None:
        rate = sent / max(time.monotonic() - began, 0.001)
        print(f"\r{sent:,} of {len(commands):,} sent, {rate:,.0f}/s ", end="", flush=True)

    is_terminal = sys.stdout.isatty()
    send_commands(kafka, topic, commands, options.rate, progress if is_terminal else None)
    if is_terminal:
        print(f"to {topic}: `{PROGRAM} explain {commands[0][0]}`, `{PROGRAM} status --watch`")
    else:
        print(*(scenario for scenario, _ in commands), sep="\n")
    return OK


def read_urls() -> list[str]:
    """Return the camera URLs on stdin, one a line. Raises UsageError if there is none."""
    if urls := [line.strip() for line in sys.stdin if line.strip()]:
        return urls
    raise UsageError("no camera URL on stdin: write one a line")


def send_commands(
    kafka: Mapping[str, str],
    topic: str,
    commands: Sequence[tuple[UUID, str]],
    rate: int | None = None,
    report: Callable[[int], None] | None = None,
) -> None:
    """Send commands, each a scenario and a camera URL; return once all are acknowledged.

    rate: at most so many a second. report: told now and then how many are acknowledged.
    Raises KafkaException.
    """
    failures: list[KafkaError] = []
    producer = Producer(
        {
            **kafka,
            "enable.idempotence": True,
            "linger.ms": 5,
            "message.timeout.ms": DELIVERY_S * 1000,
            "delivery.report.only.error": True,
            "queue.buffering.max.messages": max(len(commands), 100_000),
            "on_delivery": lambda error, _message: failures.append(error),
        },
        logger=logging.getLogger("librdkafka"),
    )
    began = report_at = time.monotonic()
    for number, (scenario, camera_url) in enumerate(commands):
        while rate and (early_s := began + number / rate - time.monotonic()) > 0:
            producer.poll(min(early_s, PROGRESS_S))
        if report and time.monotonic() >= report_at:
            report(number - len(producer))
            report_at = time.monotonic() + PROGRESS_S
        if failures:
            break
        command = {"scenario_uuid": str(scenario), "camera_url": camera_url}
        producer.produce(topic, json.dumps(command).encode(), str(scenario).encode())
    while (left := producer.flush(PROGRESS_S)) and not failures:
        if report:
            report(len(commands) - left)
    if failures:
        raise KafkaException(failures[0])
    if report:
        report(len(commands))
