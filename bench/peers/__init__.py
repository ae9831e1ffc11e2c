"""The peers: other ways to publish orders to Kafka, measured like our relay, on the same servers.

An order counts when a read_committed reader has it. Records of a peer without transactions are visible
to such a reader at once. Each measurement has topics of its own, each peer a database of its own, so
several peers can use the same servers at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import psycopg
from psycopg_pool import ConnectionPool

from bench.peers.orders import NotDelivered, Order, new_order, pace, reading
from bench.peers.resources import new_topic
from orchestrator.embedded import Servers

__all__ = ["MeasuredPeer", "NotDelivered", "OutboxPeer", "Peer"]

WARM_S = 2.0  # of a measurement of latency, not counted
TRANSACTION_ROWS = 1000  # rows a transaction, of those that wait for a drain

SENDERS = 4  # sessions that insert at a steady rate


class Peer(Protocol):
    """Something that publishes orders to Kafka and can be measured."""

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
    """The two measurements, the same for all peers. A peer defines its input and its process."""

    name: str
    more_topics: tuple[str, ...] = ()  # besides the output topic: suffixes of its name

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
            arrivals.wait_for(1)  # the peer works
            pace(rate, rows, send)
            arrivals.wait_for(1 + rows)
        arrivals.check(1 + rows)
        return arrivals.latencies_ms()[1 + warm :]

    @abstractmethod
    def _fill(self, topic: str, orders: Sequence[Order]) -> None:
        """Write orders that the peer will find."""

    @abstractmethod
    def _running(self, topic: str) -> AbstractContextManager[None]:
        """Run the peer while the block runs. Before and after the block it does nothing."""

    @abstractmethod
    def _sending(self, topic: str) -> AbstractContextManager[Callable[[Order], None]]:
        """Yield a function that sends one order without waiting for it."""


class OutboxPeer(MeasuredPeer):
    """A peer that reads its orders from a table, filled by `insert`: topic, key, value."""

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
        """Insert from several sessions: a slow commit must not delay later orders."""
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
