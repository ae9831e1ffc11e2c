"""Runs the measurements in turn, round after round, and judges them.

    python -m bench                            everything but the peers, about 15 minutes
    python -m bench --quick                    fewer rows and rounds, under 3 minutes
    python -m bench --peers                    the peers too
    python -m bench --only price wal           some measurements

Exit code 1 if a figure misses what it must reach.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import kafka, parts, scaling, sql, whole
from bench.report import read_facts, show, spread, write_report
from bench.site import Site, open_site
from bench.targets import Round, Verdict, judge

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Scale:
    """How much is measured. once: also what is measured a single time, for its length."""

    rows: int
    backlog: int
    dead: int
    seconds: float
    rounds: int


FULL = Scale(rows=200_000, backlog=1_000_000, dead=400_000, seconds=15, rounds=3)
QUICK = Scale(rows=40_000, backlog=100_000, dead=100_000, seconds=4, rounds=1)
LATENCY_RATE = 200

Phase = Callable[[Site, Scale], dict[str, float]]

EACH_ROUND: dict[str, Phase] = {
    "whole": lambda site, scale: whole.whole_way(site, scale.rows),
    "sql_product": lambda site, scale: sql.sql_product(site, scale.rows // 2),
    "sql_replay": lambda site, scale: sql.sql_replay(site, scale.rows // 2),
    "sql_pgbench": lambda site, scale: sql.sql_pgbench(site, scale.rows // 2),
    "kafka": lambda site, scale: kafka.kafka_floor(site, scale.rows),
    "relay": lambda site, scale: whole.relay_alone(site, scale.rows),
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
ONCE: dict[str, Phase] = {
    "memory": lambda site, scale: whole.memory(site, scale.backlog),
    "scaling": lambda site, scale: scaling.scaling(site, scale.rows // 20),
}


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for; return the exit code."""
    options = parse(arguments)
    scale = QUICK if options.quick else FULL
    console = Console(stderr=True)
    with open_site() as site:
        facts = read_facts(site)
        rounds = run(site, scale, options.rounds or scale.rounds, options.only, console)
        verdicts = judge(rounds)
        write_report(options.output, facts, rounds, verdicts, site)
    Console().print(table(verdicts))
    console.print(f"report: {os.path.relpath(options.output)}/report.md")
    return 1 if any(verdict.failed for verdict in verdicts) else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    phases = [*EACH_ROUND, *ONCE]
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the orchestrator.")
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds")
    parser.add_argument("--rounds", type=int, help="how often each measurement is taken")
    parser.add_argument(
        "--only", nargs="+", choices=phases, default=phases, metavar="NAME", help=", ".join(phases)
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the report")
    return parser.parse_args(arguments)


def run(site: Site, scale: Scale, rounds: int, wanted: Sequence[str], console: Console) -> list[Round]:
    """Take all measurements in turn, `rounds` times and once before to warm up."""
    repeated = {name: phase for name, phase in EACH_ROUND.items() if name in wanted}
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
