"""A relay that reaches Postgres and not Kafka: its lanes go to the relays that Kafka answers."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest

from orchestrator.embedded import Servers
from testkit.eventually import eventually
from testkit.installations import Installations
from testkit.private_servers import wait_ready
from testkit.proxied import WiredKafka
from testkit.proxy import ANY, Action, Connection, Rule, swallow
from testkit.system import LANES, Running, System
from testkit.wire_protocol import Frame
from tests.faults.kafka_servers import stream
from tests.faults.postgres_servers import installed
from tests.faults.secured_kafka import SecuredKafka
from tests.faults.test_members import epochs
from tests.faults.test_security import Secured, acls
from tests.integration.test_relays import lanes_of

TAKEN_S = 20.0  # from the fault, or the start of a healthy relay, until it has all lanes
QUICK = {"kafka_silence_s": 2.0, "kafka_grace_s": 4.0, "kafka_probe_s": 2.0, "kafka_distrust_s": 8.0}


@dataclass
class Cut:
    """What keeps one relay from Kafka. environ: of that relay."""

    system: System
    environ: dict[str, str]
    begin: Callable[[], None]
    heal: Callable[[], None]
    healthy_environ: dict[str, str]

    def start_bad(self, timings: dict[str, str]) -> Running:
        """Start the relay that is or will be cut off."""
        return self.system.start("relay", **timings, **self.environ)

    def start_healthy(self, timings: dict[str, str]) -> Running:
        """Start a relay that Kafka answers."""
        return self.system.start("relay", **timings, **self.healthy_environ)


# ---- ways to be without Kafka ---------------------------------------------------------------------


def unless(healed: Event, act: Action) -> Action:
    """Act on messages until the relay is healed."""

    def until_healed(connection: Connection, frame: Frame) -> None:
        (connection.forward if healed.is_set() else lambda one: act(connection, one))(frame)

    return until_healed


TRANSACTION = ("InitProducerId", "AddPartitionsToTxn", "AddOffsetsToTxn", "EndTxn")
COORDINATOR = (*TRANSACTION, *(f"{request} of a probe" for request in TRANSACTION))


@contextmanager
def proxied(system: System, kafka: WiredKafka, *requests: str | None) -> Iterator[Cut]:
    """A broker that does not answer these requests of one relay."""
    healed = Event()
    healed.set()
    rules = [Rule(name, unless(healed, swallow), hit=0) for name in requests]
    with kafka.proxied(*rules) as address:
        environ = {"KAFKA_BOOTSTRAP_SERVERS": address}
        yield Cut(system, environ, healed.clear, healed.set, {})


@contextmanager
def dead_address(system: System, kafka: WiredKafka) -> Iterator[Cut]:
    """An address where no process listens."""
    with ExitStack() as listening:
        environ = {"KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{kafka.proxy_port}"}

        def heal() -> None:
            listening.enter_context(kafka.proxied())

        heal()
        yield Cut(system, environ, listening.close, heal, {})


WIRED: dict[str, Callable[[System, WiredKafka], AbstractContextManager[Cut]]] = {
    "dead address": dead_address,
    "silence": lambda system, kafka: proxied(system, kafka, ANY),
    "coordinator away": lambda system, kafka: proxied(system, kafka, *COORDINATOR),
}
BAD_USER = "bad"


def secured_way(own: Secured, way: str) -> Cut:
    """A broker that lets one relay do less than the other."""
    every = acls(own.system)
    own.kafka.set_password(BAD_USER, own.password)
    own.kafka.grant(BAD_USER, *every.values())
    environ = own.environ | {"KAFKA_CONFIG_SASL_USERNAME": BAD_USER}
    if way == "password":
        begin = lambda: own.kafka.set_password(BAD_USER, "another")  # noqa: E731
        heal = lambda: own.kafka.set_password(BAD_USER, own.password)  # noqa: E731
    else:
        begin = lambda: own.kafka.revoke(BAD_USER, every[way])  # noqa: E731
        heal = lambda: own.kafka.grant(BAD_USER, every[way])  # noqa: E731
    return Cut(own.system, environ, begin, heal, own.environ)


AT_WORK = [*WIRED, "password", "Write ids", "Write output", "Write marker topic"]
AT_PROBE = [*WIRED, "password", "Write ids", "Write marker topic"]  # its first work cannot fail


def short(*ways: str, besides: Sequence[str]) -> pytest.MarkDecorator:
    """Choose the ways that `make test` tries, with short waits, and those of `make faults`."""
    quick = [pytest.param(way, True, id=f"{way}, short") for way in ways]
    full = [pytest.param(way, False, id=way, marks=pytest.mark.slow) for way in besides]
    return pytest.mark.parametrize(("cut", "quick"), [*quick, *full], indirect=["cut"])


@pytest.fixture
def cut(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Cut]:
    """An installation, and a way to keep one of its relays from Kafka."""
    way = request.param
    if way in WIRED:
        installations: Installations = request.getfixturevalue("wired_installations")
        with (
            installations.system(tmp_path, LANES) as system,
            WIRED[way](system, request.getfixturevalue("wired")) as made,
        ):
            yield made
        return
    broker: SecuredKafka = request.getfixturevalue("secured_broker")
    with installed(Servers(servers.database_url, broker.kafka.bootstrap_servers), tmp_path) as system:
        yield secured_way(Secured(system, broker), way)


# ---- one relay ------------------------------------------------------------------------------------


def timings(is_quick: bool) -> dict[str, str]:
    """Return the environment that sets how soon a relay counts as cut off."""
    return {"OUTBOX_TIMINGS": json.dumps(QUICK)} if is_quick else {"OUTBOX_TIMINGS": ""}


def shares(*relays: Running) -> list[int]:
    """Return how many lanes each relay owns."""
    return [lanes_of(relay) for relay in relays]


def calm(system: System, seconds: float) -> int:
    """Return how often a lane was taken in so many seconds."""
    before, until = epochs(system), time.monotonic() + seconds
    eventually(lambda: time.monotonic() > until, seconds + 5)
    return epochs(system) - before


def share_again(cut: Cut, *relays: Running) -> None:
    """Give the relay its Kafka back; see that it gets its share, and that it works."""
    cut.heal()
    eventually(lambda: shares(*relays) == [2, 2], 60)
    wait_ready(*relays)
    assert calm(cut.system, 2) == 0


@pytest.mark.fault(41)
@short("Write output", besides=AT_WORK)
def test_a_relay_without_kafka_gives_all_its_lanes_to_one_that_kafka_answers(
    cut: Cut, quick: bool
) -> None:
    cut.begin()
    bad = cut.start_bad(timings(quick))
    eventually(lambda: shares(bad) == [LANES])  # there is no other relay: /readyz and status name them
    rows = len(cut.system.accept(40))
    healthy = cut.start_healthy(timings(quick))
    eventually(lambda: healthy.logged('"relay connected"'), 30)  # a start takes what it takes
    eventually(lambda: shares(healthy, bad) == [LANES, 0], TAKEN_S)
    eventually(lambda: cut.system.statuses() == {"deployed": rows}, TAKEN_S)
    assert bad.logged('"kafka silent"')
    assert "no transaction of this relay is answered" in bad.get("/readyz")
    assert "no transaction of this relay is answered" not in healthy.get("/readyz")
    share_again(cut, healthy, bad)
    rows += len(cut.system.accept(40))
    cut.system.check_exactly_once(rows)


@pytest.mark.fault(41)
@short("coordinator away", besides=AT_PROBE)
def test_a_relay_that_joins_without_kafka_gets_no_lane(cut: Cut, quick: bool) -> None:
    healthy = cut.start_healthy(timings(quick))
    eventually(lambda: shares(healthy) == [LANES])
    wait_ready(healthy)
    cut.begin()
    before = epochs(cut.system)
    bad = cut.start_bad(timings(quick))
    with stream(cut.system, rate=50) as commands:
        cut.system.start("consumer", **cut.healthy_environ)
        eventually(lambda: bad.logged('"kafka silent"'), 30)
        commands.wait_for_progress()
        assert epochs(cut.system) == before
        assert not healthy.logged('"lane in doubt"')
        share_again(cut, healthy, bad)
        commands.wait_for_progress()
    commands.check()


@pytest.mark.fault(41)
@pytest.mark.slow
@short("dead address", besides=AT_WORK)
def test_a_relay_that_loses_kafka_at_work_gives_its_lanes_up(cut: Cut, quick: bool) -> None:
    healthy, bad = cut.start_healthy(timings(quick)), cut.start_bad(timings(quick))
    eventually(lambda: shares(healthy, bad) == [2, 2])
    with stream(cut.system, rate=50) as commands:
        cut.system.start("consumer", **cut.healthy_environ)
        commands.wait_for_progress()
        cut.begin()
        eventually(lambda: shares(healthy, bad) == [LANES, 0], TAKEN_S)
        commands.wait_for_progress()
        share_again(cut, healthy, bad)
        commands.wait_for_progress()
    commands.check()


# ---- all relays -----------------------------------------------------------------------------------


@pytest.mark.fault(41)
@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cut", ["silence"], indirect=True)
def test_while_kafka_is_away_for_all_no_lane_moves(cut: Cut, quick: bool) -> None:
    relays = [cut.start_bad(timings(quick)) for _ in range(2)]
    eventually(lambda: shares(*relays) == [2, 2])
    wait_ready(*relays)
    rows = len(cut.system.accept(40))
    eventually(lambda: cut.system.statuses() == {"deployed": rows})
    taken = epochs(cut.system)
    cut.begin()
    rows += len(cut.system.accept(40))
    eventually(lambda: all(relay.logged('"kafka silent"') for relay in relays), 60)
    calm(cut.system, 5 if quick else 20)
    cut.heal()
    cut.system.check_exactly_once(rows)
    wait_ready(*relays)
    assert shares(*relays) == [2, 2]
    assert epochs(cut.system) == taken


@pytest.mark.fault(41)
@pytest.mark.parametrize("cut", ["silence"], indirect=True)
def test_a_relay_that_joins_while_kafka_is_away_for_all_gets_no_lane(cut: Cut) -> None:
    first = cut.start_bad(timings(is_quick=True))
    eventually(lambda: shares(first) == [LANES])
    wait_ready(first)
    taken = epochs(cut.system)
    cut.begin()
    second = cut.start_bad(timings(is_quick=True))
    eventually(lambda: all(relay.logged('"kafka silent"') for relay in (first, second)), 60)
    assert calm(cut.system, 5) == 0
    assert shares(first, second) == [LANES, 0]
    assert epochs(cut.system) == taken
    share_again(cut, first, second)
