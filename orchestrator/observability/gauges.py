"""Gauges of topics: polled in the background, never inside a scrape. So is the check of the brokers.

Each process reports only what it owns (its lanes, its partitions), so that sums over all processes
count nothing twice. What cannot be read is absent, or NaN, rather than stale.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event, Thread

from confluent_kafka import KafkaException

from orchestrator.config.settings import Settings
from orchestrator.config.timings import ProcessTimings
from orchestrator.kafka import topics
from orchestrator.observability.metrics import ConsumerMetrics
from outbox import error_text


@contextmanager
def poll_in_background(
    poll: Callable[[], None], timings: ProcessTimings, cost_factor: float = 0
) -> Iterator[None]:
    """Call `poll` every gauge_period_s while the block runs.

    cost_factor: pause for this multiple of the time that the poll took, at most gauge_max_pause_s: it
    bounds the cost of expensive polls.
    """
    stop = Event()

    def repeat() -> None:
        pause_s = 0.0
        while not stop.wait(pause_s):
            started = time.monotonic()
            poll()
            slow_s = min(cost_factor * (time.monotonic() - started), timings.gauge_max_pause_s)
            pause_s = max(timings.gauge_period_s, slow_s)

    Thread(target=repeat, name="gauges", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


class KafkaProbe:
    """Checks brokers and topics, for a process whose own clients are silent while idle."""

    def __init__(self, settings: Settings, wanted: Sequence[str]) -> None:
        self._admin = topics.Admin(settings.kafka)
        self._wanted = wanted
        self.last_error: str | None = None  # why the brokers do not answer
        self.unusable: Mapping[str, str] = {}  # topics that are missing or hidden, and what to do

    def check(self) -> None:
        """Note what is wrong."""
        try:
            self.unusable, self.last_error = topics.find_unusable(self._admin, self._wanted), None
        except KafkaException as error:
            self.last_error = error_text(error)


@contextmanager
def consumer_gauges(
    settings: Settings,
    positions: Callable[[], Mapping[int, int]],
    refused: Callable[[], Collection[int]],
    metrics: ConsumerMetrics,
    timings: ProcessTimings,
) -> Iterator[None]:
    """Keep what the consumer reports of its partitions: lag, position, how many are refused."""
    admin = topics.Admin(settings.kafka)

    def poll() -> None:
        offsets, waiting = positions(), refused()
        metrics.refused.set(len(waiting))
        metrics.position.clear()
        for partition in offsets.keys() - set(waiting):
            metrics.position.labels(str(partition)).set(offsets[partition])
        try:
            ends = topics.read_high_watermarks(admin, settings.input_topic, list(offsets))
        except KafkaException:
            ends = {}
        metrics.lag.clear()
        for partition, end in ends.items():
            metrics.lag.labels(str(partition)).set(max(end - offsets[partition], 0))

    with poll_in_background(poll, timings):
        yield
