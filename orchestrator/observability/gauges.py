"""Gauges of topics: polled in the background, never inside a scrape. So is the check of the brokers.

Each process reports only what it owns (its lanes, its partitions), so that sums over all processes
count nothing twice. What cannot be read is absent, or NaN, rather than stale.
"""

import logging
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

log = logging.getLogger(__name__)

NO_COMMANDS = (
    "all that is in INPUT_TOPIC is read; if commands were sent, they went to another topic, or to other"
    " brokers than KAFKA_BOOTSTRAP_SERVERS"
)


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


class QuietInput:
    """Says once that nothing is left to read: where a first command was sent and does not come."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._is_told = False

    def look(self, has_accepted: bool, offsets: Mapping[int, int], ends: Mapping[int, int]) -> None:
        """Look whether all of it is read. has_accepted: anything, since the start."""
        is_read = bool(ends) and offsets == ends
        if is_read and not has_accepted and not self._is_told:
            self._is_told = True
            log.info(
                "no commands",
                extra={"topic": self._topic, "offsets": dict(offsets), "advice": NO_COMMANDS},
            )


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
    quiet = QuietInput(settings.input_topic)

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
        quiet.look(metrics.has_accepted, offsets, ends)

    with poll_in_background(poll, timings):
        yield
