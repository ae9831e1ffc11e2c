"""The fault matrix: each fault that is injected, and what must happen. `make faults` prints it.

A test says with `@pytest.mark.fault(ROW)` which row it injects. Tests that are also marked `slow` run
only with `make faults`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import cast

import pytest

ROWS = {
    1: "consumer killed at any point: no loss, no second worker or outbox row",
    2: "relay killed before the Kafka commit: batch published once, under the next number",
    3: "relay killed between Kafka commit and acknowledge: acknowledged, nothing published again",
    4: "relay killed during recovery, repeatedly: same end state",
    5: "COMMIT done, reply lost: found out under the lock, no second insert",
    6: "COMMIT never arrives: rolled back, repeated once",
    7: "COMMIT still running at reconnect: waits for the lock, then decides",
    8: "wait for the synchronous standby cancelled: counted and logged, never treated as committed",
    9: "Postgres stopped at once and restarted: both processes resume",
    10: "Postgres restored to an older state: marker_ahead; repaired, nothing published twice",
    11: "asynchronous failover that lost commits: as 10; input read again gives the same worker ids",
    12: "backend terminated, idle time-outs: nothing is assumed to be committed",
    13: "deadlock, serialization failure, lock time-out: whole transaction retried, bounded",
    14: "disk full, read-only database: waits, reports it, resumes",
    15: "broker killed and restarted: resumes",
    16: "broker frozen for 5 to 60 s: own time-out treated as doubt, recovery",
    17: "reply to EndTxn lost: outcome from the log, new producer",
    18: "stale EndTxn reaches the next transaction: no effect",
    19: "record too large or invalid for its topic: only its row is parked, the others published once",
    20: "zombie relay: fenced, stops, owner unharmed",
    21: "relays start together, stop, join, leave: lanes acknowledge within 5 s, no repeated fencing",
    22: "zombie consumer: compare-and-set fails, rolled back, rejoins",
    23: "rebalance storm: progress, no duplicate",
    24: "input topic recreated: partition refused and reported, never silently restarted",
    25: "offset out of range, log truncated: partition refused and reported",
    26: "partitions added: read from their log start offset",
    27: "input with aborted transactions and gaps: committed records only",
    28: "marker deleted, of another outbox: refused; repaired",
    29: "clock jumps by an hour, slow DNS: no effect on ownership",
    30: "invalid commands, also large ones: dead-lettered byte for byte up to a bound, others accepted",
    31: "password or ACL revoked, certificate expired: clear error, no secret, resumes when restored",
    32: "SIGTERM with Kafka, Postgres or both away: exit code 0 within 5 s",
    33: "PgBouncer in transaction mode: relay detects it at the start and says so, consumer works",
    34: "a long transaction pins the xmin horizon: rate stays above 0.9",
    35: "a quiet week: the compacted markers stay, nothing changes",
    36: "one broker of three killed, rolling restart: resumes, nothing lost or published twice",
    37: "Postgres primary killed, synchronous standby promoted: resumes, no acknowledged row is lost",
    38: "a broker's commit marker comes again late, and the relay dies: the log decides",
    39: "a frozen, replaced broker wakes during a recovery: it reads the truth",
    40: "a copy of the database at work beside the original: refused by name, nothing lost",
    41: "a relay that reaches Postgres and not Kafka: its lanes go to the healthy ones within 15 s",
    42: "rows of `workers` locked or their update refused: lanes go on, named, deployed later",
    43: "idle connections forgotten in silence: first order within 12 s, at once after 4 minutes",
    52: "the input's log is cut and grows again: refused by name, what was never read is read",
    53: "restore, then repair with two inputs, or retry of parked rows or letters: nothing sent twice",
    54: "two installations share a dead-letter topic: letters go back to their own input only",
    55: "settings change between two readings of a command: one worker",
    60: "a row that another writer got wrong: parked by name, its neighbours published",
    61: "an output topic missing, forbidden, without a leader: its rows wait, named; all others go on",
    62: "lanes missing or hidden, the outbox's sequence set back: waits, says what to do",
    63: "synchronous standby away for minutes: alive, not ready, named; resumes, nothing doubled",
    66: "hostile settings of a server, database or role: no effect, in any form of session",
    67: "a policy hides rows from our role: an error by name, never a part of them",
    68: "a database that is not ours to use: refused by setup, by name, before it is changed",
    70: "a log that ends with transactions: consumed to its end under any leader; an open one is named",
    71: "a batch that cannot be decoded: its partition waits and is named, the others go on; repaired",
    72: "brokers that do not accept our time-out, others in our group: named with the remedy",
    80: "Postgres refuses a command's row: a dead letter, neighbours accepted; it takes none: waits",
    81: "`workers` lacks what is needed, or the search_path hides it: refused by name, no second one",
    82: "a trigger or a rule skips rows without an error: counted, no order without a worker",
    83: "the sequence of `workers.id` set back: named with the setval, no dead letter",
    84: "another login planted functions and operators in `public`: no statement of ours runs one",
    85: "a row for a topic that relays may not send to: parked with that reason, neighbours sent",
}


ROWS_OF = "rows of the fault matrix"  # property of a report; a worker has the test, the controller this


def rows_of(item: pytest.Item) -> Iterator[int]:
    """Yield the rows that a test injects."""
    for mark in item.iter_markers("fault"):
        yield from mark.args


class Outcomes:
    """The results of the tests of each row."""

    def __init__(self, reports: Iterable[pytest.TestReport]) -> None:
        """Sort the reports by row; one of a test counts: its call, or the phase that stopped it."""
        self._reports: defaultdict[int, list[pytest.TestReport]] = defaultdict(list)
        for report in reports:
            if report.when == "call" or not report.passed:
                for row in cast("list[int]", dict(report.user_properties)[ROWS_OF]):
                    self._reports[row].append(report)

    def table(self) -> Iterator[str]:
        """Yield the matrix, a line for each row, and the names of the failed tests."""
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
