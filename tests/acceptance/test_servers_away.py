"""Servers that are away are waited for: quietly, alive, unready, and ready to stop at any time."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import msgspec
import psutil  # type: ignore[import-untyped]
import pytest

from orchestrator.config.timings import ProcessTimings
from testkit.empty_installation import end_all
from testkit.eventually import eventually
from testkit.private_servers import Work, own_servers, start, wait_ready, wait_unready
from testkit.system import Running

pytestmark = pytest.mark.xdist_group("own servers: PostgreSQL and Kafka")

CPU_OVER_S = 1.0
CPU_SHARE = 0.3  # of one core, while there is nothing to do but wait


@pytest.fixture(scope="module")
def installed() -> Iterator[Work]:
    with own_servers("away") as work:
        yield work


@pytest.fixture
def work(installed: Work) -> Iterator[Work]:
    """Both servers run; no process of ours does, nor is left."""
    installed.bring_back()
    yield installed
    end_all(installed.system)


def complaints(process: Running) -> Counter[str]:
    """Count what the process said at WARNING and above, whatever the time."""
    lines = [msgspec.json.decode(line) for line in process.log.read_text().splitlines()]
    return Counter(
        " ".join(str(value) for name, value in line.items() if name != "time")
        for line in lines
        if line["level"] not in {"DEBUG", "INFO"}
    )


def cpu_shares(processes: Sequence[Running], over_s: float = CPU_OVER_S) -> list[float]:
    """Return how much of a core each process uses while it waits."""
    before = [psutil.Process(process.process.pid).cpu_times() for process in processes]
    started = time.monotonic()
    eventually(lambda: time.monotonic() - started > over_s, over_s + 5)
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
    for process, event in ((consumer, "consumer waiting"), (relay, "relay waiting")):
        said = [text for text in complaints(process).elements() if event in text]
        assert said
        assert len(said) == len(set(said)), said  # each once; Postgres is back before Kafka
        process.stop()


@pytest.mark.fault(9)
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


@pytest.mark.fault(15)
def test_kafka_may_go_and_come_back(work: Work) -> None:
    processes = start(work)
    wait_ready(*processes)
    work.send()
    work.check()
    work.kafka.kill()
    wait_unready(*processes)
    assert max(cpu_shares(processes, over_s=2 * ProcessTimings.gauge_period_s)) < CPU_SHARE
    work.bring_back()
    work.send()
    work.check()
    wait_ready(*processes)
    for process in processes:
        assert max(complaints(process).values()) == 1  # each thing once
        process.stop()


def test_after_all_that_every_command_was_delivered_exactly_once(work: Work) -> None:
    processes = start(work)
    work.send()
    work.check()
    for process in processes:
        process.stop()
