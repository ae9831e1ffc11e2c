"""The peers: other ways to bring orders to Kafka, measured as ours are, on the same servers.

An order counts from the moment that a read_committed reader has it. Nothing of a peer without
transactions is ever held back from such a reader, so it is a plain one to them. Each measurement has
topics of its own, each peer a database of its own: several may live on the same servers at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import psycopg
from psycopg_pool import ConnectionPool

from bench.peers.orders import NotDelivered, Order, new_order, pace, reading
from bench.peers.places import new_topic
from orchestrator.embedded import Servers

__all__ = ["MeasuredPeer", "NotDelivered", "OutboxPeer", "Peer"]

WARM_S = 2.0  # of a measurement of latency, not counted
TRANSACTION_ROWS = 1000  # rows a transaction, of those that wait for a drain

SENDERS = 4  # sessions that insert at a steady rate


class Peer(Protocol):
    """Something that brings orders to Kafka, ready to be measured."""

    name: str

    def drain(self, rows: int) -> float:
        """Return orders a second with all of them waiting, from the first tenth read to the last.

        Raises NotDelivered.
        """
        ...

    def latencies(self, rate: int, seconds: float) -> list[float]:
        """Return ms from when an order was due to when it was read, one order a transaction.

        Open-loop: an order that is sent late counts from when it should have been sent.
        Raises NotDelivered.
        """
        ...


class MeasuredPeer(ABC):
    """The two measurements, the same for all; a peer says how orders go in and what is run."""

    name: str
    more_topics: tuple[str, ...] = ()  # besides the output topic: endings to its name

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
            self._running(topic),
            self._sending(topic) as send,
        ):
            send(new_order())
            arrivals.wait_for(1)  # it is at work
            pace(rate, rows, send)
            arrivals.wait_for(1 + rows)
        arrivals.check(1 + rows)
        return arrivals.latencies_ms()[1 + warm :]

    @abstractmethod
    def _fill(self, topic: str, orders: Sequence[Order]) -> None:
        """Let the orders wait for the peer."""

    @abstractmethod
    def _running(self, topic: str) -> AbstractContextManager[None]:
        """Run the peer while the block runs; before and after it, the peer does nothing at all."""

    @abstractmethod
    def _sending(self, topic: str) -> AbstractContextManager[Callable[[Order], None]]:
        """Give a function that sends one order and does not wait for it."""


class OutboxPeer(MeasuredPeer):
    """A peer that finds its orders in a table, put there by `insert`: topic, key, value."""

    insert: bytes

    def __init__(self, servers: Servers, database_url: str) -> None:
        super().__init__(servers)
        self.database_url = database_url

    def _fill(self, topic: str, orders: Sequence[Order]) -> None:
        rows = [(topic, *order) for order in orders]
        with psycopg.connect(self.database_url, autocommit=True) as conn, conn.cursor() as cursor:
            for start in range(0, len(rows), TRANSACTION_ROWS):
                with conn.transaction():
                    cursor.executemany(self.insert, rows[start : start + TRANSACTION_ROWS])

    @contextmanager
    def _sending(self, topic: str) -> Iterator[Callable[[Order], None]]:
        """Insert from several sessions: a slow commit must not hold back the orders after it."""
        settings = {"autocommit": True, "prepare_threshold": 0}
        inserted: list[Future[None]] = []
        with (
            ConnectionPool(self.database_url, kwargs=settings, min_size=SENDERS) as sessions,
            ThreadPoolExecutor(SENDERS, thread_name_prefix="sender") as threads,
        ):

            def insert(order: Order) -> None:
                with sessions.connection() as conn:
                    conn.execute(self.insert, (topic, *order))

            sessions.wait()
            yield lambda order: inserted.append(threads.submit(insert, order))
        for future in inserted:
            future.result()
