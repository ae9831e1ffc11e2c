"""The report of a run: Markdown with a plot, and JSON."""

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import confluent_kafka
import matplotlib as mpl
import psutil  # type: ignore[import-untyped]

from bench.targets import Round, Score
from bench.testbed import Testbed
from orchestrator.embedded import KAFKA_VERSION

mpl.use("svg")
from matplotlib import pyplot as plt  # after mpl.use

RATES = ("whole", "relay", "sql_product", "sql_replay", "sql_pgbench", "kafka")


@dataclass(frozen=True)
class Facts:
    """The conditions of a run."""

    commit: str
    cpu: str
    cores: int
    memory_gb: float
    load_before: float
    system: str
    python: str
    postgres: str
    kafka: str
    psycopg: str
    librdkafka: str


def read_facts(testbed: Testbed) -> Facts:
    """Read the facts of the machine and the servers."""
    ((postgres,),) = testbed.query("SHOW server_version")
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return Facts(
        commit=commit or "unknown",
        cpu=cpu_model(),
        cores=os.cpu_count() or 0,
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        load_before=round(os.getloadavg()[0], 2),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        postgres=str(postgres),
        kafka=f"embedded {KAFKA_VERSION}" if testbed.pids else "given",
        psycopg=version("psycopg"),
        librdkafka=confluent_kafka.libversion()[0],
    )


def cpu_model() -> str:
    """Return the processor's name, if the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def write_report(
    directory: Path, facts: Facts, rounds: Sequence[Round], scores: Sequence[Score], testbed: Testbed
) -> None:
    """Write report.md, report.json and plot.svg."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.md").write_text("\n".join(markdown(facts, rounds, scores)) + "\n")
    judged = [
        {"number": v.target.number, "figure": v.target.text, "median": v.median, "score": v.word}
        for v in scores
    ]
    content = {"facts": asdict(facts), "targets": judged, "rounds": rounds}
    (directory / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    plot(directory / "plot.svg", rounds, testbed.series)


def markdown(facts: Facts, rounds: Sequence[Round], scores: Sequence[Score]) -> Iterator[str]:
    """Yield the report's lines."""
    yield f"# Benchmark of {facts.commit}"
    yield ""
    yield from (f"- {name.replace('_', ' ')}: {value}" for name, value in asdict(facts).items())
    yield f"- rounds: {len(rounds)}, all measurements in turn; one warm-up round before them"
    yield ""
    yield "## Targets"
    yield ""
    yield "| | figure | measured | target | limit | |"
    yield "|---|---|---|---|---|---|"
    for score in scores:
        target = score.target
        sign = "at most " if target.most else ""
        yield (
            f"| {target.number} | {target.text} | {spread(score.values)} | {sign}{show(target.good)}"
            f" | {sign}{show(target.bound)} | {score.word} |"
        )
    yield ""
    yield "![rates, latency, backlog](plot.svg)"
    yield ""
    yield "## Figures"
    yield ""
    yield "Rates in rows/s; CPU in microseconds a message, with the start of the processes."
    yield ""
    yield "| measurement | figure | median (lowest to highest) |"
    yield "|---|---|---|"
    for phase, figure, values in columns(rounds):
        yield f"| {phase} | {figure} | {spread(values)} |"


def columns(rounds: Sequence[Round]) -> Iterator[tuple[str, str, list[float]]]:
    """Yield each figure of each measurement with its values."""
    phases = dict.fromkeys(phase for one in rounds for phase in one)
    for phase in phases:
        measured = [one[phase] for one in rounds if phase in one]
        for figure in measured[0]:
            yield phase, figure, [figures[figure] for figures in measured]


def spread(values: Sequence[float]) -> str:
    """Show a median and its spread."""
    if len(values) == 1:
        return show(values[0])
    return f"{show(median(values))} ({show(min(values))} to {show(max(values))})"


def show(value: float) -> str:
    """Show a value with about three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plot(
    file: Path, rounds: Sequence[Round], series: Mapping[str, Sequence[tuple[float, float]]]
) -> None:
    """Draw rates, the distribution of latency, and the backlog over time."""
    figure, (rates, latency, backlog) = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    shown = {
        f"{phase} {name}".removesuffix(" rate"): values
        for phase, name, values in columns(rounds)
        if phase in RATES and name.endswith("rate") and not name.startswith(("insert", "relay"))
    }
    middles = [median(values) for values in shown.values()]
    errors = [
        [middle - min(values) for middle, values in zip(middles, shown.values(), strict=True)],
        [max(values) - middle for middle, values in zip(middles, shown.values(), strict=True)],
    ]
    rates.barh(list(shown), middles, xerr=errors)
    rates.set_xlabel("rows a second, median and spread")
    rates.invert_yaxis()
    for axes, name, x, y in (
        (latency, "latency", "ms from produce to read, at 200/s", "percent of the orders"),
        (backlog, "still to be delivered", "seconds", "commands still to be delivered"),
    ):
        if name in series:
            axes.plot(*zip(*series[name], strict=True))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
    if "latency" in series:
        latency.set_xscale("log")
    mpl.rcParams["svg.hashsalt"] = "bench"  # the same figures give the same file
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
