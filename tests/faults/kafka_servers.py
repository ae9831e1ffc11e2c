"""Brokers of a test's own, and a steady stream of commands to disturb."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from uuid import UUID, uuid4

import msgspec
from confluent_kafka import KafkaError, Message, Producer

from orchestrator.cli.demo import count_swapped
from orchestrator.embedded import EmbeddedKafka
from testkit.containers import TEST_KAFKA_VERSION
from testkit.eventually import eventually
from testkit.private_servers import BACK_S, answer, pause, wake
from testkit.servers import server_directory
from testkit.system import Running, System

SCENARIOS = 100  # of a stream: every lane and partition gets some
FLUSH_S = 120  # the client repeats a request that a frozen broker swallowed after 60 s
BAD_EVERY = 50  # a record that is no command, after so many that are


@contextmanager
def own_kafka(
    properties: Mapping[str, str] = {},
    port: int | None = None,
    version: str = TEST_KAFKA_VERSION,
) -> Iterator[EmbeddedKafka]:
    """Run a broker that a test may harm."""
    with server_directory() as directory:
        kafka = EmbeddedKafka(directory / "kafka", port=port, version=version, properties=properties)
        try:
            kafka.start()
            yield kafka
        finally:
            kafka.kill()


@contextmanager
def paused(kafka: EmbeddedKafka) -> Iterator[None]:
    """Freeze a broker while the block runs: connections stay open and nothing answers."""
    pause(kafka.pid)
    try:
        yield
    finally:
        wake(kafka.pid)


def liveness_over(seconds: float, processes: Sequence[Running]) -> set[int]:
    """Return what /livez answered in so many seconds."""
    until, seen = time.monotonic() + seconds, set[int]()

    def is_over() -> bool:
        seen.update(answer(process, "livez") for process in processes)
        return time.monotonic() > until

    eventually(is_over, seconds + 10)
    return seen


# ---- commands that keep coming --------------------------------------------------------------------


@dataclass
class Stream:
    """Commands of a few scenarios, numbered in the order of each; now and then an invalid command."""

    system: System
    sent: int = 0
    bad: int = 0
    _failure: KafkaError | None = None

    def run(self, stop: Event, rate: float) -> None:
        """Send so many a second until `stop` is set; wait for the brokers' acknowledgement."""
        producer = Producer(
            {
                **self.system.settings.kafka,
                "enable.idempotence": True,  # a repeated request doubles no command
                "message.timeout.ms": 600_000,
                "topic.metadata.refresh.interval.ms": 500,
                "linger.ms": 1,
                "log_level": 0,
                "on_delivery": self._note,
            }
        )
        topic, scenarios = self.system.settings.input_topic, [uuid4() for _ in range(SCENARIOS)]
        started = time.monotonic()
        while not stop.is_set():
            while self.sent < (time.monotonic() - started) * rate:
                scenario = scenarios[self.sent % SCENARIOS]
                producer.produce(topic, command(scenario, self.sent), str(scenario).encode())
                self.sent += 1
                if self.sent % BAD_EVERY == 0:
                    producer.produce(topic, b"no command", str(scenario).encode())
                    self.bad += 1
            producer.poll(0.01)
        assert producer.flush(FLUSH_S) == 0

    def check(self, timeout: float = BACK_S) -> None:
        """See that each was accepted and delivered once and in order, or is a dead letter."""
        assert self._failure is None, self._failure
        self.system.check_exactly_once(self.sent, timeout)
        with closing(self.system.connect()) as conn:
            assert count_swapped(conn) == 0, self._places()
        letters = self.system.read(self.system.settings.dead_letter_topic)
        assert len(letters) == self.bad

    def _places(self) -> dict[bytes, set[int | None]]:
        """Return where the commands of each scenario are: order is promised within a partition."""
        places = defaultdict[bytes, set[int | None]](set)
        for record in self.system.read(self.system.settings.input_topic):
            places[record.key() or b""].add(record.partition())
        return places

    def deployed(self) -> int:
        """Count the workers that are deployed by now."""
        return self.system.statuses().get("deployed", 0)

    def wait_for_progress(self, timeout: float = BACK_S) -> None:
        """Wait until a good number more of them are deployed."""
        wanted = self.deployed() + 50
        eventually(lambda: self.deployed() >= wanted, timeout)

    def _note(self, error: KafkaError | None, _message: Message) -> None:
        self._failure = self._failure or error


def command(scenario: UUID, number: int) -> bytes:
    """Return a valid command that carries its number."""
    url = f"rtsp://user:pw@camera/{number}"
    return msgspec.json.encode({"scenario_uuid": str(scenario), "camera_url": url})


@contextmanager
def stream(system: System, rate: float = 200) -> Iterator[Stream]:
    """Send commands while the block runs."""
    made, stop = Stream(system), Event()
    sender = Thread(target=made.run, args=[stop, rate])
    sender.start()
    try:
        yield made
    finally:
        stop.set()
        sender.join()
