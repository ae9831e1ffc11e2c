"""A TCP proxy in front of Postgres that cuts a connection at a message of the client's.

https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Lock, Thread

SIZE = 65_536


@dataclass
class Cut:
    """Ends the connection whose client sends bytes that match `pattern`, at the `hit`th time.

    forward=True: the server gets them and acts on them, the client never sees the answer. False: the
    server never gets them. done: it has happened.
    """

    pattern: re.Pattern[bytes]
    forward: bool
    hit: int = 1
    done: bool = False
    _lock: Lock = field(default_factory=Lock)

    def is_due(self, data: bytes) -> bool:
        """Say whether these bytes are to be the last ones."""
        with self._lock:
            if self.done or not self.pattern.search(data):
                return False
            self.hit -= 1
            self.done = self.hit == 0
            return self.done


@contextmanager
def proxy(host: str, port: int, cut: Cut) -> Iterator[int]:
    """Listen while the block runs; give the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=accept, args=[listener, (host, port), cut], daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def accept(listener: socket.socket, server: tuple[str, int], cut: Cut) -> None:
    """Serve every connection in threads of its own, until the listener is closed."""
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            Thread(target=serve, args=[client, server, cut], daemon=True).start()


def serve(client: socket.socket, server: tuple[str, int], cut: Cut) -> None:
    """Carry one connection until either side ends it or it is cut."""
    with client, socket.create_connection(server) as upstream:
        answers = Thread(target=carry_answers, args=[upstream, client], daemon=True)
        answers.start()
        with suppress(OSError):
            while data := client.recv(SIZE):
                if cut.is_due(data):
                    close(client)  # first: no answer may reach it
                    if cut.forward:
                        upstream.sendall(data)
                    break
                upstream.sendall(data)
        end(upstream)
        answers.join()


def carry_answers(upstream: socket.socket, client: socket.socket) -> None:
    """Carry the server's bytes; read on when the client is gone, so that the server can finish."""
    with suppress(OSError):
        while data := upstream.recv(SIZE):
            with suppress(OSError):
                client.sendall(data)
    close(client)


def end(upstream: socket.socket) -> None:
    """Tell the server that nothing more comes."""
    with suppress(OSError):
        upstream.shutdown(socket.SHUT_WR)


def close(client: socket.socket) -> None:
    """Let the client see the end of the connection, from either thread."""
    with suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
