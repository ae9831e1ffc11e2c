"""A broker that reports no brokers: one that was frozen is fenced, and answers so when it wakes.

librdkafka then forgets all brokers that it knew and has none to ask for others (its issue 5301): the
client says once that all brokers are down, and stands still for as long as it lives.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from threading import Event

import pytest

from orchestrator.kafka.reader import LastingReader
from testkit.eventually import eventually
from testkit.private_servers import wait_ready
from testkit.proxied import WiredKafka, led_through
from testkit.proxy import Connection, Rule
from testkit.system import System
from testkit.wire_protocol import Frame, without_brokers

OFTEN_REFRESHED = {"KAFKA_CONFIG_TOPIC_METADATA_REFRESH_INTERVAL_MS": "500"}
RESUMED_S = 45.0  # a request's time-out, back-off, a new session


class Forgetful:
    """Takes the brokers out of the next answer to Metadata while `due` is set."""

    def __init__(self) -> None:
        self.due = Event()

    def forward(self, connection: Connection, answer: Frame) -> None:
        """Forward an answer; without brokers if it is due."""
        if self.due.is_set() and answer.version >= 9 and (altered := without_brokers(answer)):
            self.due.clear()
            answer = altered
        connection.forward(answer)

    def forget(self) -> None:
        """Let a client forget all brokers."""
        self.due.set()
        eventually(lambda: not self.due.is_set(), 60)


@pytest.fixture
def forgetful() -> Forgetful:
    return Forgetful()


@pytest.fixture
def led(wired_lane: System, wired: WiredKafka, forgetful: Forgetful) -> Iterator[System]:
    """The installation, whose processes reach Kafka through a proxy that can forget the brokers."""
    with wired.proxied(Rule("Metadata", forgetful.forward, hit=0, answers=True)) as proxied:
        yield led_through(wired_lane, proxied, **OFTEN_REFRESHED)


def test_a_reader_goes_on_where_it_was(led: System, wired_lane: System, forgetful: Forgetful) -> None:
    topic, seen = led.settings.input_topic, list[tuple[int | None, int | None]]()
    with closing(LastingReader(led.settings.kafka, topic)) as reader:

        def has(records: int) -> Callable[[], bool]:
            def read() -> bool:
                found = [record for record in reader.consume(100, 0.1) if record.error() is None]
                seen.extend((record.partition(), record.offset()) for record in found)
                return len(seen) == records

            return read

        wired_lane.submit(10)
        eventually(has(10))
        for _ in range(4):  # the client that listed the partitions still asks, too
            forgetful.forget()
        wired_lane.submit(10)
        eventually(has(20))
    assert len(set(seen)) == 20


@pytest.mark.timeout(200)
@pytest.mark.parametrize("forgotten", range(2))
def test_consumer_and_relay_go_on(
    led: System, wired_lane: System, forgetful: Forgetful, forgotten: int
) -> None:
    through = {name: led.environ[name] for name in ("KAFKA_BOOTSTRAP_SERVERS", *OFTEN_REFRESHED)}
    processes = [wired_lane.start(name, **through) for name in ("consumer", "relay")]
    wired_lane.submit(20)
    wired_lane.check_exactly_once(20, RESUMED_S)
    for _ in range(3 * forgotten + 1):
        forgetful.forget()
    wired_lane.submit(20)
    wired_lane.check_exactly_once(40, RESUMED_S)
    wait_ready(*processes)
