"""What probes and Prometheus see on the HTTP side."""

import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from http.client import RemoteDisconnected
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
from prometheus_client import CollectorRegistry

from orchestrator import relay
from orchestrator.embedded.server import free_port
from orchestrator.observability import http
from orchestrator.observability.health import Health
from orchestrator.observability.http import MAX_CONNECTIONS, serve_http
from orchestrator.observability.metrics import ConsumerMetrics, new_registry
from outbox import LaneState, LaneStatus
from testkit.eventually import eventually
from testkit.system import INHERITED

HOST = "127.0.0.1"


class Probe:
    """Asks one process."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Return the status and the body."""
        request = Request(f"http://{HOST}:{self.port}{path}", method=method)
        try:
            with urlopen(request, timeout=5) as answer:  # noqa: S310  # our own server
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def ask_json(self, path: str) -> tuple[int, object]:
        """Return the status and what the body says."""
        status, body = self.ask(path)
        return status, json.loads(body)


@contextmanager
def served(state: Health, registry: CollectorRegistry | None = None) -> Iterator[Probe]:
    with serve_http(HOST, 0, registry or CollectorRegistry(), state) as port:
        yield Probe(port)


def test_a_process_is_ready_when_every_check_passes() -> None:
    trouble: dict[str, str | None] = {"postgres": None, "lanes": None}
    with served(Health({name: partial(trouble.get, name) for name in trouble})) as probe:
        assert probe.ask_json("/readyz") == (200, {"ready": True, "checks": trouble})
        trouble["lanes"] = "lane 3: refused"
        assert probe.ask_json("/readyz") == (503, {"ready": False, "checks": trouble})
        trouble["lanes"] = None
        assert probe.ask("/readyz")[0] == 200


ACTIVE, WAITING, BACKING_OFF, REFUSED, RECOVERING, IN_DOUBT = (
    LaneStatus(state)
    for state in (
        LaneState.ACTIVE,
        LaneState.WAITING,
        LaneState.BACKING_OFF,
        LaneState.REFUSED,
        LaneState.RECOVERING,
        LaneState.IN_DOUBT,
    )
)


@pytest.mark.parametrize(
    ("lanes", "works"),
    [
        ([], True),  # more relays than lanes
        ([ACTIVE, ACTIVE], True),
        ([ACTIVE, REFUSED], True),
        ([BACKING_OFF], True),
        ([WAITING], True),
        ([REFUSED, BACKING_OFF], True),
        ([REFUSED, REFUSED], False),
        ([RECOVERING, REFUSED], False),
        ([IN_DOUBT, IN_DOUBT], False),
    ],
)
def test_a_relay_is_ready_while_it_can_work_any_of_its_lanes(
    lanes: list[LaneStatus], works: bool
) -> None:
    """So a refused lane, which moves to a pod of the next release, does not block that release."""
    assert relay.is_working(dict(enumerate(lanes))) is works


def test_a_process_that_stops_is_alive_but_not_ready() -> None:
    state = Health({"postgres": lambda: None})
    with served(state) as probe:
        state.stop()
        status, body = probe.ask_json("/readyz")
        assert status == 503
        assert body == {"ready": False, "checks": {"postgres": None, "process": "stopping"}}
        assert probe.ask("/livez")[0] == 200


def test_a_process_that_waits_for_a_server_is_alive() -> None:
    state = Health({"postgres": lambda: "away"})
    state.tick("relay")
    with served(state) as probe:
        assert probe.ask("/readyz")[0] == 503
        assert probe.ask_json("/livez") == (200, {"stalled": []})


def test_a_process_is_dead_when_one_of_its_loops_hangs() -> None:
    now = [1000.0]
    state = Health(clock=lambda: now[0])
    state.tick("consumer")
    now[0] += state.stalled_s - 1
    state.tick("relay")
    assert state.stalled_loops() == []
    now[0] += 2
    assert state.stalled_loops() == ["consumer"]
    with served(state) as probe:
        assert probe.ask_json("/livez") == (503, {"stalled": ["consumer"]})
        now[0] += state.stalled_s
        assert probe.ask_json("/livez") == (503, {"stalled": ["consumer", "relay"]})


