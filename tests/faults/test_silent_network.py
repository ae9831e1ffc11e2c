"""A load balancer or firewall that forgets idle connections in silence: what comes on them is lost."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import pytest

from testkit import summary
from testkit.eventually import eventually
from testkit.installations import Installations
from testkit.private_servers import wait_ready
from testkit.proxied import WiredKafka, led_through, postgres_proxied
from testkit.proxy import ANY, Connection, Rule
from testkit.system import LANES, System
from testkit.wire_protocol import Frame

FIRST_ORDER_S = 12.0  # from a command after a quiet time until its order is there
GIVEN_UP_S = 10.0  # when the client itself gives a record up: the broker's transaction time-out
AT_ONCE_S = 3.0  # the same where no connection was forgotten, on a busy machine


class Forgetful:
    """Forgets each connection that was idle for so long: swallows all that comes, both ways."""

    def __init__(self, idle_s: float) -> None:
        self.forgotten: set[Connection] = set()
        self._idle_s = idle_s
        self._used_at: dict[Connection, float] = {}
        self._lock = Lock()

    def rules(self) -> list[Rule]:
        """Return what makes a proxy forget."""
        return [Rule(ANY, self._pass, hit=0), Rule(ANY, self._pass, hit=0, answers=True)]

    def _pass(self, connection: Connection, frame: Frame) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._used_at.get(connection, now) > self._idle_s:
                self.forgotten.add(connection)
            self._used_at[connection] = now
        if connection not in self.forgotten:
            connection.forward(frame)


@contextmanager
def behind(system: System, kafka: WiredKafka, balancer: Forgetful) -> Iterator[System]:
    """Reach both servers of an installation through such a network."""
    with (
        kafka.proxied(*balancer.rules()) as address,
        postgres_proxied(system, balancer.rules()) as url,
    ):
        proxied = led_through(system, address, DATABASE_URL=url)
        try:
            yield proxied
        finally:
            proxied.end()


def first_order(system: System, sent: int) -> float:
    """Send a command; return how long it took until its order was there."""
    began = time.monotonic()
    system.submit(1)
    eventually(lambda: system.statuses() == {"deployed": sent}, 120)
    return time.monotonic() - began


def first_orders(
    system: System, kafka: WiredKafka, balancer: Forgetful, *quiet_s: float, **environ: str
) -> list[float]:
    """Return how long the first order took after each of these quiet times."""
    took_s = list[float]()
    with behind(system, kafka, balancer) as proxied:
        wait_ready(*(proxied.start(process, **environ) for process in ("consumer", "relay")))
        first_order(system, 1)
        for seconds in quiet_s:
            over_at = time.monotonic() + seconds
            eventually(lambda over_at=over_at: time.monotonic() > over_at, seconds + 10)  # type: ignore[misc]
            took_s.append(first_order(system, len(took_s) + 2))
    system.check_exactly_once(len(took_s) + 1)
    summary.lines.append(f"first orders after {quiet_s} s: {[round(one, 2) for one in took_s]} s")
    return took_s


@pytest.fixture
def wired_system(wired_installations: Installations, tmp_path: Path) -> Iterator[System]:
    """An installation on the broker behind a proxy."""
    with wired_installations.system(tmp_path, LANES) as system:
        yield system


@pytest.mark.fault(43)
def test_the_first_order_comes_soon_after_a_quiet_time(wired_system: System, wired: WiredKafka) -> None:
    quick, balancer = json.dumps({"kafka_quiet_s": 2.0, "gauge_period_s": 0.5}), Forgetful(3.0)
    took_s = first_orders(wired_system, wired, balancer, 5.0, OUTBOX_TIMINGS=quick)
    assert balancer.forgotten  # else nothing was tried
    assert max(took_s) < GIVEN_UP_S, took_s


@pytest.mark.fault(43)
@pytest.mark.timeout(600)
@pytest.mark.slow
def test_the_first_order_comes_within_12_seconds_after_any_quiet_time(
    wired_system: System, wired: WiredKafka
) -> None:
    balancer = Forgetful(6.0)
    quiet_s = (7.0, 11.0, 6.5, 20.0, 45.0, 61.0)
    took_s = first_orders(wired_system, wired, balancer, *quiet_s, OUTBOX_TIMINGS="")
    assert balancer.forgotten
    assert max(took_s) < FIRST_ORDER_S, took_s


@pytest.mark.fault(43)
@pytest.mark.timeout(900)
@pytest.mark.slow
def test_behind_a_balancer_of_four_minutes_the_first_order_comes_at_once(
    wired_system: System, wired: WiredKafka
) -> None:
    took_s = first_orders(wired_system, wired, Forgetful(240.0), 250.0, 300.0, OUTBOX_TIMINGS="")
    assert max(took_s) < AT_ONCE_S, took_s
