"""Both processes killed, or frozen, at every named point, under every way of going on, and audited.

A seed chooses batch size, number of rows, keys, and which pass of the point is the fatal one.
"""

from collections.abc import Iterator
from contextlib import closing
from enum import StrEnum
from random import Random
from types import ModuleType
from typing import NamedTuple
from uuid import UUID

import pytest

import orchestrator
import outbox
from outbox import Message, enqueue, transaction
from testkit.eventually import eventually
from testkit.system import Running, System, crash_points, end_sessions, limit_messages

SEEDS = range(1, 6)
GROUP_S = 45  # a group misses a dead or frozen member for 6 s

# Points on the way of a batch, points that every start passes, one of a rejected record, one of a
# deferred worker.
RELAY_AT_WORK = ("locked", "acknowledged", "claimed", "begun", "produced", "published")
RELAY_AT_START = (
    "taken",
    "owner_checked",
    "barrier_written",
    "evidence_read",
    "fenced",
    "decided",
)
RELAY_REJECTED = ("begun_again",)
RELAY_DEFERRED = ("retried",)
CONSUMER_EACH_BATCH = ("polled", "advanced", "inserted", "enqueued", "committed")
CONSUMER_AT_WORK = (*CONSUMER_EACH_BATCH, "mirrored")
CONSUMER_AT_START = ("assigned",)


class Recovery(StrEnum):
    """How the work goes on."""

    RESTARTED = "started again"
    KILLED_AGAIN = "killed again on the way up, started again"
    TAKEN_OVER = "taken over by another that stood by"
    FROZEN = "frozen, taken over, thawed"


class Case(NamedTuple):
    """Where a process dies or freezes, and how it goes on. rows: of the fault matrix."""

    role: str
    point: str
    recovery: Recovery
    rows: tuple[int, ...]


def cases() -> Iterator[Case]:
    """Yield every point with every recovery that makes sense for it."""
    for point in (*RELAY_AT_WORK, *RELAY_AT_START, *RELAY_REJECTED, *RELAY_DEFERRED):
        row = 3 if point == "published" else 2
        yield Case("relay", point, Recovery.RESTARTED, (row,))
        yield Case("relay", point, Recovery.KILLED_AGAIN, (row, 4))
        if point in RELAY_AT_WORK:
            yield Case("relay", point, Recovery.TAKEN_OVER, (row,))
        if point not in RELAY_REJECTED:
            yield Case("relay", point, Recovery.FROZEN, (20,))
    for point in (*CONSUMER_AT_WORK, *CONSUMER_AT_START):
        yield Case("consumer", point, Recovery.RESTARTED, (1,))
        yield Case("consumer", point, Recovery.KILLED_AGAIN, (1, 4))
        yield Case("consumer", point, Recovery.TAKEN_OVER, (1,))
        yield Case("consumer", point, Recovery.FROZEN, (22,))


CASES = list(cases())
QUICK = Recovery.RESTARTED  # test_relays.py and test_ingest.py have quick zombies


def every_case(role: str) -> Iterator[object]:
    """Yield the cases of a role with every seed; all but the quick ones with the first are slow."""
    for case in CASES:
        for seed in SEEDS if case.role == role else ():
            quick = seed == SEEDS[0] and case.recovery is QUICK
            marks = [pytest.mark.fault(*case.rows), *([] if quick else [pytest.mark.slow])]
            name = f"{case.point}, {case.recovery}, seed {seed}"
            yield pytest.param(case, Random(seed), marks=marks, id=name)


@pytest.mark.parametrize(
    ("package", "role"),
    [(outbox, "relay"), (orchestrator, "consumer")],
    ids=["relay", "consumer"],
)
def test_every_point_in_the_code_has_a_case(package: ModuleType, role: str) -> None:
    assert crash_points(package, role) == {case.point for case in CASES if case.role == role}
    assert len(CASES) >= 40