@contextmanager
def relay_soon_stalled(silent: str, log: Path) -> Iterator[Probe]:
    """Run a real relay whose servers never answer; it calls a loop stalled after 0.1 s."""
    port = free_port()
    environ = {
        "DATABASE_URL": f"postgresql://user@{silent}/name",
        "KAFKA_BOOTSTRAP_SERVERS": silent,
        "METRICS_PORT": str(port),
        "OUTBOX_TIMINGS": '{"stalled_s": 0.1}',
    }
    with log.open("wb") as stream:
        relay = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", "relay"],
            env=INHERITED | environ,
            stdout=stream,
            stderr=stream,
        )
    try:
        yield Probe(port)
    finally:
        relay.kill()
        relay.wait()


def test_a_relay_that_hangs_before_its_first_sign_of_life_is_seen(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def hangs() -> bool:
        try:
            return probe.ask_json("/livez") == (503, {"stalled": ["relay"]})
        except URLError:
            return False  # not listening yet

    with socket.create_server((HOST, 0)) as server:
        host, port = server.getsockname()
        with relay_soon_stalled(f"{host}:{port}", log) as probe:
            eventually(hangs, 30)
    assert "relay waiting" not in log.read_text()  # it is still in its first connect


def test_dead_letters_are_noted_and_logged_at_most_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = Health()
    metrics = ConsumerMetrics(new_registry("consumer"), state)
    with served(state) as probe:
        for _ in range(50):
            metrics.consumed(3, 0, {"empty": 2, "not_json": 1}, 0.01)
        status, body = probe.ask("/readyz")
    assert status == 200
    note = json.loads(body)["notes"]["dead letters"]
    assert "(100 empty, 50 not_json): `orchestrator dlq list`" in note
    (record,) = caplog.records
    assert (record.getMessage(), vars(record)["records"]) == ("dead letters", 3)


def test_metrics_are_in_the_format_of_prometheus() -> None:
    registry = new_registry("consumer")
    ConsumerMetrics(registry, Health()).consumed(3, 1, {"empty": 2}, 0.01)
    with served(Health(), registry) as probe:
        status, body = probe.ask("/metrics")
    assert status == 200
    assert 'orchestrator_records_total{result="accepted"} 3.0' in body
    assert 'orchestrator_records_total{result="duplicate"} 1.0' in body
    assert 'orchestrator_dead_letters_total{reason="empty"} 2.0' in body
    assert "_created" not in body


@pytest.mark.parametrize("path", ["/", "/health", "/metrics/", "/readyz/x", "/livezz", "/%6Civez"])
def test_every_other_path_is_not_found(path: str) -> None:
    with served(Health()) as probe:
        assert probe.ask(path)[0] == 404


def test_a_query_changes_nothing() -> None:
    with served(Health()) as probe:
        assert probe.ask("/livez?verbose=1")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
def test_nothing_can_be_changed_from_outside(method: str) -> None:
    with served(Health()) as probe:
        status, body = probe.ask("/livez", method)
    assert status == 405
    assert json.loads(body)["methods"] == ["GET", "HEAD"]


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/no-such-path"])
def test_head_answers_like_get_without_a_body(path: str) -> None:
    with served(Health({"postgres": lambda: "away"})) as probe:
        answers = []
        for method in ("GET", "HEAD"):
            with socket.create_connection((HOST, probe.port)) as client:
                client.sendall(f"{method} {path} HTTP/1.0\r\n\r\n".encode())
                headers, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
            answers.append((re.sub(rb"Date: .*", b"", headers), body))
    (headers, body), head = answers
    assert f"Content-Length: {len(body)}".encode() in headers
    assert head == (headers, b"")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /livez HTTP/9.9", 505),
        (b"GET /livez", 400),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"", 400),
        (b"GET /livez HTTP/1.1\r\nX: " + b"x" * 9000, 431),
    ],
)
def test_what_is_no_request_is_answered_in_json_too(request_line: bytes, status: int) -> None:
    with served(Health()) as probe, socket.create_connection((HOST, probe.port)) as client:
        client.sendall(request_line + b"\r\n\r\n")
        head, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert json.loads(body)["paths"] == ["/metrics", "/livez", "/readyz"]


# ---- clients that mean no good ----------------------------------------------------------------------


def test_slow_clients_keep_no_probe_from_its_answer() -> None:
    state = Health({"postgres": lambda: "away"})
    with served(state) as probe, ExitStack() as opened:
        threads = threading.active_count()
        slow = []
        for number in range(300):
            client = opened.enter_context(socket.create_connection((HOST, probe.port)))
            with suppress(OSError):
                client.sendall(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * number)
            slow.append(client)
        for _ in range(20):
            assert probe.ask("/livez")[0] == 200
            assert probe.ask("/readyz")[0] == 503
        assert threading.active_count() == threads
        closed = sum(is_closed(client) for client in slow)
    assert closed >= len(slow) - MAX_CONNECTIONS


