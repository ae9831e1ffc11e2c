"""Orders: created, sent at a steady rate, and read."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from uuid import uuid4

import msgspec
from confluent_kafka import Message

from orchestrator.contract.messages import DeployOrder, encode_order, worker_id
from orchestrator.embedded import Servers
from orchestrator.kafka.reader import tail_topic

STALLED_S = 60.0  # without a new order, the measurement fails
POLL_S = 0.02


class NotDelivered(Exception):
    """Orders were lost or came twice: the figures would mean nothing."""


class Order(NamedTuple):
    """A record of the output topic."""

    key: str
    value: str


def new_order(due_ns: int | None = None) -> Order:
    """Create an order with a scenario of its own, due at that time (Unix ns) or now.

    The time is in the camera's URL, so that the reader knows how long the order took.
    """
    scenario, at_ns = uuid4(), due_ns or time.time_ns()
    worker = worker_id(uuid4(), 0, 0, at_ns // 1_000_000)  # of no record, but in the order of time
    url = f"rtsp://bench:secret@camera.example/{at_ns}"
    return Order(str(scenario), encode_order(DeployOrder(worker, scenario, url)).decode())


def pace(rate: int, rows: int, send: Callable[[Order], None]) -> None:
    """Send `rows` orders, `rate` a second, each at its due time. `send` must not block."""
    began_ns = time.time_ns()
    for number in range(rows):
        due_ns = began_ns + number * 1_000_000_000 // rate
        time.sleep(max(due_ns - time.time_ns(), 0) / 1e9)
        send(new_order(due_ns))


class Arrivals:
    """The orders that were read, with times."""

    def __init__(self) -> None:
        self._values: list[bytes] = []
        self._polls: list[tuple[int, int]] = []  # Unix ns, and how many had arrived by then

    def note(self, records: Sequence[Message]) -> None:
        """Add the records of one poll."""
        self._polls.append((time.time_ns(), len(self._values) + len(records)))
        self._values.extend(record.value() or b"" for record in records)

    def wait_for(self, rows: int) -> None:
        """Wait until this number has arrived. Raises NotDelivered."""
        have, since = len(self._values), time.monotonic()
        while have < rows:
            time.sleep(POLL_S)
            if len(self._values) > have:
                have, since = len(self._values), time.monotonic()
            elif time.monotonic() - since > STALLED_S:
                raise NotDelivered(f"{have} of {rows} orders arrived")

    def check(self, rows: int) -> None:
        """Check that this number arrived, none twice. Raises NotDelivered."""
        different = len({ORDER.decode(value).scenario_uuid for value in self._values})
        if not different == len(self._values) == rows:
            raise NotDelivered(f"{different} of {rows} orders arrived, in {len(self._values)} records")

    def rate(self, rows: int) -> float:
        """Return orders a second from the first tenth of them to the last. Raises NotDelivered."""
        began_ns, before = next(poll for poll in self._polls if poll[1] >= rows / 10)
        ended_ns, after = self._polls[-1]
        if after == before:
            raise NotDelivered(f"{rows} orders arrived at once: too few for a rate")
        return (after - before) / (ended_ns - began_ns) * 1e9

    def latencies_ms(self) -> list[float]:
        """Return how long each order took, ms, in the order in which they were due."""
        timed, before = [], 0
        for at_ns, after in self._polls:
            for value in self._values[before:after]:
                due_ns = int(ORDER.decode(value).camera_url.rpartition("/")[2])
                timed.append((due_ns, (at_ns - due_ns) / 1e6))
            before = after
        return [latency for _, latency in sorted(timed)]


ORDER = msgspec.json.Decoder(DeployOrder)


@contextmanager
def reading(servers: Servers, topic: str) -> Iterator[Arrivals]:
    """Read a topic as the Runner would, while the block runs."""
    arrivals = Arrivals()
    with tail_topic({"bootstrap.servers": servers.bootstrap_servers}, topic, arrivals.note):
        yield arrivals
