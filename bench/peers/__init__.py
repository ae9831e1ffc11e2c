"""The peers: other ways from Postgres to Kafka, on the same servers, with the same orders, read alike.

What is counted: a record is there when a read_committed reader that polls all the time has it. For
the peers without transactions that is a plain reader: nothing of theirs is ever held back from it.
Each measurement has topics of its own, each peer a database of its own, so several peers may live on
the same servers at once.
"""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from threading import Event, Thread
from typing import NamedTuple, Protocol, cast
from uuid import uuid4

import msgspec
import psycopg
from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, not in its __all__
    AdminClient,
    NewTopic,
)
from psycopg import sql
from psycopg.conninfo import make_conninfo

from orchestrator.embedded import Servers
from orchestrator.messages import DeployOrder, encode_order
from orchestrator.reading import open_reader
from orchestrator.topics import Admin, read_beginnings
from tests.eventually import eventually
from tests.system import PARTITIONS

TRANSACTION_ROWS = 1000  # rows a transaction, of those that wait for a drain
WARM_S = 2.0  # of a measurement of latency, not counted
PATIENCE_S = 60.0  # without a new record; then something is broken
LATE_S = 1.0  # a sender that ends so far behind could not keep the rate: it measured itself
LOOK_S = 0.02


class Peer(Protocol):
    """Something that brings orders to Kafka, ready to be measured."""

    name: str

    def drain(self, rows: int) -> float:
        """Return orders a second with all of them waiting, from the first tenth read to the last.

        Raises NotDelivered.
        """
        ...

    def latencies(self, rate: int, seconds: float) -> list[float]:
        """Return ms from the time an order is due to the time it is read, one order a transaction.

        The sender is open-loop: an order's time is when it was to be sent, even if it was sent later.
        Raises NotDelivered.
        """
        ...


class NotDelivered(Exception):
    """Orders were lost, came twice, or could not be sent in time: the figure would mean nothing."""


class MeasuredPeer(ABC):
    """The two measurements, the same for all; a peer says how orders go in and what runs meanwhile."""

    name: str
    more_topics: tuple[str, ...] = ()  # besides the output topic: its name with these endings

    def __init__(self, servers: Servers) -> None:
        self.servers = servers

    def drain(self, rows: int) -> float:
        """See Peer."""
        with new_topic(self.servers, self.more_topics) as topic:
            self._fill(topic, [new_order() for _ in range(rows)])
            with reading(self.servers, topic) as arrivals, self._running(topic):
                arrivals.wait_for(rows)
            arrivals.check(rows)
        return arrivals.rate(rows)

    def latencies(self, rate: int, seconds: float) -> list[float]:
        """See Peer."""
        rows, warm = int(rate * (WARM_S + seconds)), int(rate * WARM_S)
        with (
            new_topic(self.servers, self.more_topics) as topic,
            reading(self.servers, topic) as arrivals,
        ):
            with self._running(topic), self._sending(topic) as send:
                send(new_order())
                arrivals.wait_for(1)  # started
                pace(rate, rows, send)
                arrivals.wait_for(1 + rows)
            arrivals.check(1 + rows)
        return arrivals.latencies_ms()[1 + warm :]

    @abstractmethod
    def _fill(self, topic: str, orders: Sequence["Order"]) -> None:
        """Let the orders wait, whether or not the peer runs."""

    @abstractmethod
    def _running(self, topic: str) -> AbstractContextManager[None]:
        """Run the peer while the block runs; outside of it, nothing moves."""

    @abstractmethod
    def _sending(self, topic: str) -> AbstractContextManager[Callable[["Order"], None]]:
        """Give a function that sends one order and makes it last."""


# ---- orders, as the Runner gets them ----------------------------------------------------------------


class Order(NamedTuple):
    """A record of the output topic."""

    key: str
    value: str


def new_order(due_ns: int | None = None) -> Order:
    """Make an order for a scenario of its own that carries its time, Unix ns, in the camera's URL."""
    scenario, time_ns = uuid4(), time.time_ns() if due_ns is None else due_ns
    order = DeployOrder(uuid4(), scenario, f"rtsp://bench:secret@camera.example/{time_ns}")
    return Order(str(scenario), encode_order(order).decode())


ORDER = msgspec.json.Decoder(DeployOrder)


def pace(rate: int, rows: int, send: Callable[[Order], None]) -> None:
    """Send so many orders at a steady rate, each with the time at which it is due.

    Raises NotDelivered if sending itself cannot keep the rate.
    """
    began, late_s = time.time_ns(), 0.0
    for number in range(rows):
        due_ns = began + number * 1_000_000_000 // rate
        late_s = (time.time_ns() - due_ns) / 1e9
        time.sleep(max(-late_s, 0))
        send(new_order(due_ns))
    if late_s > LATE_S:
        raise NotDelivered(f"{rate} a second are too many for one sender: {late_s:.1f} s late")


# ---- the reader -----------------------------------------------------------------------------------