def is_closed(client: socket.socket) -> bool:
    client.settimeout(0.01)
    try:
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_request_that_comes_byte_by_byte_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_S", 0.5)
    with served(Health()) as probe, socket.create_connection((HOST, probe.port)) as client:
        began = time.monotonic()
        while not is_closed(client):
            with suppress(OSError):
                client.sendall(b"x")
            time.sleep(0.02)
        assert 0.4 < time.monotonic() - began < 3


def test_an_answer_does_not_tell_where_the_servers_are_and_who_uses_them() -> None:
    trouble = (
        'connection to server at "10.1.2.3", port 5432 failed: FATAL: password authentication failed',
        'no entry for user "vap_relay", database "vap"',
        'connection to server at "::1", port 5432 failed: FATAL: database "vap" does not exist',
        "sasl_ssl://kafka-1.internal:9093/bootstrap: Connect to ipv4#10.1.2.3:9093 failed: refused",
        'could not translate host name "db.internal" to address',
        "no broker answers: [fe80::1]:9092, 10.1.2.3:9092",
    )
    with served(Health({str(n): partial(str, text) for n, text in enumerate(trouble)})) as probe:
        body = probe.ask("/readyz")[1]
    assert not re.search(r"10\.1|::1|vap|internal", body)
    for left in (
        "password authentication failed",
        "no entry for user",
        "does not exist",
        "refused",
        "no broker",
    ):
        assert left in body


# ---- addresses --------------------------------------------------------------------------------------


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this system has no IPv6")
@pytest.mark.parametrize(
    ("host", "answers"),
    [
        ("::", {"127.0.0.1", "::1"}),
        ("0.0.0.0", {"127.0.0.1"}),
        ("127.0.0.1", {"127.0.0.1"}),
        ("::1", {"::1"}),
        ("localhost", None),
    ],
)
def test_a_process_answers_at_the_addresses_that_it_is_given(
    host: str, answers: set[str] | None
) -> None:
    with serve_http(host, 0, CollectorRegistry(), Health()) as port:
        found = set()
        for address in ("127.0.0.1", "::1"):
            with suppress(ConnectionRefusedError), socket.create_connection((address, port), 5):
                found.add(address)
    assert found == answers or (answers is None and found)


def test_a_system_without_ipv6_has_ipv4_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with serve_http("::", 0, CollectorRegistry(), Health()) as port:
        assert Probe(port).ask("/livez")[0] == 200


def test_a_start_asks_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """It took 11 s where none answered: http.server asks for the name of the own host."""
    for name in ("getfqdn", "gethostbyaddr", "gethostname"):
        monkeypatch.delattr(socket, name)
    with served(Health()) as probe:
        assert probe.ask("/livez")[0] == 200


def test_a_client_that_breaks_off_is_nothing_to_speak_of(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    reset = struct.pack("ii", 1, 0)  # close sends RST, and what the server reads next is an error
    with served(Health()) as probe:
        for request in (b"", b"GET /livez HTTP/1.1\r\n"):
            with socket.create_connection((HOST, probe.port)) as client:
                client.sendall(request)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        assert probe.ask("/livez")[0] == 200
    assert capfd.readouterr().err == ""
    assert not caplog.records


def test_a_bug_behind_an_answer_is_logged_and_the_next_request_answered(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with served(Health({"lanes": lambda: str(1 // 0)})) as probe:
        with pytest.raises(RemoteDisconnected):
            probe.ask("/readyz")
        assert probe.ask("/livez")[0] == 200
    assert capfd.readouterr().err == ""
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == ("orchestrator.observability.http", "request failed")
    assert "ZeroDivisionError" in (record.exc_text or "")


def test_an_answer_holds_no_secret_and_stays_json() -> None:
    trouble = 'camera "rtsp://user:S3CRET@host" password=S3CRET'
    with served(Health({"session": lambda: trouble})) as probe:
        status, body = probe.ask("/readyz")
    assert status == 503
    assert "S3CRET" not in body
    assert json.loads(body)["checks"]["session"].startswith("camera ***")


def test_a_taken_port_is_an_error_and_not_a_second_server() -> None:
    with (
        served(Health()) as probe,
        pytest.raises(OSError, match="in use"),
        serve_http(HOST, probe.port, CollectorRegistry(), Health()),
    ):
        pass
