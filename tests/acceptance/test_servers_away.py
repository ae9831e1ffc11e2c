"""Servers that are away are waited for: quietly, alive, unready, and ready to stop at any time."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from urllib.error import HTTPError
from urllib.request import urlopen

import msgspec
import psutil  # type: ignore[import-untyped]
import psycopg
import pytest

from orchestrator.embedded import EmbeddedKafka, EmbeddedPostgres, Servers
from orchestrator.embedded.server import EmbeddedServer
from orchestrator.setup import set_up
from tests.bare import end_all
from tests.containers import POSTGRES_SETTINGS, TEST_KAFKA_VERSION
from tests.eventually import eventually
from tests.servers import server_directory
from tests.system import Running, System, environ_of

BATCH = 50
BACK_S = 30  # until all works again: a dead member's session, a lane's silence, back-off
CPU_OVER_S = 1.0
CPU_SHARE = 0.3  # of one core, while there is nothing to do but wait


@dataclass
class Work:
    """An installation on servers of its own, and how many commands it was sent."""

    kafka: EmbeddedKafka
    postgres: EmbeddedPostgres
    system: System
    sent: int = 0

    def send(self) -> None:
        """Send some commands."""
        self.system.submit(BATCH)
        self.sent += BATCH

    def bring_back(self) -> None:
        """Wake and start both servers, and wait until they answer."""
        for server in (self.kafka, self.postgres):
            if server._process:
                wake(server.pid)
            server.launch()
        for server in (self.kafka, self.postgres):
            server.wait_until_ready()

    def check(self) -> None:
        """See that all that was ever sent is deployed exactly once."""
        self.system.check_exactly_once(self.sent, BACK_S)


@pytest.fixture(scope="module")
def installed() -> Iterator[Work]:
    with server_directory() as directory:
        kafka = EmbeddedKafka(directory / "kafka", version=TEST_KAFKA_VERSION)
        postgres = EmbeddedPostgres(directory / "postgres", settings=POSTGRES_SETTINGS)
        try:
            kafka.launch()
            postgres.start()
            kafka.wait_until_ready()
            (directory / "logs").mkdir()
            servers = Servers(postgres.url, kafka.bootstrap_servers)
            system = System(environ_of(servers, "away"), directory / "logs")
            with psycopg.connect(postgres.url, autocommit=True) as admin:
                admin.execute("CREATE DATABASE test_away")
            set_up(system.settings)
            yield Work(kafka, postgres, system)
        finally:
            postgres.kill()
            kafka.kill()


@pytest.fixture
def work(installed: Work) -> Iterator[Work]:
    """Both servers run; no process of ours does, nor is left."""
    installed.bring_back()
    yield installed
    end_all(installed.system)


def pause(pid: int) -> None:
    """Freeze a server with all its processes: connections stay open and nothing answers."""
    family(pid, psutil.Process.suspend)


def wake(pid: int) -> None:
    family(pid, psutil.Process.resume)


def family(pid: int, do: Callable[[psutil.Process], None]) -> None:
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            do(process)


def start(work: Work) -> tuple[Running, Running]:
    return work.system.start("consumer"), work.system.start("relay")


def answer(process: Running, path: str) -> int:
    try:
        with urlopen(f"http://127.0.0.1:{process.port()}/{path}", timeout=5) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code


def is_ready(process: Running) -> bool:
    return answer(process, "readyz") == 200


def is_unready(process: Running) -> bool:
    return answer(process, "readyz") == 503


def wait_ready(*processes: Running) -> None:
    for process in processes:
        eventually(partial(is_ready, process), BACK_S)


def wait_unready(*processes: Running) -> None:
    for process in processes:
        eventually(partial(is_unready, process), BACK_S)
        assert answer(process, "livez") == 200


def complaints(process: Running) -> Counter[str]:
    """Count what the process said at WARNING and above, whatever the time."""
    lines = [msgspec.json.decode(line) for line in process.log.read_text().splitlines()]
    return Counter(
        " ".join(str(value) for name, value in line.items() if name != "time")
        for line in lines
        if line["level"] not in {"DEBUG", "INFO"}
    )


def cpu_shares(processes: Sequence[Running]) -> list[float]:
    """Return how much of a core each process uses while it waits."""
    before = [psutil.Process(process.process.pid).cpu_times() for process in processes]
    started = time.monotonic()
    eventually(lambda: time.monotonic() - started > CPU_OVER_S)
    after = [psutil.Process(process.process.pid).cpu_times() for process in processes]
    return [
        (late.user + late.system - early.user - early.system) / (time.monotonic() - started)
        for early, late in zip(before, after, strict=True)
    ]


def test_processes_started_before_the_servers_wait_for_them(work: Work) -> None:
    work.send()
    work.kafka.kill()
    work.postgres.stop()
    consumer, relay = processes = start(work)
    wait_unready(*processes)
    assert max(cpu_shares(processes)) < CPU_SHARE
    work.bring_back()
    wait_ready(*processes)
    work.check()
    for process, event in ((consumer, "consumer waits"), (relay, "relay waits for Postgres")):
        said = [text for text in complaints(process).elements() if event in text]
        assert len(said) == 1, said
        process.stop()


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda work: work.postgres.stop("fast"), id="stopped"),
        pytest.param(lambda work: work.postgres.stop("immediate"), id="crashed"),
    ],
)
def test_postgres_may_go_and_come_back(work: Work, end: Callable[[Work], None]) -> None:
    processes = start(work)
    wait_ready(*processes)
    work.send()
    end(work)
    work.send()
    wait_unready(*processes)
    assert max(cpu_shares(processes)) < CPU_SHARE
    work.bring_back()
    wait_ready(*processes)
    work.check()
    for process in processes:
        assert set(complaints(process).values()) == {1}  # each thing once
        process.stop()


def test_kafka_may_go_and_come_back(work: Work) -> None:
    processes = start(work)
    wait_ready(*processes)
    work.send()
    work.check()
    work.kafka.kill()
    wait_unready(*processes)
    assert max(cpu_shares(processes)) < CPU_SHARE
    work.bring_back()
    work.send()
    work.check()
    wait_ready(*processes)
    for process in processes:
        assert max(complaints(process).values()) == 1  # each thing once
        process.stop()


AWAY: dict[str, Callable[[Work], Sequence[EmbeddedServer]]] = {
    "Kafka": lambda work: [work.kafka],
    "Postgres": lambda work: [work.postgres],
    "both": lambda work: [work.kafka, work.postgres],
}
HOW: dict[str, Callable[[EmbeddedServer], None]] = {
    "stopped": EmbeddedServer.kill,
    "frozen": lambda server: pause(server.pid),  # as a network cut: open connections, no answer
}


@pytest.mark.parametrize(
    ("servers", "how"),
    [("Kafka", "stopped"), ("Postgres", "stopped"), ("both", "stopped"), ("both", "frozen")],
)
def test_processes_stop_in_time_whatever_is_away(work: Work, servers: str, how: str) -> None:
    processes = start(work)
    wait_ready(*processes)
    work.send()  # so that something is in hand
    for server in AWAY[servers](work):
        HOW[how](server)
    with ThreadPoolExecutor(2) as threads:
        for stopped in [threads.submit(process.stop) for process in processes]:
            stopped.result()


def test_after_all_that_every_command_was_delivered_exactly_once(work: Work) -> None:
    processes = start(work)
    work.send()
    work.check()
    for process in processes:
        process.stop()