class Arrivals:
    """What the reader has read, and when."""

    def __init__(self) -> None:
        self._values: list[bytes] = []
        self._looks: list[tuple[int, int]] = []  # Unix ns, and how many had come by then

    def note(self, values: Sequence[bytes]) -> None:
        """Take what has come with one look."""
        self._looks.append((time.time_ns(), len(self._values) + len(values)))
        self._values.extend(values)

    def wait_for(self, rows: int) -> None:
        """Wait until so many have come. Raises NotDelivered."""
        have, since = len(self._values), time.monotonic()
        while have < rows:
            time.sleep(LOOK_S)
            if len(self._values) > have:
                have, since = len(self._values), time.monotonic()
            elif time.monotonic() - since > PATIENCE_S:
                raise NotDelivered(f"{have} of {rows} orders came")

    def check(self, rows: int) -> None:
        """See that so many came, and none twice. Raises NotDelivered."""
        different = len({ORDER.decode(value).scenario_uuid for value in self._values})
        if not different == len(self._values) == rows:
            raise NotDelivered(f"{different} of {rows} orders came, in {len(self._values)} records")

    def rate(self, rows: int) -> float:
        """Return records a second from the first tenth to the last."""
        began_ns, before = next(look for look in self._looks if look[1] >= rows / 10)
        ended_ns, after = self._looks[-1]
        if after == before:
            raise NotDelivered("all orders came at once: too few for a rate")
        return (after - before) / (ended_ns - began_ns) * 1e9

    def latencies_ms(self) -> list[float]:
        """Return how long each took to arrive, ms, in the order of the times they carry."""
        timed, before = [], 0
        for at_ns, after in self._looks:
            for value in self._values[before:after]:
                due_ns = int(ORDER.decode(value).camera_url.rpartition("/")[2])
                timed.append((due_ns, (at_ns - due_ns) / 1e6))
            before = after
        return [latency for _, latency in sorted(timed)]


@contextmanager
def reading(servers: Servers, topic: str) -> Iterator[Arrivals]:
    """Read a topic as the Runner would, while the block runs."""
    arrivals = Arrivals()
    kafka = {"bootstrap.servers": servers.bootstrap_servers}
    done = Event()

    def read() -> None:
        with closing(open_reader(kafka, topic)) as consumer:
            while not done.is_set():
                first = consumer.poll(LOOK_S)
                if first is not None:
                    records = [first, *consumer.consume(10_000, 0)]
                    arrivals.note([cast("bytes", r.value()) for r in records if r.error() is None])

    thread = Thread(target=read, daemon=True)
    thread.start()
    try:
        yield arrivals
    finally:
        done.set()
        thread.join()


# ---- a place of one's own -------------------------------------------------------------------------


@contextmanager
def new_topic(servers: Servers, endings: Sequence[str] = ()) -> Iterator[str]:
    """Make a topic like those of our own measurements, for the block, and more with these endings."""
    admin = Admin({"bootstrap.servers": servers.bootstrap_servers})
    topic = f"peer-{uuid4().hex[:12]}"
    names = [topic, *(topic + ending for ending in endings)]
    for made in admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names]).values():
        made.result()
    for name in names:
        eventually(partial(_has_leaders, admin, name), PATIENCE_S)
    try:
        yield topic
    finally:
        for gone in admin.delete_topics(names).values():
            gone.result()


def _has_leaders(admin: AdminClient, topic: str) -> bool:
    """Say whether the topic can be read; right after it was made, readers may find no partition."""
    try:
        return bool(read_beginnings(admin, topic, range(PARTITIONS)))
    except KafkaException:
        return False


@contextmanager
def new_database(servers: Servers, *statements: str) -> Iterator[str]:
    """Make a database with what the statements define, for the block; give its URL."""
    name = f"peer_{uuid4().hex[:12]}"
    url = make_conninfo(servers.database_url, dbname=name)
    with psycopg.connect(servers.database_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            with psycopg.connect(url, autocommit=True) as conn:
                for statement in statements:
                    conn.execute(statement.encode())
            yield url
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def insert_waiting(url: str, insert: str, rows: Sequence[Sequence[str]]) -> None:
    """Insert rows by one statement each, TRANSACTION_ROWS a transaction."""
    with psycopg.connect(url, autocommit=True) as conn:
        for start in range(0, len(rows), TRANSACTION_ROWS):
            with conn.transaction(), conn.cursor() as cursor:
                cursor.executemany(insert.encode(), rows[start : start + TRANSACTION_ROWS])


@contextmanager
def child(work: Callable[..., None], *arguments: object) -> Iterator[None]:
    """Run `work`, which never returns, in a process of its own while the block runs."""
    process = get_context("spawn").Process(target=_work, args=(work, *arguments), daemon=True)
    process.start()
    try:
        yield
        if process.exitcode is not None:
            raise NotDelivered(f"the peer's process ended with {process.exitcode}")
    finally:
        process.terminate()
        process.join()


def _work(work: Callable[..., None], *arguments: object) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    work(*arguments)


def _end_with_parent() -> None:
    """End the process when its parent is gone, even by SIGKILL."""
    if parent := parent_process():
        parent.join()
        os._exit(1)
