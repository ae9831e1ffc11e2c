"""Runs the measurements in turn, round after round, and compares them with their targets.

    python -m bench                            everything except the peers, about 15 minutes
    python -m bench --quick                    fewer rows and rounds, under 3 minutes
    python -m bench --check                    the ratios that a change could spoil, 100,000 rows
    python -m bench --peers                    the peers too
    python -m bench --only price wal           some measurements

Exit code 1 if a figure misses its limit.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import components, end_to_end, kafka, pgbench, scaling, sql
from bench.peers import Peer
from bench.peers.debezium import debezium
from bench.peers.naive import naive
from bench.peers.ours import ours
from bench.peers.polling import polling
from bench.report import read_facts, show, spread, write_report
from bench.targets import Round, Score, judge
from bench.testbed import Testbed, open_testbed
from orchestrator.runtime.process import configure_gc

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rows: int
    backlog: int
    dead: int
    seconds: float
    rounds: int


FULL = Scale(rows=200_000, backlog=1_000_000, dead=400_000, seconds=15, rounds=3)
QUICK = Scale(rows=40_000, backlog=100_000, dead=100_000, seconds=4, rounds=1)
CHECK = Scale(rows=100_000, backlog=100_000, dead=100_000, seconds=4, rounds=2)
CHECKED = ("price", "backlog", "horizon", "wal")
LATENCY_RATE = 200

Phase = Callable[[Testbed, Scale], dict[str, float]]

EACH_ROUND: dict[str, Phase] = {
    "whole": lambda testbed, scale: end_to_end.run_end_to_end(testbed, scale.rows),
    "sql_product": lambda testbed, scale: sql.sql_product(testbed, scale.rows // 2),
    "sql_replay": lambda testbed, scale: sql.sql_replay(testbed, scale.rows // 2),
    "sql_pgbench": lambda testbed, scale: pgbench.sql_pgbench(testbed, scale.rows // 2),
    "kafka": lambda testbed, scale: kafka.kafka_limit(testbed, scale.rows),
    "relay": lambda testbed, scale: end_to_end.relays_alone(testbed, scale.rows),
    "relay_pair": lambda testbed, scale: end_to_end.relays_alone(testbed, scale.rows, relays=2),
    "price": lambda testbed, scale: components.relay_price(testbed, scale.rows // 2),
    "relay_batches": lambda testbed, scale: components.relay_batches(testbed, scale.rows // 2),
    "consumer_batches": lambda testbed, scale: components.consumer_batches(testbed, scale.rows // 2),
    "backlog": lambda testbed, scale: components.backlog(testbed, scale.backlog),
    "horizon": lambda testbed, scale: components.pinned_horizon(testbed, scale.rows // 4, scale.dead),
    "wal": lambda testbed, scale: components.wal(testbed, scale.rows // 4),
    "latency": lambda testbed, scale: end_to_end.latency(testbed, LATENCY_RATE, scale.seconds),
    "latency_busy": lambda testbed, scale: end_to_end.latency_when_busy(
        testbed, LATENCY_RATE, scale.seconds
    ),
    "idle": lambda testbed, scale: end_to_end.idle(testbed, scale.seconds),
}
PEERS: dict[str, Callable[[Testbed, Path], AbstractContextManager[Peer]]] = {
    "peer_ours": lambda testbed, _: ours(testbed),
    "peer_ours_pair": lambda testbed, _: ours(testbed, relays=2),
    "peer_debezium": lambda testbed, directory: debezium(testbed.servers, directory, exactly_once=True),
    "peer_debezium_at_least_once": lambda testbed, directory: debezium(
        testbed.servers, directory, exactly_once=False
    ),
    "peer_polling_100": lambda testbed, _: polling(testbed.servers, 100),
    "peer_polling_1000": lambda testbed, _: polling(testbed.servers, 1000),
    "peer_naive": lambda testbed, _: naive(testbed.servers),
}
# It works on one order at a time: it gets fewer orders, at a lower rate.
SLOW_PEER, SLOW_PEERS_SHARE, SLOW_PEERS_RATE = "peer_naive", 100, 20


def measured(name: str) -> Phase:
    """Return the measurement of a peer: rate with all orders waiting, latency at a steady rate."""

    def measure(testbed: Testbed, scale: Scale) -> dict[str, float]:
        share = SLOW_PEERS_SHARE if name == SLOW_PEER else 1
        with (
            TemporaryDirectory(dir=testbed.directory) as directory,
            PEERS[name](testbed, Path(directory)) as peer,
        ):
            rate = peer.drain(scale.rows // 2 // share)
            at = LATENCY_RATE if share == 1 else SLOW_PEERS_RATE
            cuts = quantiles(peer.latencies(at, scale.seconds), n=100)
        return {"rate": rate, "p50_ms": cuts[49], "p99_ms": cuts[98]}

    return measure


ONCE: dict[str, Phase] = {
    "memory": lambda testbed, scale: end_to_end.memory(testbed, scale.backlog),
    "scaling": lambda testbed, scale: scaling.scaling(testbed, scale.rows // 20),
}


def main(arguments: Sequence[str]) -> int:
    """Run the chosen measurements; return the exit code."""
    options = parse(arguments)
    scale = CHECK if options.check else QUICK if options.quick else FULL
    console = Console(stderr=True)
    configure_gc()  # as the processes do
    with open_testbed() as testbed:
        facts = read_facts(testbed)
        every = [*EACH_ROUND, *ONCE, *(PEERS if options.peers else ())]
        wanted = options.only or (CHECKED if options.check else every)
        number = options.rounds or scale.rounds
        rounds = run(testbed, scale, number, wanted, console)
        scores = judge(rounds, options.check)
        if options.check and any(score.failed for score in scores):
            console.print("a limit is missed: measuring again, all rounds count")
            rounds += run(testbed, scale, 2 * number, wanted, console)
            scores = judge(rounds, options.check)
        write_report(options.output, facts, rounds, scores, testbed)
    Console().print(table(scores))
    console.print(f"report: {os.path.relpath(options.output)}/report.md")
    return 1 if any(score.failed for score in scores) else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    phases = [*EACH_ROUND, *ONCE, *PEERS]
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the orchestrator.")
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds")
    parser.add_argument("--check", action="store_true", help=f"only {', '.join(CHECKED)}")
    parser.add_argument("--peers", action="store_true", help="also other ways to publish an outbox")
    parser.add_argument("--rounds", type=int, help="how often each measurement is taken")
    parser.add_argument("--only", nargs="+", choices=phases, metavar="NAME", help=", ".join(phases))
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the report")
    return parser.parse_args(arguments)


def run(
    testbed: Testbed, scale: Scale, rounds: int, wanted: Sequence[str], console: Console
) -> list[Round]:
    """Take all measurements in turn, `rounds` times, and once before as a warm-up."""
    each_round = EACH_ROUND | {name: measured(name) for name in PEERS}
    repeated = {name: phase for name, phase in each_round.items() if name in wanted}
    once = {name: phase for name, phase in ONCE.items() if name in wanted}
    total = len(repeated) * (rounds + 1) + len(once)
    results: list[dict[str, dict[str, float]]] = []
    columns = (
        TextColumn("{task.description:>30}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)

        def take(name: str, phase: Phase, label: str) -> dict[str, float]:
            progress.update(task, description=f"{label}: {name}")
            if not console.is_terminal:
                console.print(f"{label}: {name}")
            figures = phase(testbed, scale)
            progress.advance(task)
            return figures

        for number in range(rounds + 1):
            label = f"round {number} of {rounds}" if number else "warming up"
            results.append({name: take(name, phase, label) for name, phase in repeated.items()})
        del results[0]
        for name, phase in once.items():
            results[0][name] = take(name, phase, "once")
    return list(results)


def table(scores: Sequence[Score]) -> Table:
    """Return the scores as a table for the terminal."""
    result = Table()
    for heading in ("", "figure", "measured", "target", "limit", ""):
        result.add_column(heading)
    for score in scores:
        target = score.target
        sign = "<= " if target.most else ">= "
        result.add_row(
            target.number,
            target.text,
            spread(score.values),
            sign + show(target.good),
            sign + show(target.bound),
            score.word,
        )
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