# ---- the relay ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "random"), [*every_case("relay")])
def test_the_relay_dies_and_every_row_is_sent_once(
    one_lane: System, case: Case, random: Random
) -> None:
    batch = random.randint(2, 4)
    hit = 1
    if case.point in RELAY_AT_WORK:
        hit = random.randint(2, 4)
    elif case.point in RELAY_REJECTED:
        hit = random.randint(1, 2)  # shrunk to one row; that row parked
    settings = {"BATCH_SIZE": str(batch)}
    keys = [UUID(int=random.getrandbits(128)) for _ in range(3)]
    rows = 0

    def fill(count: int) -> None:
        nonlocal rows
        for _ in range(count):
            one_lane.accept(1, random.choice(keys))
        rows += count

    if case.point in RELAY_REJECTED:
        refuse_one_row(one_lane)
    elif case.point in RELAY_DEFERRED:
        one_lane.query("INSERT INTO outbox_deferred (aggregate_id, reason) VALUES (%s, '')", keys[0])
    if case.recovery is Recovery.TAKEN_OVER:
        first = one_lane.start("relay", crash_at=f"relay.{case.point}:{hit}", **settings)
        eventually(lambda: first.logged("lane recovered"))
        second = one_lane.start("relay", **settings)
        eventually(lambda: second.logged("relay connected"))
        fill(batch * hit + random.randint(1, 8))
        first.wait_killed()
    else:
        fill(batch * hit + random.randint(1, 8))
        again = random.choice(RELAY_AT_START)
        frozen = die_and_go_on(one_lane, case, hit, again, settings)
        one_lane.check_exactly_once(rows)
        if frozen:
            frozen.thaw()
        fill(3)
    one_lane.check_exactly_once(rows)
    parked = int(case.point in RELAY_REJECTED)
    assert one_lane.query("SELECT count(*) FROM outbox_parked") == [(parked,)]
    eventually(lambda: one_lane.query("SELECT count(*) FROM outbox_deferred") == [(0,)])


def refuse_one_row(system: System) -> None:
    """Put a row in front that its topic refuses."""
    limit_messages(system, 2000)
    with closing(system.connect()) as conn, transaction(conn):
        enqueue(conn, [Message(system.settings.output_topic, b"key", b"x" * 5000)], 1)


# ---- the consumer ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "random"), [*every_case("consumer")])
def test_the_consumer_dies_and_every_command_is_accepted_once(
    system: System, case: Case, random: Random
) -> None:
    batch = random.randint(1, 3)
    hit = random.randint(1, 3) if case.point in CONSUMER_EACH_BATCH else 1
    settings = {"BATCH_SIZE": str(batch)}
    commands = 0

    def send(count: int) -> None:
        nonlocal commands
        system.submit(count)
        commands += count

    if case.recovery is Recovery.TAKEN_OVER:
        first = system.start("consumer", crash_at=f"consumer.{case.point}:{hit}", **settings)
        system.start("consumer", **settings)

        def has_died() -> bool:
            send(5)
            return first.process.poll() is not None

        eventually(has_died)
    else:
        if case.recovery is not Recovery.FROZEN:
            settings["KAFKA_CONFIG_GROUP_INSTANCE_ID"] = "the one"  # no wait for its dead self
        send(2 * batch * hit + random.randint(2, 9))
        frozen = die_and_go_on(system, case, hit, random.choice(CONSUMER_AT_WORK), settings)
        eventually(lambda: system.statuses() == {"pending": commands}, GROUP_S)
        if frozen:
            frozen.thaw()
        send(3)
    system.start("relay")
    system.check_exactly_once(commands)
    assert system.query("SELECT sum(next_offset) FROM consumed_offsets") == [(commands,)]


# ---- both -----------------------------------------------------------------------------------------

SESSIONS = {"relay": "outbox %", "consumer": "orchestrator consumer"}


def die_and_go_on(
    system: System, case: Case, hit: int, again: str, settings: dict[str, str]
) -> Running | None:
    """Let a process die at a point and another go on; return a frozen one. again: a point, too."""
    point = f"{case.role}.{case.point}:{hit}"
    if case.recovery is Recovery.FROZEN:
        frozen = system.start(case.role, crash_at=f"{point}:freeze", **settings)
        frozen.wait_frozen()
        end_sessions(system, SESSIONS[case.role])  # as Postgres does after 10 s of silence
        system.start(case.role, **settings)
        return frozen
    system.start(case.role, crash_at=point, **settings).wait_killed()
    if case.recovery is Recovery.KILLED_AGAIN:
        system.start(case.role, crash_at=f"{case.role}.{again}", **settings).wait_killed()
    system.start(case.role, **settings)
    return None
