"""Publishers that leave something out, to see what it costs."""

from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from confluent_kafka import Producer

from outbox import OutboxRow
from outbox.admin import Marker, Publisher


class NoPublisher(Publisher):
    """Leaves Kafka out."""

    def start(self, transactional_lane: int) -> None:
        """Need no producer."""

    def read_markers(self, lanes: Collection[int]) -> dict[int, Marker | None]:
        """Know of no batch: good for lanes that are new."""
        return dict.fromkeys(lanes)

    def publish(self, markers: Mapping[int, Marker], rows: Iterable[OutboxRow]) -> None:
        """Take the rows, and be done."""


class PlainPublisher(NoPublisher):
    """Leaves transaction and marker out: idempotent, at least once. For lanes that are new."""

    def start(self, transactional_lane: int) -> None:
        """Make a producer as the relay's, without a transactional id."""
        config = {k: v for k, v in self._config.items() if not k.startswith("transaction")}
        self._producer = Producer(config, logger=self._log)
        self._caller = ThreadPoolExecutor(1)

    def publish(self, markers: Mapping[int, Marker], rows: Iterable[OutboxRow]) -> None:
        """Send the rows and wait for all delivery reports."""
        self.send_records(rows)
