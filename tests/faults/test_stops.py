"""SIGTERM ends every process within 5 s and with exit code 0, whatever it does and whatever is away."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random

import pytest

from testkit.eventually import eventually
from testkit.private_servers import Work, own_servers, pause, start, wait_ready
from testkit.system import Running

pytestmark = pytest.mark.xdist_group("own servers: PostgreSQL and Kafka")

STOPS = 100
AT_ONCE = 4  # processes; more would wait for a core instead of for a server
BACKLOG = 2000

State = Callable[[Work, list[Running]], None]


@pytest.fixture(scope="module")
def work() -> Iterator[Work]:
    with own_servers("stops") as work:
        yield work


def are_idle(_work: Work, processes: list[Running]) -> None:
    wait_ready(*processes)


def are_busy(work: Work, processes: list[Running]) -> None:
    wait_ready(*processes)
    work.system.submit(BACKLOG)
    work.sent += BACKLOG


def miss_kafka(work: Work, processes: list[Running]) -> None:
    are_busy(work, processes)
    work.kafka.kill()


def miss_postgres(work: Work, processes: list[Running]) -> None:
    are_busy(work, processes)
    work.postgres.stop("immediate")


def miss_both(work: Work, processes: list[Running]) -> None:
    miss_kafka(work, processes)
    work.postgres.stop("immediate")


def freeze_both(work: Work, processes: list[Running]) -> None:
    """As a network cut: open connections, no answer."""
    are_busy(work, processes)
    for server in (work.kafka, work.postgres):
        pause(server.pid)


def recover(work: Work, processes: list[Running]) -> None:
    """Be stopped at any moment of the first two seconds: imports, sessions, fences, markers.

    From our first line on: before it, the interpreter itself still starts, and SIGTERM just ends it.
    """
    work.system.submit(10)
    work.sent += 10
    for process in processes:
        eventually(partial(catches_sigterm, process))
    moment = time.monotonic() + Random().uniform(0, 2)
    eventually(lambda: time.monotonic() > moment)


def catches_sigterm(process: Running) -> bool:
    """Say whether the process has a handler of its own, as the kernel knows it."""
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


STATES = [are_idle, are_busy, miss_kafka, miss_postgres, miss_both, freeze_both, recover]


@pytest.mark.fault(32)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
@pytest.mark.parametrize(
    "stops",
    [pytest.param(2, id="2 stops"), pytest.param(STOPS, id="100 stops", marks=pytest.mark.slow)],
)
@pytest.mark.timeout(1200)
def test_processes_stop_in_time(work: Work, state: State, stops: int) -> None:
    stopped = 0
    with ThreadPoolExecutor(AT_ONCE) as threads:
        while stopped < stops:
            work.bring_back()
            processes = [process for _ in range(min(AT_ONCE, stops) // 2) for process in start(work)]
            state(work, processes)
            for end in [threads.submit(process.stop) for process in processes]:
                end.result()
            stopped += len(processes)
    work.bring_back()


def test_after_all_those_stops_every_command_is_delivered_exactly_once(work: Work) -> None:
    work.bring_back()
    start(work)
    work.send()
    work.check()
