"""Runs the measurements in turn, round after round, and judges them.

    python -m bench                            everything but the peers, about 15 minutes
    python -m bench --quick                    fewer rows and rounds, under 3 minutes
    python -m bench --check                    the ratios that a change could spoil, 100,000 rows
    python -m bench --peers                    the peers too
    python -m bench --only price wal           some measurements

Exit code 1 if a figure misses what it must reach.
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

from bench import kafka, parts, scaling, sql, whole
from bench.peers import Peer
from bench.peers.debezium import debezium
from bench.peers.naive import naive
from bench.peers.ours import ours
from bench.peers.polling import polling
from bench.report import read_facts, show, spread, write_report
from bench.site import Site, open_site
from bench.targets import Round, Verdict, judge
from orchestrator.runtime.process import collect_garbage_by_the_clock

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

Phase = Callable[[Site, Scale], dict[str, float]]

EACH_ROUND: dict[str, Phase] = {
    "whole": lambda site, scale: whole.whole_way(site, scale.rows),
    "sql_product": lambda site, scale: sql.sql_product(site, scale.rows // 2),
    "sql_replay": lambda site, scale: sql.sql_replay(site, scale.rows // 2),
    "sql_pgbench": lambda site, scale: sql.sql_pgbench(site, scale.rows // 2),
    "kafka": lambda site, scale: kafka.kafka_floor(site, scale.rows),
    "relay": lambda site, scale: whole.relays_alone(site, scale.rows),
    "relay_pair": lambda site, scale: whole.relays_alone(site, scale.rows, relays=2),
    "price": lambda site, scale: parts.relay_price(site, scale.rows // 2),
    "relay_batches": lambda site, scale: parts.relay_batches(site, scale.rows // 2),
    "consumer_batches": lambda site, scale: parts.consumer_batches(site, scale.rows // 2),
    "backlog": lambda site, scale: parts.backlog(site, scale.backlog),
    "horizon": lambda site, scale: parts.pinned_horizon(site, scale.rows // 4, scale.dead),
    "wal": lambda site, scale: parts.wal(site, scale.rows // 4),
    "latency": lambda site, scale: whole.latency(site, LATENCY_RATE, scale.seconds),
    "latency_busy": lambda site, scale: whole.latency_when_busy(site, LATENCY_RATE, scale.seconds),
    "idle": lambda site, scale: whole.idle(site, scale.seconds),
}
PEERS: dict[str, Callable[[Site, Path], AbstractContextManager[Peer]]] = {
    "peer_ours": lambda site, _: ours(site),
    "peer_ours_pair": lambda site, _: ours(site, relays=2),
    "peer_debezium": lambda site, place: debezium(site.servers, place, exactly_once=True),
    "peer_debezium_at_least_once": lambda site, place: debezium(
        site.servers, place, exactly_once=False
    ),
    "peer_polling_100": lambda site, _: polling(site.servers, 100),
    "peer_polling_1000": lambda site, _: polling(site.servers, 1000),
    "peer_naive": lambda site, _: naive(site.servers),
}
# One order after another: it gets fewer of them, more slowly.
SLOW_PEER, SLOW_PEERS_SHARE, SLOW_PEERS_RATE = "peer_naive", 100, 20


def measured(name: str) -> Phase:
    """Return the measurement of a peer: rate with all waiting, latency at a steady rate."""

    def measure(site: Site, scale: Scale) -> dict[str, float]:
        share = SLOW_PEERS_SHARE if name == SLOW_PEER else 1
        with TemporaryDirectory(dir=site.directory) as place, PEERS[name](site, Path(place)) as peer:
            rate = peer.drain(scale.rows // 2 // share)
            at = LATENCY_RATE if share == 1 else SLOW_PEERS_RATE
            cuts = quantiles(peer.latencies(at, scale.seconds), n=100)
        return {"rate": rate, "p50_ms": cuts[49], "p99_ms": cuts[98]}

    return measure


ONCE: dict[str, Phase] = {
    "memory": lambda site, scale: whole.memory(site, scale.backlog),
    "scaling": lambda site, scale: scaling.scaling(site, scale.rows // 20),
}


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for; return the exit code."""
    options = parse(arguments)
    scale = CHECK if options.check else QUICK if options.quick else FULL
    console = Console(stderr=True)
    collect_garbage_by_the_clock()  # as the processes do
    with open_site() as site:
        facts = read_facts(site)
        every = [*EACH_ROUND, *ONCE, *(PEERS if options.peers else ())]
        wanted = options.only or (CHECKED if options.check else every)
        number = options.rounds or scale.rounds
        rounds = run(site, scale, number, wanted, console)
        verdicts = judge(rounds, options.check)
        if options.check and any(verdict.failed for verdict in verdicts):
            console.print("a bound is missed: measuring again, all rounds count")
            rounds += run(site, scale, 2 * number, wanted, console)
            verdicts = judge(rounds, options.check)
        write_report(options.output, facts, rounds, verdicts, site)
    Console().print(table(verdicts))
    console.print(f"report: {os.path.relpath(options.output)}/report.md")
    return 1 if any(verdict.failed for verdict in verdicts) else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    phases = [*EACH_ROUND, *ONCE, *PEERS]
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the orchestrator.")
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds")
    parser.add_argument("--check", action="store_true", help=f"only {', '.join(CHECKED)}")
    parser.add_argument("--peers", action="store_true", help="other ways to do the same, too")
    parser.add_argument("--rounds", type=int, help="how often each measurement is taken")
    parser.add_argument("--only", nargs="+", choices=phases, metavar="NAME", help=", ".join(phases))
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the report")
    return parser.parse_args(arguments)


def run(site: Site, scale: Scale, rounds: int, wanted: Sequence[str], console: Console) -> list[Round]:
    """Take all measurements in turn, `rounds` times and once before to warm up."""
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
            figures = phase(site, scale)
            progress.advance(task)
            return figures

        for number in range(rounds + 1):
            label = f"round {number} of {rounds}" if number else "warming up"
            results.append({name: take(name, phase, label) for name, phase in repeated.items()})
        del results[0]
        for name, phase in once.items():
            results[0][name] = take(name, phase, "once")
    return list(results)


def table(verdicts: Sequence[Verdict]) -> Table:
    """Return the verdicts as a table for the terminal."""
    made = Table()
    for heading in ("", "figure", "measured", "target", "must reach", ""):
        made.add_column(heading)
    for verdict in verdicts:
        target = verdict.target
        sign = "<= " if target.most else ">= "
        made.add_row(
            target.number,
            target.text,
            spread(verdict.values),
            sign + show(target.good),
            sign + show(target.bound),
            verdict.word,
        )
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
