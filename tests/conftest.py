"""Fixtures for every test."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.embedded import Servers
from testkit import summary
from testkit.installations import Installations, template_database
from testkit.proxied import WiredKafka, wired_kafka
from testkit.servers import START_ERRORS, Backend, choose_backend
from testkit.system import LANES, System
from testkit.workers import SharedServers, servers_of_controller
from tests.faults.secured_kafka import SecuredKafka, secured_kafka
from tests.matrix import ROWS_OF, Outcomes, reason_of, rows_of

BACKEND = pytest.StashKey[Backend]()
SHARED = pytest.StashKey[SharedServers]()

# Servers of the session besides the two; each worker whose tests ask for one starts its own.
GROUPS = {"wired": "the broker behind a proxy", "secured_broker": "secured Kafka"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `make faults` ask for the whole matrix."""
    parser.addoption("--faults", action="store_true", help="only fault tests, slow ones too; a table")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Keep groups of tests together under `-n`, also if it is given by hand."""
    if config.getoption("numprocesses", default=None) and config.option.dist == "no":
        config.option.dist = "loadgroup"


def pytest_configure(config: pytest.Config) -> None:
    """Choose the servers once; none is started before a test asks for it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    if of_worker := getattr(config, "workerinput", None):
        run = partial(servers_of_controller, of_worker["servers"])
        config.stash[BACKEND] = Backend(of_worker["backend"], of_worker["why"], run)
        return
    config.stash[BACKEND] = choose_backend()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker where its servers come from."""
    backend = node.config.stash[BACKEND]
    if SHARED not in node.config.stash:
        node.config.stash[SHARED] = shared = SharedServers(backend.run)
        node.config.add_cleanup(shared.close)
    servers = node.config.stash[SHARED].address
    node.workerinput |= {"servers": servers, "backend": backend.name, "why": backend.why}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let a worker give the controller what its tests have to tell."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["summary"] = summary.lines


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take in what a worker's tests have to tell; each worker names the tests that are left out."""
    told = getattr(node, "workeroutput", {}).get("summary", [])  # one that crashed gives none
    summary.lines.extend(line for line in told if line not in summary.lines)


def pytest_report_header(config: pytest.Config) -> str:
    """Say which servers the tests run against, and why."""
    backend = config.stash[BACKEND]
    return f"servers: {backend.name} ({backend.why})"


@pytest.hookimpl(tryfirst=True)  # xdist looks at the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests to `make faults`, and name them; there, leave out all that inject no fault."""
    if config.getoption("--faults"):
        kept = [item for item in items if any(rows_of(item)) or is_slow(item)]
    else:
        kept = [item for item in items if not is_slow(item)]
    chosen = set(kept)
    left = [item for item in items if item not in chosen]
    if not config.getoption("--faults"):
        slow = dict.fromkeys(item.nodeid.partition("[")[0] for item in left)
        summary.lines.extend(f"left to `make faults`: {name}" for name in slow)
    config.hook.pytest_deselected(items=left)
    items[:] = kept
    for item in items:
        item.user_properties.append((ROWS_OF, list(rows_of(item))))
        for fixture in GROUPS.keys() & item.fixturenames:  # type: ignore[attr-defined]
            item.add_marker(pytest.mark.xdist_group(f"own servers: {GROUPS[fixture]}"))


def is_slow(item: pytest.Item) -> bool:
    """Say whether a test takes too long for `make test`."""
    return item.get_closest_marker("slow") is not None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell what the tests reported, and name each one that did not run."""
    for line in summary.lines:
        terminalreporter.write_line(line, yellow=True)
    for skipped in terminalreporter.getreports("skipped"):
        terminalreporter.write_line(f"not run: {skipped.nodeid}: {reason_of(skipped)}", yellow=True)
    if terminalreporter.config.getoption("--faults"):
        for line in Outcomes(reports_of(terminalreporter)).table():
            terminalreporter.write_line(line)


def reports_of(terminalreporter: pytest.TerminalReporter) -> Iterator[pytest.TestReport]:
    """Yield the reports of all phases of all tests."""
    for reports in terminalreporter.stats.values():
        yield from (report for report in reports if isinstance(report, pytest.TestReport))


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """The real PostgreSQL and Kafka of this session."""
    backend = request.config.stash[BACKEND]
    fault = None
    with ExitStack() as running:
        try:
            servers = running.enter_context(backend.run())
        except START_ERRORS as error:
            fault = f"servers: {backend.name} ({backend.why}): {error}"
        if fault:  # out here, so that it is told without the chain of errors behind it
            pytest.fail(f"{fault}; TEST_BACKEND chooses other servers", pytrace=False)
        yield servers


@pytest.fixture(scope="session")
def template(servers: Servers) -> Iterator[str]:
    """A migrated database, to be cloned by each test."""
    with template_database(servers) as name:
        yield name


@pytest.fixture(scope="session")
def installations(
    request: pytest.FixtureRequest, servers: Servers, template: str
) -> Iterator[Installations]:
    """Where a test gets its installation."""
    disposable = request.config.stash[BACKEND].name != "given"
    with closing(Installations(servers, template, disposable=disposable)) as made:
        yield made


@pytest.fixture
def system(installations: Installations, tmp_path: Path) -> Iterator[System]:
    """An installation of its own for one test, with four lanes."""
    with installations.system(tmp_path, LANES) as made:
        yield made


@pytest.fixture
def one_lane(installations: Installations, tmp_path: Path) -> Iterator[System]:
    """An installation of its own for one test, with one lane: everything is in order."""
    with installations.system(tmp_path, lanes=1) as made:
        yield made


@pytest.fixture(scope="session")
def wired() -> Iterator[WiredKafka]:
    """A broker that can be reached through a proxy, too."""
    with wired_kafka() as kafka:
        yield kafka


@pytest.fixture(scope="session")
def wired_installations(servers: Servers, template: str, wired: WiredKafka) -> Iterator[Installations]:
    """Where a test gets its installation on that broker."""
    behind = Servers(servers.database_url, wired.bootstrap_servers)
    with closing(Installations(behind, template, disposable=True)) as made:
        yield made


@pytest.fixture
def wired_lane(wired_installations: Installations, tmp_path: Path) -> Iterator[System]:
    """An installation on that broker, with one lane."""
    with wired_installations.system(tmp_path, lanes=1) as made:
        yield made


@pytest.fixture(scope="session")
def secured_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """A broker that asks for passwords, checks ACLs and speaks TLS."""
    with secured_kafka(tmp_path_factory.mktemp("keys")) as kafka:
        yield kafka
