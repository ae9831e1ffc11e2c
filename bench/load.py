"""The load: fills topics and tables, and records when orders arrive."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import uuid4

import msgspec
from confluent_kafka import Message, Producer

from orchestrator.contract.messages import DeployOrder
from orchestrator.kafka.reader import tail_topic
from testkit.system import System

COMMANDS_PER_SCENARIO = 10
STALLED_S = 120.0  # without a new record, the measurement fails

FILL = """
    WITH fresh AS MATERIALIZED (
        SELECT number, uuidv7() AS worker_id,
               ('00000000-0000-4000-8000-' || lpad(to_hex(number / 10), 12, '0'))::uuid AS scenario,
               'rtsp://bench:secret@camera.example/' || number AS url
          FROM generate_series(1, %s) AS number
    ), accepted AS (
        INSERT INTO workers (worker_id, scenario_uuid, camera_url)
        SELECT worker_id, scenario, url FROM fresh ORDER BY number
    )
    INSERT INTO outbox (lane, topic, key, value, aggregate_id)
    SELECT (number / 10) %% (SELECT count(*) FROM outbox_lane), %s, convert_to(scenario::text, 'UTF8'),
           convert_to('{"worker_id":"' || worker_id || '","scenario_uuid":"' || scenario
                      || '","camera_url":"' || url || '"}', 'UTF8'),
           worker_id
      FROM fresh
     ORDER BY number
"""
PORTION = 100_000  # rows inserted at once


def fill_outbox(system: System, rows: int) -> None:
    """Insert pending workers and their outbox rows, ten for each key, directly in Postgres."""
    while rows > 0:
        system.query(FILL, min(rows, PORTION), system.settings.output_topic)
        rows -= PORTION
    system.query("VACUUM (ANALYZE) outbox, workers")


def fill_input(system: System, commands: int) -> None:
    """Write commands to the input topic, ten for each scenario, until the brokers have them."""
    with producing(system) as producer:
        for number in range(commands):
            if number % COMMANDS_PER_SCENARIO == 0:
                scenario = uuid4()
                key = str(scenario).encode()
            url = f"rtsp://bench:secret@camera.example/{number}"
            producer.produce(system.settings.input_topic, encode(scenario, url), key)
            if number % 1000 == 0:
                producer.poll(0)


def send_at(system: System, rate: int, seconds: float) -> None:
    """Send commands at a steady rate, each with its time of sending in the camera's URL."""
    with producing(system) as producer:
        began = time.perf_counter()
        for number in range(int(rate * seconds)):
            time.sleep(max(began + number / rate - time.perf_counter(), 0))
            scenario = uuid4()
            url = f"rtsp://bench:secret@camera.example/{time.time_ns()}"
            producer.produce(system.settings.input_topic, encode(scenario, url), str(scenario).encode())
            producer.poll(0)


def encode(scenario: object, url: str) -> bytes:
    """Return a command as the API writes it."""
    return msgspec.json.encode({"scenario_uuid": scenario, "camera_url": url})


@contextmanager
def producing(system: System) -> Iterator[Producer]:
    """Yield a producer like the API's; wait for all delivery reports at the end."""
    settings = {"linger.ms": 0, "queue.buffering.max.messages": 2_000_000}
    producer = Producer({**system.settings.kafka, **settings})
    yield producer
    if left := producer.flush(STALLED_S):
        raise TimeoutError(f"{left} commands were not acknowledged")


class Arrivals:
    """The orders that a read_committed Runner has read.

    keep: also keep the latency of each order, which costs more than counting.
    """

    def __init__(self, keep: bool) -> None:
        self._keep = keep
        self.curve: list[tuple[float, int]] = []  # Unix s, and how many by then
        self.latencies_ms: list[float] = []

    @property
    def count(self) -> int:
        """The number of orders that have arrived."""
        return self.curve[-1][1] if self.curve else 0

    def note(self, records: Sequence[Message]) -> None:
        """Add the records of one poll."""
        now = time.time_ns()
        self.curve.append((now / 1e9, self.count + len(records)))
        if self._keep:
            for record in records:
                url = ORDER.decode(record.value() or b"").camera_url
                self.latencies_ms.append((now - int(url.rpartition("/")[2])) / 1e6)

    def wait_for(self, records: int) -> None:
        """Wait until this number has arrived. Raises TimeoutError."""
        have, since = self.count, time.monotonic()
        while self.count < records:
            time.sleep(0.005)
            if self.count > have:
                have, since = self.count, time.monotonic()
            elif time.monotonic() - since > STALLED_S:
                raise TimeoutError(f"{self.count} of {records} orders arrived")

    def rate(self, records: int) -> float:
        """Return records a second after the first tenth, which leaves the start out."""
        began, before = next(point for point in self.curve if point[1] >= records / 10)
        ended, after = next(point for point in self.curve if point[1] >= records)
        return (after - before) / (ended - began)


ORDER = msgspec.json.Decoder(DeployOrder)


@contextmanager
def reading(system: System, keep: bool = False) -> Iterator[Arrivals]:
    """Read the output topic as the Runner would, while the block runs."""
    arrivals = Arrivals(keep)
    with tail_topic(system.settings.kafka, system.settings.output_topic, arrivals.note):
        yield arrivals
