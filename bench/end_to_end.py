"""Measurements of the real processes, as in production."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import quantiles

from bench.load import Arrivals, fill_input, fill_outbox, reading, send_at
from bench.testbed import Meters, Testbed, read_commits, resident_mb
from testkit.private_servers import wait_ready
from testkit.system import Running, System

WARM_S = 2.0  # at the start of a measurement of latency, not counted
BURN = "while True: pass"


def run_end_to_end(testbed: Testbed, commands: int) -> dict[str, float]:
    """Measure consumer and relay together, with all commands waiting in the input topic."""
    with testbed.system() as system:
        fill_input(system, commands)
        commits = read_commits(system)
        with reading(system) as arrivals:
            processes = [system.start("consumer"), system.start("relay")]
            meters = Meters(system, pids_of(testbed, processes))
            arrivals.wait_for(commands)
            figures = meters.per_message(commands)
        for process in processes:
            process.stop()
        commits = read_commits(system) - commits
    began = arrivals.curve[0][0]
    testbed.series["still to be delivered"] = [(at - began, commands - n) for at, n in arrivals.curve]
    return {"rate": arrivals.rate(commands), "commits": commits / commands} | figures


def relays_alone(testbed: Testbed, rows: int, relays: int = 1) -> dict[str, float]:
    """Measure relays with all rows waiting in the outbox, ten to a key, in four lanes."""
    with testbed.system() as system:
        fill_outbox(system, rows)
        with reading(system) as arrivals:
            processes = [system.start("relay") for _ in range(relays)]
            meters = Meters(system, pids_of(testbed, processes))
            arrivals.wait_for(rows)
            figures = meters.per_message(rows)
    return {"rate": arrivals.rate(rows)} | figures


def latency(testbed: Testbed, rate: int, seconds: float) -> dict[str, float]:
    """Measure from producing a command to reading its order, at a steady rate."""
    with testbed.system() as system, reading(system, keep=True) as arrivals, both_processes(system):
        figures = measure_latency(system, arrivals, rate, seconds)
        testbed.series["latency"] = share_below(arrivals.latencies_ms[int(rate * WARM_S) :])
        return figures


def latency_when_busy(testbed: Testbed, rate: int, seconds: float) -> dict[str, float]:
    """Measure the same while another program keeps both cores busy."""
    with testbed.system() as system, reading(system, keep=True) as arrivals, both_processes(system):
        burners = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(2)]
        try:
            return measure_latency(system, arrivals, rate, seconds)
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()


def measure_latency(system: System, arrivals: Arrivals, rate: int, seconds: float) -> dict[str, float]:
    """Send at a steady rate and return percentiles in ms."""
    send_at(system, rate, WARM_S + seconds)
    arrivals.wait_for(int(rate * (WARM_S + seconds)))
    counted = arrivals.latencies_ms[int(rate * WARM_S) :]
    cuts = quantiles(counted, n=100)
    return {"p50_ms": cuts[49], "p90_ms": cuts[89], "p99_ms": cuts[98], "max_ms": max(counted)}


def share_below(values: Sequence[float]) -> list[tuple[float, float]]:
    """Return the distribution: each value with the percentage of values up to it."""
    return [(value, 100 * (rank + 1) / len(values)) for rank, value in enumerate(sorted(values))]


def idle(testbed: Testbed, seconds: float) -> dict[str, float]:
    """Measure the CPU of both processes and their sessions with nothing to do."""
    with testbed.system() as system, both_processes(system) as processes:
        time.sleep(3)
        sessions = [pid for (pid,) in system.query(SESSIONS)]
        pids = dict(pids_of(testbed, processes, servers=False))
        pids |= {f"session_{pid}": pid for pid in sessions} if testbed.pids else {}
        meters = Meters(system, pids)
        time.sleep(seconds)
        shares = meters.share()
    postgres = sum(share for name, share in shares.items() if "session" in name)
    ours = {name: share for name, share in shares.items() if "session" not in name}
    return ours | {"cpu_percent_postgres": postgres, "cpu_percent": sum(shares.values())}


SESSIONS = """
    SELECT pid FROM pg_stat_activity
     WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


def memory(testbed: Testbed, backlog: int) -> dict[str, float]:
    """Measure the memory of both processes while they work off a long backlog of each."""
    with testbed.system() as system:
        fill_outbox(system, backlog)
        fill_input(system, backlog)
        with reading(system) as arrivals:
            processes = [system.start("consumer"), system.start("relay")]
            curves: list[list[float]] = [[] for _ in processes]
            while arrivals.count < 2 * backlog:
                for curve, process in zip(curves, processes, strict=True):
                    curve.append(resident_mb(process.process.pid))
                time.sleep(0.25)
    figures: dict[str, float] = {}
    for name, curve in zip(("consumer", "relay"), curves, strict=True):
        early = max(curve[: len(curve) // 4])
        figures |= {f"{name}_mb": max(curve), f"{name}_growth": max(curve) / early}
    return figures


@contextmanager
def both_processes(system: System) -> Iterator[list[Running]]:
    """Start consumer and relay, wait until both are ready, and stop them after the block."""
    processes = [system.start("consumer"), system.start("relay")]
    wait_ready(*processes)
    yield processes
    for process in processes:
        process.stop()


def pids_of(
    testbed: Testbed, processes: Sequence[Running], *, servers: bool = True
) -> Mapping[str, int]:
    """Return pids by name, of at most two processes of a kind, and of the servers that run here."""
    ours: dict[str, int] = {}
    for running in processes:
        name = running.log.stem.partition("-")[2]
        ours[f"{name}_2" if name in ours else name] = running.process.pid
    return {**ours, **(testbed.pids if servers else {})}
