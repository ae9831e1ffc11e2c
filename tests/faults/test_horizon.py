"""A long transaction keeps vacuum from what the outbox has deleted: the relay keeps its rate."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from orchestrator.embedded import Servers
from testkit.system import OwnedLane, System
from tests.faults.postgres_servers import installed, own_postgres

pytestmark = pytest.mark.xdist_group("own servers: PostgreSQL")

ROWS = 10_000  # a measurement
DEAD = 400_000
ROUNDS = 7


@pytest.fixture
def two(servers: Servers, tmp_path: Path) -> Iterator[tuple[System, System]]:
    """Two installations with one lane each, in two databases of one Postgres: they share its noise."""
    with own_postgres() as postgres:
        on = Servers(postgres.url, servers.bootstrap_servers)
        (tmp_path / "other").mkdir()
        with (
            installed(on, tmp_path, lanes=1) as one,
            installed(on, tmp_path / "other", lanes=1) as other,
        ):
            yield one, other


@contextmanager
def long_transaction(system: System) -> Iterator[None]:
    """Hold a snapshot while the block runs: nothing deleted from now on can be removed."""
    with closing(system.connect("a long report")) as conn:
        conn.execute("SET idle_in_transaction_session_timeout = 0")
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        conn.execute("SELECT count(*) FROM workers")
        yield
        conn.execute("COMMIT")


FILL = """
    INSERT INTO outbox (lane, topic, key, value)
    SELECT 0, 'nowhere', 'key', convert_to(repeat('x', 150), 'UTF8') FROM generate_series(1, %s)
"""


def leave_dead_rows(system: System) -> None:
    """Insert and delete rows, as the relay does after it has sent them."""
    system.query(FILL, DEAD)
    system.query("DELETE FROM outbox WHERE topic = 'nowhere'")


def cost(system: System, lane: OwnedLane) -> float:
    """Return the CPU seconds, here and in the session, to publish and acknowledge ROWS rows."""
    system.accept(ROWS)
    session, here = psutil.Process(lane.conn.info.backend_pid), time.thread_time()
    before = session.cpu_times()
    assert lane.drain() == ROWS
    after = session.cpu_times()
    there = after.user + after.system - before.user - before.system
    return float(there + time.thread_time() - here)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.fault(34)
def test_a_long_transaction_does_not_slow_the_relay(two: tuple[System, System]) -> None:
    hindered, free = two
    with long_transaction(hindered):
        leave_dead_rows(hindered)
        with hindered.lane() as slow, free.lane() as fast:
            for lane in (slow, fast):
                lane.recover()
            # In turn, and in CPU time: what else the machine does must not decide. The waits for Kafka
            # and the disk, which both have, would only bring the two closer together.
            costs = [(cost(hindered, slow), cost(free, fast)) for _ in range(ROUNDS)]
    for system in two:
        system.check_exactly_once(ROUNDS * ROWS)
    slow_s, fast_s = map(min, zip(*costs, strict=True))  # what else the machine does only adds
    assert fast_s > 0.9 * slow_s, costs
