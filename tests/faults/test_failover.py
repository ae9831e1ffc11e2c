"""Postgres fails over to a standby, while both processes work with the addresses of both servers."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Event, Thread
from uuid import UUID, uuid4

import psycopg
import pytest

from orchestrator.embedded import EmbeddedPostgres, Servers
from outbox.message import lane_of
from testkit.empty_installation import run_command
from testkit.eventually import eventually
from testkit.system import LANES, System
from tests.faults.postgres_servers import Standby, either, installed, primary_and_standby, set_server

pytestmark = pytest.mark.xdist_group("own servers: PostgreSQL")

RESUME_S = 45  # a dead member's session, back-off


@pytest.fixture
def pair() -> Iterator[tuple[EmbeddedPostgres, Standby]]:
    with primary_and_standby() as running:
        yield running


@pytest.fixture
def own(pair: tuple[EmbeddedPostgres, Standby], servers: Servers, tmp_path: Path) -> Iterator[System]:
    """An installation on both."""
    with installed(Servers(either(*pair), servers.bootstrap_servers), tmp_path) as system:
        yield system


def scenario_of(lane: int) -> UUID:
    """Return a scenario whose orders go through this lane."""
    while lane_of(str(scenario := uuid4()).encode(), LANES) != lane:
        pass
    return scenario


def worker_ids(system: System) -> set[UUID]:
    return {worker_id for (worker_id,) in system.query("SELECT worker_id FROM workers")}


def are_deployed(system: System, workers: int) -> bool:
    return system.statuses() == {"deployed": workers}


LOST = 2  # the lane whose last batches no standby has


@pytest.mark.slow
@pytest.mark.fault(11)
def test_commits_that_a_failover_lost_are_read_again_and_not_sent_again(
    own: System, pair: tuple[EmbeddedPostgres, Standby]
) -> None:
    primary, standby = pair
    own.start("consumer")
    relay = own.start("relay")
    own.submit(40)
    own.check_exactly_once(40)
    standby.catch_up()
    standby.kill()
    for _ in range(3):  # batches
        own.submit(10, scenario_of(LOST))
    eventually(partial(are_deployed, own, 70), RESUME_S)
    before = worker_ids(own)
    assert len(own.orders()) == 70
    primary.kill()
    standby.start()
    standby.promote()

    eventually(lambda: relay.logged("marker_ahead"), RESUME_S)
    eventually(lambda: worker_ids(own) == before, RESUME_S)
    eventually(lambda: f"lane {LOST}: refused: marker_ahead" in relay.get("/readyz"), RESUME_S)
    others = [scenario_of(lane) for lane in range(LANES) if lane != LOST]
    for scenario in others:  # the other lanes go on
        own.submit(10, scenario)
    eventually(lambda: own.statuses() == {"deployed": 40 + 30, "pending": 30}, RESUME_S)
    assert len(own.orders()) == 70 + 30
    found = own.audit()
    assert found.passed, found

    repaired = run_command(own.environ, "repair", "lane", "all", "--yes")
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    own.submit(10, scenario_of(LOST))
    own.check_exactly_once(110)


class Clients:
    """A client that writes workers and outbox rows, and knows which commits were acknowledged."""

    def __init__(self, system: System) -> None:
        self.acknowledged: list[UUID] = []
        self._system = system
        self._stop = Event()
        self._thread = Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        while not self._stop.is_set():
            try:
                self.acknowledged += self._system.accept(5)
            except psycopg.OperationalError:
                self._stop.wait(0.1)

    def stop(self) -> None:
        """Write no more."""
        self._stop.set()
        self._thread.join()


@pytest.mark.slow
@pytest.mark.fault(37)
def test_every_acknowledged_commit_survives_the_promotion_of_a_synchronous_standby(
    own: System, pair: tuple[EmbeddedPostgres, Standby]
) -> None:
    primary, standby = pair
    standby.catch_up()
    set_server(primary, "synchronous_standby_names", "standby")
    own.start("consumer", BATCH_SIZE="10")
    own.start("relay", BATCH_SIZE="10")
    clients = Clients(own)
    scenarios = own.submit(500)
    eventually(lambda: sum(own.statuses().values()) > 200, RESUME_S)
    written = len(clients.acknowledged)
    primary.kill()
    standby.promote()
    eventually(lambda: len(clients.acknowledged) > written + 5, RESUME_S)
    clients.stop()
    assert set(clients.acknowledged) <= worker_ids(own)
    eventually(lambda: accepted_of(own, scenarios) == len(scenarios), RESUME_S)
    own.check_exactly_once(len(worker_ids(own)))


def accepted_of(system: System, scenarios: list[UUID]) -> int:
    """Count the workers of these scenarios."""
    ((workers,),) = system.query(
        "SELECT count(*) FROM workers WHERE scenario_uuid = ANY(%s)", scenarios
    )
    return int(workers)
