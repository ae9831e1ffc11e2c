"""Fixtures for every test."""

import signal
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from orchestrator.embedded import Servers
from testkit import summary as report
from testkit.proxied import WiredKafka, wired_kafka
from testkit.servers import START_ERRORS, Backend, choose_backend
from testkit.system import LANES, System, new_system, template_database
from tests.matrix import Outcomes, reason_of, rows_of

BACKEND = pytest.StashKey[Backend]()
OUTCOMES = pytest.StashKey[Outcomes]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `make faults` ask for the whole matrix."""
    parser.addoption("--faults", action="store_true", help="only fault tests, slow ones too; a table")


def pytest_configure(config: pytest.Config) -> None:
    """Choose the servers once; none is started before a test asks for it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    config.stash[BACKEND] = choose_backend()


def pytest_report_header(config: pytest.Config) -> str:
    """Say which servers the tests run against, and why."""
    backend = config.stash[BACKEND]
    return f"servers: {backend.name} ({backend.why})"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests to `make faults`, and name them; there, leave out all that inject no fault."""
    faults = config.getoption("--faults")
    if faults:
        kept = [item for item in items if any(rows_of(item)) or is_slow(item)]
    else:
        kept = [item for item in items if not is_slow(item)]
    left = [item for item in items if item not in kept]
    if faults:
        config.stash[OUTCOMES] = Outcomes(kept)
    else:
        slow = dict.fromkeys(item.nodeid.partition("[")[0] for item in left)
        report.lines.extend(f"left to `make faults`: {name}" for name in slow)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def is_slow(item: pytest.Item) -> bool:
    """Say whether a test takes too long for `make test`."""
    return item.get_closest_marker("slow") is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note for the matrix what became of a test."""
    made = yield
    if outcomes := item.config.stash.get(OUTCOMES, None):
        outcomes.note(made)
    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell what the tests reported, and name each one that did not run."""
    for line in report.lines:
        terminalreporter.write_line(line, yellow=True)
    for skipped in terminalreporter.getreports("skipped"):
        terminalreporter.write_line(f"not run: {skipped.nodeid}: {reason_of(skipped)}", yellow=True)
    if outcomes := terminalreporter.config.stash.get(OUTCOMES, None):
        for line in outcomes.table():
            terminalreporter.write_line(line)


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


@pytest.fixture
def system(servers: Servers, template: str, tmp_path: Path) -> Iterator[System]:
    """An installation of its own for one test, with four lanes."""
    with new_system(servers, template, tmp_path, lanes=LANES) as made:
        yield made


@pytest.fixture
def one_lane(servers: Servers, template: str, tmp_path: Path) -> Iterator[System]:
    """An installation of its own for one test, with one lane: everything is in order."""
    with new_system(servers, template, tmp_path, lanes=1) as made:
        yield made


@pytest.fixture(scope="session")
def wired() -> Iterator[WiredKafka]:
    """A broker that can be reached through a proxy, too."""
    with wired_kafka() as kafka:
        yield kafka


@pytest.fixture
def wired_lane(servers: Servers, template: str, wired: WiredKafka, tmp_path: Path) -> Iterator[System]:
    """An installation on that broker, with one lane."""
    behind = Servers(servers.database_url, wired.bootstrap_servers)
    with new_system(behind, template, tmp_path, lanes=1) as made:
        yield made
