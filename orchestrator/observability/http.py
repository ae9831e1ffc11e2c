"""The HTTP side: /metrics, /livez, /readyz, and 404 for all else; GET and HEAD, and 405 for all else.

prometheus_client's own server answers 200 on every path, which makes a bad probe look healthy.
"""

import json
import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from orchestrator.observability.health import Health
from orchestrator.observability.masking import mask_value

log = logging.getLogger(__name__)

HTTP_TIMEOUT_S = 5.0  # a client that sends nothing is disconnected
HTTP_STOP_POLL_S = 0.1  # how soon the end of the block is seen


METHODS = ("GET", "HEAD")
PATHS = ("/metrics", "/livez", "/readyz")


class Server(ThreadingHTTPServer):
    """A thread for each request; none of them keeps the process from ending."""

    daemon_threads = True

    def __init__(self, host: str, port: int, registry: CollectorRegistry, health: Health) -> None:
        """Listen. Raises OSError. http.server itself would ask DNS for the host's name: 11 s seen."""
        super().__init__((host, port), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listen(host, port)
        self.server_name, self.server_port = host, self.socket.getsockname()[1]
        self.registry, self.health = registry, health

    def handle_error(self, *_: object) -> None:
        """Log a bug instead of printing it on stderr; a client that disconnects or stalls is none."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            log.error("request failed", exc_info=error)


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address; `::` is every one, of IPv4, too, where the system can. Raises OSError."""
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"  # noqa: S104  # a system without IPv6
    family, *_, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.create_server(address, family=family, dualstack_ipv6=host == "::")


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server
    timeout = HTTP_TIMEOUT_S

    def do_GET(self) -> None:
        """Answer by path."""
        match self.path.partition("?")[0]:
            case "/metrics":
                metrics = generate_latest(self.server.registry)
                self._answer(200, CONTENT_TYPE_PLAIN_0_0_4, metrics)
            case "/livez":
                self._answer_livez(self.server.health)
            case "/readyz":
                self._answer_readyz(self.server.health)
            case _:
                self._answer_json(404, {"error": "no such path", "paths": PATHS})

    def do_HEAD(self) -> None:
        """Answer the same without a body."""
        self.do_GET()

    def _answer_livez(self, health: Health) -> None:
        stalled = health.stalled_loops()
        self._answer_json(503 if stalled else 200, {"stalled": stalled})

    def _answer_readyz(self, health: Health) -> None:
        checks = health.run_checks()
        failed = any(checks.values())
        answer: dict[str, object] = {"ready": not failed, "checks": checks}
        if notes := health.run_notes():
            answer["notes"] = notes
        self._answer_json(503 if failed else 200, answer)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no request, and other methods, which http.server calls 501."""
        status = 405 if code == 501 else code
        self._answer_json(status, {"error": message, "methods": METHODS, "paths": PATHS})

    def _answer_json(self, status: int, body: dict[str, object]) -> None:
        if beside := self.server.health.beside:
            body["beside"] = beside
        self._answer(status, "application/json", json.dumps(mask_value(body)).encode() + b"\n")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 405:
            self.send_header("Allow", ", ".join(METHODS))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: probes come every few seconds."""


@contextmanager
def serve_http(host: str, port: int, registry: CollectorRegistry, health: Health) -> Iterator[int]:
    """Serve while the block runs; give the port, a free one for 0. Raises OSError if it is taken."""
    with Server(host, port, registry, health) as server:
        Thread(target=server.serve_forever, args=(HTTP_STOP_POLL_S,), name="http", daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
