"""Publishers that leave something out, to measure its cost."""

from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from confluent_kafka import Producer

from outbox import OutboxRow
from outbox.admin import Marker, Publisher


class NoPublisher(Publisher):
    """Publishes nothing to Kafka."""

    def start(self, transactional_lane: int) -> None:
        """Do nothing: no producer is needed."""

    def read_markers(self, lanes: Collection[int]) -> dict[int, Marker | None]:
        """Return no markers, which is right for new lanes."""
        return dict.fromkeys(lanes)

    def publish(self, markers: Mapping[int, Marker], rows: Iterable[OutboxRow]) -> None:
        """Do nothing with the rows."""


class PlainPublisher(NoPublisher):
    """Publishes without transaction and marker: idempotent, at least once. For new lanes."""

    def start(self, transactional_lane: int) -> None:
        """Create a producer like the relay's, without a transactional id."""
        config = {k: v for k, v in self._config.items() if not k.startswith("transaction")}
        self._producer = Producer(config, logger=self._log)
        self._caller = ThreadPoolExecutor(1)

    def publish(self, markers: Mapping[int, Marker], rows: Iterable[OutboxRow]) -> None:
        """Send the rows and wait for all delivery reports."""
        self.send_records(rows)
