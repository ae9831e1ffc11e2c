"""A broker's commit marker (WriteTxnMarkers) that is repeated, its first copy late.

The coordinator tells the leaders of a transaction's partitions that it was committed. Where the
connection between brokers breaks, it tells them again; the first copy may come when the next
transaction of the same producer epoch is open, and then commits what that one has sent to these
partitions. If the relay dies, a marker may be there without its records, or records without it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Lock
from uuid import UUID, uuid4
from zlib import crc32

import pytest

from orchestrator.embedded import Servers
from orchestrator.runtime.setup import set_up
from testkit.cases import cases
from testkit.empty_installation import bare_system, end_all
from testkit.eventually import eventually
from testkit.proxied import wired_broker
from testkit.proxy import ANY, Address, Connection, Rule, replay
from testkit.servers import server_directory
from testkit.system import PARTITIONS, System
from testkit.wire_protocol import Frame

pytestmark = pytest.mark.xdist_group("own servers: between brokers")


@dataclass
class BetweenBrokers:
    """Cuts the connection at a commit marker while it is armed, and keeps the marker."""

    server: Address
    is_armed: bool = False
    kept: Frame | None = None
    _lock: Lock = field(default_factory=Lock)

    def watch(self, connection: Connection, frame: Frame) -> None:
        """Act on every request between brokers."""
        with self._lock:
            keeps = self.is_armed and frame.name == "WriteTxnMarkers"
            if keeps:
                self.kept, self.is_armed = frame, False
        if keeps:
            connection.cut()
        else:
            connection.forward(frame)

    def deliver(self) -> None:
        """Let the first copy arrive."""
        assert self.kept is not None
        replay(self.server, self.kept)
        self.kept = None


THROUGH_PROXY = {"inter.broker.listener.name": "BEHIND", "num.partitions": str(PARTITIONS)}


@pytest.fixture(scope="module")
def kafka() -> Iterator[tuple[str, BetweenBrokers]]:
    """A broker that talks to itself through a proxy: its address, and the proxy's rule."""
    with server_directory() as directory:
        broker, wired = wired_broker(directory / "kafka", THROUGH_PROXY)
        between = BetweenBrokers(wired.behind_proxy)
        with wired.proxied(Rule(ANY, between.watch, hit=0)):
            broker.start()
            try:
                yield broker.bootstrap_servers, between
            finally:
                broker.kill()


LANES_OF = {"marker early": "1", "records early": "4", "at random": "4"}


@pytest.mark.fault(38)
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("rounds", [2, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("moment", cases(LANES_OF.keys(), "marker early", "records early"))
def test_a_late_commit_marker_loses_and_doubles_nothing(
    kafka: tuple[str, BetweenBrokers], servers: Servers, tmp_path: Path, moment: str, rounds: int
) -> None:
    bootstrap_servers, between = kafka
    random = Random(rounds)
    with bare_system(Servers(servers.database_url, bootstrap_servers), tmp_path) as bare:
        system = System({**bare.environ, "LANES": LANES_OF[moment], "BATCH_SIZE": "100"}, tmp_path)
        set_up(system.settings)
        try:
            for number in range(1, rounds + 1):
                one_round(system, between, moment, random)
                system.check_exactly_once(6 * number, 60)
        finally:
            end_all(system)


def one_round(system: System, between: BetweenBrokers, moment: str, random: Random) -> None:
    """Publish a batch whose commit marker is kept; let that arrive in the next one; kill the relay."""
    first, second = scenarios(moment)
    is_new = system.query("SELECT max(batch_number) = 0 FROM outbox_lane") == [(True,)]
    point = f"produced:{2 + is_new}"  # a new lane's first marker is a transaction of its own
    if moment == "at random" and random.random() < 0.25:
        point = "begun:3"
    relay = system.start("relay", crash_at=f"relay.{point}:freeze")
    eventually(lambda: relay.logged("lane active"), 60)
    between.is_armed = True
    system.accept(3, first)
    eventually(lambda: system.query("SELECT count(*) FROM outbox") == [(0,)], 60)
    eventually(lambda: between.kept is not None)  # sent soon after the commit was answered
    system.accept(3, second)
    relay.wait_frozen()
    between.deliver()
    relay.kill()
    successor = system.start("relay")
    eventually(lambda: system.query("SELECT count(*) FROM outbox") == [(0,)], 90)
    successor.stop()


def scenarios(moment: str) -> tuple[UUID | None, UUID | None]:
    """Return the scenarios of both batches; None: as they come.

    The kept commit marker names the partitions of the first: one of the output topic, and its lane's of
    the marker topic. In the second it meets only one of them.
    """
    if moment == "marker early":
        return scenario_in(0, lanes=1, partition=0), scenario_in(0, lanes=1, partition=1)
    if moment == "records early":
        return scenario_in(0, lanes=4, partition=0), scenario_in(2, lanes=4, partition=0)
    return None, None


def scenario_in(lane: int, *, lanes: int, partition: int) -> UUID:
    """Return a scenario of a lane and an output partition."""
    while True:
        scenario = uuid4()
        number = crc32(str(scenario).encode())
        if number % lanes == lane and number % PARTITIONS == partition:
            return scenario
