"""`demo`: shows exactly-once. Sends commands, kills both processes meanwhile, audits, measures.

Three parts on one installation, all in the final audit: under SIGKILL; at full speed, with the input
filled beforehand; at 100 commands a second, for the latency (the first 10 s not counted).
"""

from orchestrator.embedded import embedded_servers  # before rich: it names the missing extra

# isort: split

import argparse
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import NamedTuple
from uuid import uuid4

import msgspec
from confluent_kafka import Message, Producer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from orchestrator.cli.exit_codes import CHECK_FAILED, OK
from orchestrator.config.settings import Settings, read_settings
from orchestrator.contract.messages import Command, DeployOrder
from orchestrator.kafka.reader import tail_topic
from orchestrator.operations.audit.audit import audit
from orchestrator.runtime.database import open_session
from orchestrator.runtime.setup import set_up
from orchestrator.runtime.supervisor import CHILD_SHUTDOWN_S, Child
from outbox import Connection, scalar

COMMANDS_PER_SCENARIO = 10  # so that there is an order to keep
KILL_EVERY_S = 1.5  # a process is at work again about half a second after its start
CALM_RATE, CALM_COMMANDS = 100, 1500  # commands a second, and how many
WARM_UP = 1000  # of them; a broker that just started compiles its transaction path for the first 10 s
PROGRESS_S = 60.0  # without a new order for so long, something is lost, and the audit shows it
DELIVERIES_POLL_S = 0.02


@dataclass(frozen=True)
class Figures:
    """The demo's result: rates in commands a second, latency in ms from produce to read."""

    sent: int
    accepted: int
    deployed: int
    published: int
    lost: int
    duplicated: int
    reordered: int
    kills: int
    rate_under_kills: int
    rate: int
    latency_p50_ms: float
    latency_p99_ms: float

    @property
    def passed(self) -> bool:
        """Return whether all commands are deployed, exactly once and in order."""
        return not (self.lost or self.duplicated or self.reordered)


def run_demo(options: argparse.Namespace) -> int:
    """Run the demo on embedded servers in a temporary directory."""
    with (
        TemporaryDirectory(prefix="orchestrator-demo-") as directory,
        embedded_servers(Path(directory)) as servers,
    ):
        os.environ |= {
            **servers.environ,
            "METRICS_PORT": "0",
            "LOG_LEVEL": "ERROR",
            # A static member (KIP-345) goes on at once after kill -9, without the session time-out.
            "KAFKA_CONFIG_GROUP_INSTANCE_ID": "demo",
        }
        figures = demonstrate(read_settings(os.environ), options.commands, options.kills)
    print_figures(figures, options.json)
    return OK if figures.passed else CHECK_FAILED


