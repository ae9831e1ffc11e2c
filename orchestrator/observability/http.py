"""The HTTP side: /metrics, /livez, /readyz, and 404 for all else; GET and HEAD, and 405 for all else.

Any client that reaches the port may ask. None may cost the process much, or keep a probe from its
answer. So there is one thread, a limit for connections and for what is read from each, and a deadline
for a whole request. Beyond the limit the oldest connection is closed for a new one: a probe sends its
request at once, and clients that are slow on purpose are the oldest.
"""

import asyncio
import json
import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http import HTTPStatus
from threading import Thread

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from orchestrator.observability.health import Health
from orchestrator.observability.masking import mask_value, without_addresses

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
MAX_HEADERS = 8192  # bytes
REQUEST_S = 5.0  # for the whole of a request and its answer
ACCEPT_PAUSE_S = 0.005  # at most 200 connections a second: a flood costs 3 % of a core
BACKLOG = 512  # connections that wait for that

METHODS = ("GET", "HEAD")
PATHS = ("/metrics", "/livez", "/readyz")


@contextmanager
def serve_http(host: str, port: int, registry: CollectorRegistry, health: Health) -> Iterator[int]:
    """Serve while the block runs; give the port, a free one for 0. Raises OSError if it is taken."""
    with listen(host, port) as listener:
        server, loop = Server(listener, registry, health), asyncio.new_event_loop()
        serving = loop.create_task(server.serve())

        def run() -> None:
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(serving)
            loop.close()

        thread = Thread(target=run, name="http", daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            loop.call_soon_threadsafe(serving.cancel)
            thread.join()


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address; `::` is every one, of IPv4, too, where the system can. Raises OSError."""
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"  # noqa: S104  # a system without IPv6
    family, *_, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.create_server(address, family=family, dualstack_ipv6=host == "::", backlog=BACKLOG)


class Server:
    """Answers requests, one a connection."""

    def __init__(self, listener: socket.socket, registry: CollectorRegistry, health: Health) -> None:
        self._listener = listener
        self._registry = registry
        self._health = health
        self._connections: dict[asyncio.Task[None], socket.socket] = {}  # the oldest first

    async def serve(self) -> None:
        """Accept connections until the task is cancelled."""
        self._listener.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._wait_for_client()
                with suppress(OSError):  # the client is gone, or no descriptor is left
                    client, _ = self._listener.accept()
                    self._make_room()
                    connection = loop.create_task(self._answer_one(client))
                    self._connections[connection] = client
                    connection.add_done_callback(self._closed)
                await asyncio.sleep(ACCEPT_PAUSE_S)
        finally:
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _wait_for_client(self) -> None:
        """Wait for a connection; loop.sock_accept() would lose one that comes when it is cancelled."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._listener, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._listener)

    def _make_room(self) -> None:
        """Close the oldest connection for a new one, if there are too many."""
        if len(self._connections) >= MAX_CONNECTIONS:
            next(iter(self._connections)).cancel()

    def _closed(self, connection: asyncio.Task[None]) -> None:
        self._connections.pop(connection).close()  # here: a task that never ran closes nothing
        if not connection.cancelled() and (bug := connection.exception()):
            log.error("request failed", exc_info=bug)

    async def _answer_one(self, client: socket.socket) -> None:
        """Read a request and answer it; close a connection that breaks off or takes too long."""
        loop = asyncio.get_running_loop()
        with suppress(OSError, TimeoutError):
            client.setblocking(False)
            async with asyncio.timeout(REQUEST_S):
                head = bytearray()
                while not (is_complete(head) or len(head) > MAX_HEADERS):
                    if not (more := await loop.sock_recv(client, MAX_HEADERS)):
                        return
                    head += more
                await loop.sock_sendall(client, self._respond(bytes(head)))
                client.shutdown(socket.SHUT_WR)
                # Closed before the client has closed, it could lose the answer.
                await loop.sock_recv(client, MAX_HEADERS)

    def _respond(self, head: bytes) -> bytes:
        """Return the answer to a request, whose headers mean nothing to us."""
        if len(head) > MAX_HEADERS:
            return encode_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        match head.partition(b"\n")[0].decode("latin-1").split():
            case [("GET" | "HEAD") as method, target, "HTTP/1.0" | "HTTP/1.1"]:
                answer = self._answer(target.partition("?")[0])
                return answer if method == "GET" else answer[: answer.index(END) + len(END)]
            case [_, _, "HTTP/1.0" | "HTTP/1.1"]:
                return encode_error(HTTPStatus.METHOD_NOT_ALLOWED)
            case [_, _, version] if version.startswith("HTTP/"):
                return encode_error(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
            case _:
                return encode_error(HTTPStatus.BAD_REQUEST)

    def _answer(self, path: str) -> bytes:
        match path:
            case "/metrics":
                metrics = generate_latest(self._registry)
                return encode_answer(HTTPStatus.OK, CONTENT_TYPE_PLAIN_0_0_4, metrics)
            case "/livez":
                stalled = self._health.stalled_loops()
                return self._answer_health(not stalled, {"stalled": stalled})
            case "/readyz":
                checks, notes = self._health.run_checks(), self._health.run_notes()
                ready = not any(checks.values())
                body: dict[str, object] = {"ready": ready, "checks": shown(checks)}
                return self._answer_health(ready, body | ({"notes": shown(notes)} if notes else {}))
            case _:
                return encode_error(HTTPStatus.NOT_FOUND)

    def _answer_health(self, good: bool, body: dict[str, object]) -> bytes:
        beside = {"beside": self._health.beside} if self._health.beside else {}
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        return encode_json(status, body | beside)


def shown(texts: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return what is wrong as any client may read it; the log and `status` say where it is."""
    return {name: without_addresses(text) for name, text in texts.items()}


END = b"\r\n\r\n"  # of the headers


def is_complete(head: bytes | bytearray) -> bool:
    """Return whether all headers of a request are there."""
    return END in head or b"\n\n" in head


def encode_error(status: HTTPStatus) -> bytes:
    """Return an answer that says what could be asked."""
    allow = f"Allow: {', '.join(METHODS)}\r\n" if status is HTTPStatus.METHOD_NOT_ALLOWED else ""
    return encode_json(status, {"error": status.phrase, "methods": METHODS, "paths": PATHS}, allow)


def encode_json(status: HTTPStatus, body: dict[str, object], headers: str = "") -> bytes:
    """Return an answer in JSON, masked."""
    text = json.dumps(mask_value(body)) + "\n"
    return encode_answer(status, "application/json", text.encode(), headers)


def encode_answer(status: HTTPStatus, kind: str, body: bytes, headers: str = "") -> bytes:
    """Return an answer, after which the connection is closed."""
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nDate: {formatdate(usegmt=True)}\r\n"
        f"Connection: close\r\n{headers}\r\n"
    )
    return head.encode() + body
