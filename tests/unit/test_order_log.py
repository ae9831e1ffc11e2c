"""What the relay's metrics write into its log of orders."""

import logging

import pytest

from orchestrator.observability.health import Health
from orchestrator.observability.metrics import RelayMetrics, new_registry
from orchestrator.observability.stages import LINES_PER_S
from outbox import OutboxRow

ORDERS, LETTERS = "to_deploy", "init_scenario.dlq"


def rows(topic: str, count: int) -> list[OutboxRow]:
    return [
        OutboxRow(0, number, topic, b"k", b"{}", [], f"id {number}", 0.0, 3) for number in range(count)
    ]


def test_dead_letters_are_no_orders_however_many_they_are(caplog: pytest.LogCaptureFixture) -> None:
    metrics = RelayMetrics(new_registry("relay"), Health(), ORDERS)
    caplog.set_level(logging.INFO, "orchestrator")
    metrics.published(rows(LETTERS, LINES_PER_S + 1), 0.0, 0.0)
    metrics.published(rows(LETTERS, LINES_PER_S) + rows(ORDERS, 1), 0.0, 0.0)
    assert [(record.getMessage(), vars(record)["topic"]) for record in caplog.records] == [
        ("order sent", ORDERS)
    ]
