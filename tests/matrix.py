"""The fault matrix: what is done to the system, and what must happen. `make faults` prints it.

A test says with `@pytest.mark.fault(ROW)` which row it injects. Tests marked `slow` too are left to
`make faults`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import pytest

ROWS = {
    1: "consumer killed at any point: no loss, no second worker or outbox row",
    2: "relay killed before the Kafka commit: batch published once, under the same number",
    3: "relay killed between Kafka commit and acknowledge: acknowledged, nothing sent again",
    4: "killed during recovery itself, repeatedly: same end state",
    5: "COMMIT done, reply lost: found out under the lock, no second insert",
    6: "COMMIT never arrives: rolled back, done again once",
    7: "COMMIT still running at reconnect: waits on the lock, then decides",
    8: "wait for the synchronous standby cancelled: counted and logged, never taken as safe",
    9: "Postgres stopped at once and restarted: both resume",
    10: "Postgres restored to an older state: refused as marker_ahead; repaired, nothing sent twice",
    11: "asynchronous failover that lost commits: as 10; input read again yields the same worker ids",
    12: "backend terminated, idle time-outs: nothing assumed committed",
    13: "deadlock, serialization failure, lock time-out: the whole transaction again, bounded",
    14: "disk full, read-only database: waits, says so, resumes",
    15: "broker killed and restarted: resumes",
    16: "broker paused for 5 to 60 s: own time-out seen as doubt, recovery",
    17: "reply to EndTxn lost: outcome by marker, new producer",
    18: "stale EndTxn reaches the next transaction: no effect",
    19: "record too large or invalid for its topic: it alone is parked, neighbours go out once",
    20: "zombie relay: fenced, gives up, owner unharmed",
    21: "relays start together, stop, join, leave: lanes acknowledge within 5 s, no fencing back and forth",
    22: "zombie consumer: compare-and-set fails, rolled back, joins again",
    23: "rebalance storm: progress, no duplicate",
    24: "input topic deleted and made anew: partition paused and reported, never silently restarted",
    25: "offset out of range, log truncated: paused and reported",
    26: "partitions added: read from their beginning",
    27: "input with aborted transactions and gaps: committed records only",
    28: "marker expired, deleted, foreign: refused; repaired",
    29: "clock jumps an hour, slow DNS: no effect on ownership",
    30: "poison messages: dead-lettered byte for byte, neighbours flow",
    31: "password or ACL revoked, certificate expired: clear error, no secret, resumes when restored",
    32: "SIGTERM with Kafka, Postgres or both away: exit code 0 within 5 s",
    33: "PgBouncer in transaction mode in front: relay refuses by name at start, consumer works",
    34: "a long transaction pins the horizon: rate stays above 0.9",
    35: "a quiet week: marker refreshed, nothing changes",
    36: "one broker of three killed, rolling restart: resumes, nothing lost or twice",
    37: "Postgres primary killed, synchronous standby promoted: resumes, all acknowledged rows there",
}


def rows_of(item: pytest.Item) -> Iterator[int]:
    """Yield the rows that a test injects."""
    for mark in item.iter_markers("fault"):
        yield from mark.args


class Outcomes:
    """What became of the tests of each row."""

    def __init__(self, items: Iterable[pytest.Item]) -> None:
        self._rows = {item.nodeid: list(rows_of(item)) for item in items}
        self._reports: defaultdict[int, list[pytest.TestReport]] = defaultdict(list)

    def note(self, report: pytest.TestReport) -> None:
        """Take one report; a test has one that counts: its call, or the phase that stopped it."""
        if report.when == "call" or not report.passed:
            for row in self._rows.get(report.nodeid, ()):
                self._reports[row].append(report)

    def table(self) -> Iterator[str]:
        """Yield the matrix, a line a row, and the names of the tests that failed."""
        for row, text in ROWS.items():
            reports = self._reports[row]
            passed = sum(report.passed for report in reports)
            failed = [report.nodeid for report in reports if report.failed]
            why = ""
            if failed:
                outcome = f"BROKEN ({len(failed)} of {len(reports)})"
            elif passed:
                outcome = f"holds ({passed})"
            else:
                outcome = "not run"
                why = "".join(f" [{reason}]" for reason in dict.fromkeys(map(reason_of, reports)))
            yield f"{row:>3}  {outcome:<16} {text}{why}"
            yield from (f"     {test}" for test in failed)


def reason_of(skipped: pytest.TestReport) -> str:
    """Return why a test did not run."""
    return str(skipped.longrepr[2]).removeprefix("Skipped: ")  # type: ignore[index]  # (file, line, reason)
