"""The HTTP side: /metrics, /livez, /readyz, and 404 for all else.

prometheus_client's own server answers 200 on every path, which makes a bad probe look healthy.
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from orchestrator.observability.health import Health
from orchestrator.observability.logs import mask_value

log = logging.getLogger(__name__)

HTTP_TIMEOUT_S = 5.0  # a client that sends nothing is disconnected
HTTP_STOP_POLL_S = 0.1  # how soon the end of the block is seen


class Server(ThreadingHTTPServer):
    """A thread for each request; none of them keeps the process from ending."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Log a bug instead of printing it on stderr; a client that disconnects or stalls is none."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            log.error("request failed", exc_info=error)


@contextmanager
def serve_http(host: str, port: int, registry: CollectorRegistry, health: Health) -> Iterator[int]:
    """Serve while the block runs; give the port, a free one for 0. Raises OSError if it is taken."""

    class Handler(BaseHTTPRequestHandler):
        timeout = HTTP_TIMEOUT_S

        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/metrics":
                    self._answer(200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry))
                case "/livez":
                    stalled = health.stalled_loops()
                    self._answer_json(503 if stalled else 200, {"stalled": stalled})
                case "/readyz":
                    checks = health.run_checks()
                    failed = any(checks.values())
                    answer: dict[str, object] = {"ready": not failed, "checks": checks}
                    if notes := health.run_notes():
                        answer["notes"] = notes
                    self._answer_json(503 if failed else 200, answer)
                case _:
                    self._answer_json(404, {"paths": ["/metrics", "/livez", "/readyz"]})

        def _answer_json(self, status: int, body: object) -> None:
            self._answer(status, "application/json", json.dumps(mask_value(body)).encode() + b"\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: probes come every few seconds."""

    with Server((host, port), Handler) as server:
        Thread(target=server.serve_forever, args=(HTTP_STOP_POLL_S,), name="http", daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