def demonstrate(settings: Settings, commands: int, kills: int) -> Figures:
    """Run the three parts and the audit. commands: of each of the first two parts."""
    set_up(settings)
    sender = Sender(settings, max(commands // COMMANDS_PER_SCENARIO, 1))
    children = [Child("consumer", 0), Child("relay", 0)]
    total = 2 * commands + CALM_COMMANDS
    with reading(settings) as deliveries, progress_bar(total, deliveries):
        started = time.time()
        with running(children):
            send_under_kills(sender, children, commands, kills)
            wait_for(deliveries, commands)
        rate_under_kills = commands / (time.time() - started)
        sender.send(commands)
        with running(children):
            wait_for(deliveries, 2 * commands)
            sender.send(CALM_COMMANDS, CALM_RATE)
            wait_for(deliveries, total)
    fast, calm = deliveries[commands : 2 * commands], deliveries[2 * commands + WARM_UP : total]
    latencies = quantiles([(one.read_at - one.sent_at) * 1000 for one in calm], n=100)
    with closing(open_session(settings, "orchestrator demo")) as conn:
        found = audit(conn, settings.kafka, settings.output_topic)
        return Figures(
            sent=sender.sent,
            accepted=found.accepted,
            deployed=found.deployed,
            published=found.published,
            lost=sender.sent - found.published + found.duplicated,
            duplicated=found.duplicated + max(found.accepted - sender.sent, 0),
            reordered=found.reordered + found.scattered + count_swapped(conn),
            kills=kills,
            rate_under_kills=round(rate_under_kills),
            rate=round(len(fast) / (fast[-1].read_at - fast[0].read_at)),
            latency_p50_ms=round(latencies[49], 1),
            latency_p99_ms=round(latencies[98], 1),
        )


class Sender:
    """Stands in for the API. Each scenario gets several commands, with a number in their URLs."""

    def __init__(self, settings: Settings, scenarios: int) -> None:
        self.sent = 0
        self._topic = settings.input_topic
        self._producer = Producer(
            {**settings.kafka, "enable.idempotence": True, "linger.ms": 1},
            logger=logging.getLogger("librdkafka"),
        )
        self._scenarios = [uuid4() for _ in range(scenarios)]

    def send(self, commands: int, rate: float | None = None) -> None:
        """Send commands, at once or at a rate per second, and wait until the brokers have them."""
        started = time.monotonic()
        for number in range(commands):
            if rate:
                time.sleep(max(started + number / rate - time.monotonic(), 0))
            self._send_one()
        self._producer.flush()

    def _send_one(self) -> None:
        scenario = self._scenarios[self.sent % len(self._scenarios)]
        command = Command(scenario, f"rtsp://demo:secret@camera.example/{self.sent}")
        self._producer.produce(self._topic, msgspec.json.encode(command), str(scenario).encode())
        self._producer.poll(0)
        self.sent += 1


def send_under_kills(sender: Sender, children: Sequence[Child], commands: int, kills: int) -> None:
    """Send in as many portions as there are kills; after each, kill consumer or relay in turn."""
    for turn in range(kills):
        sender.send(commands // kills)
        time.sleep(KILL_EVERY_S * (turn + 1) / kills)  # earlier and later in the work on a portion
        children[turn % 2].kill()
        children[turn % 2].start()
    sender.send(commands - sender.sent)


@contextmanager
def running(children: Sequence[Child]) -> Iterator[None]:
    """Run both processes while the block runs."""
    for child in children:
        child.start()
    try:
        yield
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait(time.monotonic() + CHILD_SHUTDOWN_S)


class Delivery(NamedTuple):
    """When a command was produced, as its worker's id tells, and when its order was read; Unix s."""

    sent_at: float
    read_at: float


@contextmanager
def reading(settings: Settings) -> Iterator[list[Delivery]]:
    """Read deploy orders as the Runner would, while the block runs; the given list grows."""
    deliveries: list[Delivery] = []
    decode = msgspec.json.Decoder(DeployOrder).decode

    def take(records: Sequence[Message]) -> None:
        now = time.time()
        deliveries.extend(
            Delivery((decode(record.value() or b"").worker_id.int >> 80) / 1000, now)
            for record in records
        )

    with tail_topic(settings.kafka, settings.output_topic, take):
        yield deliveries


def wait_for(deliveries: Sequence[Delivery], wanted: int) -> None:
    """Wait until so many orders were read, or for PROGRESS_S without a new one."""
    have, since = len(deliveries), time.monotonic()
    while have < wanted and time.monotonic() - since < PROGRESS_S:
        time.sleep(DELIVERIES_POLL_S)
        if len(deliveries) > have:
            have, since = len(deliveries), time.monotonic()


SWAPPED = """
    WITH numbered AS (
        SELECT scenario_uuid, id, substring(camera_url FROM '[0-9]+$')::int AS number
          FROM workers
    ), stepped AS (
        SELECT number, pg_catalog.lag(number) OVER (PARTITION BY scenario_uuid ORDER BY id) AS previous
          FROM numbered
    )
    SELECT count(*) FROM stepped WHERE number <= previous
"""


def count_swapped(conn: Connection) -> int:
    """Count the workers that were accepted out of the order in which they were sent."""
    return scalar(conn, int, SWAPPED)


@contextmanager
def progress_bar(total: int, deliveries: Sequence[Delivery]) -> Iterator[None]:
    """Show the orders read so far, on a terminal only."""
    columns = (TextColumn("deploy orders"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        done = Event()

        def update() -> None:
            while not done.wait(0.1):
                progress.update(task, completed=len(deliveries))

        Thread(target=update, daemon=True).start()
        try:
            yield
        finally:
            done.set()
            progress.update(task, completed=len(deliveries))


def print_figures(figures: Figures, as_json: bool) -> None:
    """Print the result on stdout."""
    console = Console()
    if as_json:
        console.print_json(json.dumps(asdict(figures)))
        return
    table = Table(title="exactly once" if figures.passed else "FAILED", show_header=False)
    for name, value in asdict(figures).items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    console.print(table)
