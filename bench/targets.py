"""The targets of the figures. A figure is calculated for each round; the median counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

Round = Mapping[str, Mapping[str, float]]  # phase -> figure -> value


@dataclass(frozen=True)
class Target:
    """A figure with its target (`good`) and its limit (`bound`). most: the figure must not be higher.

    alarm: a limit that the noise of a busy machine does not reach. `--check` uses it to find a change
    that spoils the figure.
    """

    number: str
    text: str
    value: Callable[[Round], float]
    good: float
    bound: float
    most: bool = False
    alarm: float | None = None

    def judge(self, rounds: Sequence[Round]) -> "Score | None":
        """Return the score of the figure; None if it was not measured."""
        values = [self.value(one) for one in rounds if self._is_in(one)]
        return Score(self, values) if values else None

    def _is_in(self, one: Round) -> bool:
        try:
            self.value(one)
        except KeyError:
            return False
        return True


@dataclass(frozen=True)
class Score:
    """A target and its values, one for each round."""

    target: Target
    values: Sequence[float]

    @property
    def median(self) -> float:
        """The value that counts."""
        return median(self.values)

    @property
    def failed(self) -> bool:
        """Return whether the limit is missed."""
        return not self._reaches(self.target.bound)

    @property
    def word(self) -> str:
        """Return the score in one word."""
        return "FAILED" if self.failed else "met" if self._reaches(self.target.good) else "passed"

    def _reaches(self, wanted: float) -> bool:
        return self.median <= wanted if self.target.most else self.median >= wanted


def sql_limit(one: Round) -> float:
    """Return the best rate of the SQL statements alone, both sides at once."""
    rates = [one[phase]["rate"] for phase in ("sql_replay", "sql_pgbench") if phase in one]
    if not rates:
        raise KeyError("sql_replay")
    return max(rates)


TARGETS = [
    Target(
        "1",
        "end to end / min(SQL limit, Kafka limit)",
        lambda r: r["whole"]["rate"] / min(r["sql_replay"]["rate"], r["kafka"]["transactions_rate"]),
        0.60,
        0.45,
    ),
    Target(
        "2",
        "SQL path of consumer + relay / best of pgbench and prebuilt replay",
        lambda r: r["sql_product"]["rate"] / sql_limit(r),
        0.85,
        0.75,
    ),
    Target(
        "3",
        "relay / idempotent without transactions, batch 500",
        lambda r: r["price"]["price"],
        0.90,
        0.80,
        alarm=0.60,
    ),
    Target("4a", "relay: batch 500 / batch 1", lambda r: r["relay_batches"]["gain"], 50, 30),
    Target("4b", "consumer: batch 500 / batch 1", lambda r: r["consumer_batches"]["gain"], 50, 30),
    Target(
        "5a",
        "drain rate with a long backlog / with 10,000 waiting",
        lambda r: r["backlog"]["rate"],
        0.95,
        0.85,
        alarm=0.65,
    ),
    Target(
        "5b",
        "claim p50, same",
        lambda r: r["backlog"]["claim_p50"],
        1.2,
        1.5,
        most=True,
        alarm=2.0,
    ),
    Target(
        "6",
        "rate with a transaction held elsewhere and many dead rows / without",
        lambda r: r["horizon"]["rate"],
        0.90,
        0.75,
        alarm=0.60,
    ),
    Target(
        "7",
        "WAL a message / of the two-table insert alone",
        lambda r: r["wal"]["ratio"],
        1.40,
        1.55,
        most=True,
        alarm=1.70,
    ),
    Target("8a", "latency at 200/s, p50, ms", lambda r: r["latency"]["p50_ms"], 8, 15, most=True),
    Target("8b", "latency at 200/s, p99, ms", lambda r: r["latency"]["p99_ms"], 25, 50, most=True),
    Target(
        "8c",
        "latency p99 end to end / of Debezium's half, exactly once",
        lambda r: r["latency"]["p99_ms"] / r["peer_debezium"]["p99_ms"],
        1,
        1,
        most=True,
    ),
    Target(
        "8d",
        "p99 with both cores kept busy, ms",
        lambda r: r["latency_busy"]["p99_ms"],
        100,
        200,
        most=True,
    ),
    Target("9a", "end to end, batch 1000, rows/s", lambda r: r["whole"]["rate"], 50_000, 30_000),
    Target("9b", "only the relay, rows/s", lambda r: r["relay"]["rate"], 70_000, 45_000),
    Target("10", "idle, percent of a core", lambda r: r["idle"]["cpu_percent"], 2, 4, most=True),
    Target("11a", "consumer, RSS in MB", lambda r: r["memory"]["consumer_mb"], 150, 150, most=True),
    Target("11b", "relay, RSS in MB", lambda r: r["memory"]["relay_mb"], 150, 150, most=True),
    Target("12a", "2 relays / 1", lambda r: r["scaling"]["relays"], 1.8, 1.8),
    Target("12b", "2 consumers / 1", lambda r: r["scaling"]["consumers"], 1.8, 1.8),
    Target(
        "13a",
        "relay / Debezium exactly once: rate",
        lambda r: r["peer_ours"]["rate"] / r["peer_debezium"]["rate"],
        2.5,
        2.0,
    ),
    Target(
        "13b",
        "relay / Debezium exactly once: latency p50",
        lambda r: r["peer_ours"]["p50_ms"] / r["peer_debezium"]["p50_ms"],
        1,
        1,
        most=True,
    ),
    Target(
        "13c",
        "relay / Debezium exactly once: latency p99",
        lambda r: r["peer_ours"]["p99_ms"] / r["peer_debezium"]["p99_ms"],
        1,
        1,
        most=True,
    ),
]


def judge(rounds: Sequence[Round], check: bool = False) -> list[Score]:
    """Return a score for each target that was measured. check: use its alarm as the limit."""
    targets = TARGETS
    if check:
        targets = [
            replace(target, bound=target.alarm) for target in TARGETS if target.alarm is not None
        ]
    scores = (target.judge(rounds) for target in targets)
    return [score for score in scores if score]
