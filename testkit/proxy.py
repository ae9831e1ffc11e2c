"""A TCP proxy in front of Postgres or Kafka that acts on single messages.

    with proxy(KafkaConversation, ("127.0.0.1", 9092), [Rule("EndTxn", cut_after, hit=2)]) as port:
        ...

A Kafka client connects to the address that the broker advertises, so that must be the proxy's.
"""

import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event, Lock, Thread

from testkit.wire_protocol import Conversation, Frame

SIZE = 65_536
ANY = None  # the name of every message
Address = tuple[str, int]
Action = Callable[["Connection", Frame], None]


@dataclass
class Rule:
    """Passes a message to `act`: the `hit`th of that name, or every one if hit is 0.

    name: see Frame. answers: the server's messages, not the client's. done: it has acted.
    """

    name: str | None
    act: Action
    hit: int = 1
    answers: bool = False
    done: Event = field(default_factory=Event)
    _seen: int = 0
    _lock: Lock = field(default_factory=Lock)

    def is_due(self, frame: Frame) -> bool:
        """Count a message; return whether the rule applies to it."""
        if frame.is_answer is not self.answers or self.name not in {ANY, frame.name}:
            return False
        with self._lock:
            self._seen += 1
            return self.hit in {0, self._seen}


# ---- actions on a message -------------------------------------------------------------------------


def cut_before(connection: "Connection", _frame: Frame) -> None:
    """End the connection: the message never arrives."""
    connection.cut()


def cut_after(connection: "Connection", frame: Frame) -> None:
    """End the connection for the sender only: the server acts on its message, the answer is lost."""
    connection.cut()
    connection.forward(frame)


def delay(seconds: float) -> Action:
    """Delay a message, and with it those that follow on its connection."""

    def act(connection: "Connection", frame: Frame) -> None:
        connection.ended.wait(seconds)
        connection.forward(frame)

    return act


def hold(until: Event) -> Action:
    """Hold a message back until the test releases it."""

    def act(connection: "Connection", frame: Frame) -> None:
        while not (until.wait(0.05) or connection.ended.is_set()):
            pass
        connection.forward(frame)

    return act


def swallow(_connection: "Connection", _frame: Frame) -> None:
    """Drop a message silently."""


def replay(server: Address, frame: Frame) -> bytes:
    """Send a recorded Kafka request on a connection of its own; return the answer."""
    with socket.create_connection(server, 10) as conn:
        conn.sendall(frame.data)
        size = conn.recv(4, socket.MSG_WAITALL)
        return size + conn.recv(struct.unpack(">i", size)[0], socket.MSG_WAITALL)


# ---- the proxy ------------------------------------------------------------------------------------


@contextmanager
def proxy(
    protocol: Callable[[], Conversation], server: Address, rules: Sequence[Rule], port: int = 0
) -> Iterator[int]:
    """Listen while the block runs; yield the port. The first rule that applies acts."""
    connections: list[Connection] = []

    def accept() -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client, _ = listener.accept()
                try:
                    upstream = socket.create_connection(server)
                except OSError:  # the server is away
                    client.close()
                    continue
                connection = Connection(client, upstream, protocol(), rules)
                connections.append(connection)
                connection.start()

    with socket.create_server(("127.0.0.1", port)) as listener:
        accepting = Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for connection in connections:
                connection.end()


class Connection:
    """One connection of a client, forwarded to the server and back, each in a thread."""

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        conversation: Conversation,
        rules: Sequence[Rule],
    ) -> None:
        for side in (client, server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client, self._server = client, server
        self._conversation = conversation
        self._rules = rules
        self._threads = [
            Thread(target=target, daemon=True) for target in (self._carry_requests, self._carry_answers)
        ]
        self._is_cut = False
        self.ended = Event()

    def start(self) -> None:
        """Start to forward."""
        for thread in self._threads:
            thread.start()

    def forward(self, frame: Frame) -> None:
        """Forward a message to its receiver."""
        with suppress(OSError):
            (self._client if frame.is_answer else self._server).sendall(frame.data)

    def cut(self) -> None:
        """End the connection for the client; the server may still finish what it has begun."""
        self._is_cut = True
        shut(self._client, socket.SHUT_RDWR)

    def end(self) -> None:
        """End the connection on both sides."""
        self.ended.set()
        for side in (self._client, self._server):
            shut(side, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for side in (self._client, self._server):
            side.close()

    def _carry_requests(self) -> None:
        with suppress(OSError):
            while not self._is_cut and (data := self._client.recv(SIZE)):
                for frame in self._conversation.requests(data):
                    if not self._is_cut:
                        self._deal_with(frame)
        shut(self._server, socket.SHUT_WR)

    def _carry_answers(self) -> None:
        """Continue to read when the client is gone, so that the server can finish."""
        with suppress(OSError):
            while data := self._server.recv(SIZE):
                for frame in self._conversation.answers(data):
                    if not self._is_cut:
                        self._deal_with(frame)
        shut(self._client, socket.SHUT_RDWR)

    def _deal_with(self, frame: Frame) -> None:
        due = [rule for rule in self._rules if rule.is_due(frame)]  # all of them count it
        if due:
            due[0].act(self, frame)
            due[0].done.set()
        else:
            self.forward(frame)


def shut(side: socket.socket, how: int) -> None:
    """Shut down one or both directions of a socket, from any thread."""
    with suppress(OSError):
        side.shutdown(how)
