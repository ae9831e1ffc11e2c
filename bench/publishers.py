"""Publishers that leave something out, to measure its cost."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from outbox import OutboxRow
from outbox.admin import DEFAULT_CONFIG, Evidence, KafkaConfig, Marker, Publisher, Search

FLUSH_S = 30.0


class NoPublisher(Publisher):
    """Publishes nothing to Kafka."""

    def start(self, transactional_lane: int) -> None:
        """Do nothing: no producer is needed."""

    def read_evidence(self, searches: Mapping[int, Search]) -> dict[int, Evidence]:
        """Return no markers, which is right for new lanes."""
        return dict.fromkeys(searches, Evidence(None))

    def publish(self, markers: Mapping[int, Marker], rows: Iterable[OutboxRow]) -> None:
        """Do nothing with the rows."""


class PlainPublisher(NoPublisher):
    """Publishes without transaction and marker: idempotent, at least once. For new lanes."""

    def __init__(self, kafka: KafkaConfig, *others: Any) -> None:
        super().__init__(kafka, *others)
        self._errors: list[KafkaError] = []
        config = {**DEFAULT_CONFIG, **kafka, "enable.idempotence": True, "acks": "all"}
        self._plain = Producer(
            {name: value for name, value in config.items() if not name.startswith("transaction")}
            | {"delivery.report.only.error": True, "on_delivery": self._note_error},
            logger=logging.getLogger("librdkafka"),
        )

    def publish(self, markers: Mapping[int, Marker], rows: Iterable[OutboxRow]) -> None:
        """Send the rows and wait for all delivery reports. Raises KafkaException."""
        for row in rows:
            self._plain.produce(row.topic, row.value, row.key)
        if self._plain.flush(FLUSH_S) or self._errors:
            raise KafkaException(*self._errors)

    def _note_error(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._errors.append(error)
