"""`repair lane`: make a refused lane work again, from what the topics say.

Invariant: nothing is sent twice that a reader could have seen, and nothing is dropped that no reader
saw. In this order, therefore:

1. The lane is taken and fenced: what can ever be in the topics from before is there now.
2. The consumer has taken all input of now. After a restore it reads commands again that were published
   long ago, and writes their rows again; a row that came later could not be told from a new one.
3. The lane's rows are looked up in the topics.
4. One Postgres transaction acknowledges the rows that were found, starts the count from the marker in Kafka
   and writes down what was done. The other rows are claimed anew, in their order.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TextIO

from confluent_kafka.admin import AdminClient

from orchestrator.config.settings import Settings
from orchestrator.consumer import offsets
from orchestrator.contract.repair_commands import repair_of_partition
from orchestrator.contract.workers import set_deployed
from orchestrator.errors import NotRepaired
from orchestrator.kafka import topics
from orchestrator.kafka.reader import OffsetRange, read_ranges
from orchestrator.operations.repair import published_rows as evidence
from orchestrator.operations.repair.log import log_repair
from orchestrator.operations.repair.published_rows import Evidence
from outbox import Connection, count_lanes, transaction
from outbox.admin import (
    LaneCheck,
    LockedLane,
    acknowledge,
    check_lanes,
    check_session,
    reset_batch_number,
    take_over,
)

CATCH_UP_S = 10.0  # a consumer that works has taken what was there before within this time
LOOK_S = 0.5


@dataclass(frozen=True)
class Repair:
    """One run of the command. say: a line for the person; agrees: ask whether to go on.

    undecided: what rows count as of which nobody knows: `published` or `unsent`; None: refuse.
    talk: where to tell how far a reading is.
    """

    settings: Settings
    conn: Connection
    command: str
    dry_run: bool
    say: Callable[[str], None]
    agrees: Callable[[], bool]
    undecided: str | None = None
    talk: TextIO | None = None


def repair_lanes(repair: Repair, wanted: int | None) -> None:
    """Repair one lane, or all that are refused.

    Raises NotRepaired, LaneBusy, InDoubt, TopicMissing, KafkaException or psycopg.Error.
    """
    check_session(repair.conn)
    settings = repair.settings
    lanes = [check.lane for check in find_refused(repair, wanted)]
    if not lanes:
        return
    evidence.refuse_foreign(repair.conn, settings, lanes)
    check_caught_up(settings, repair.conn)
    if repair.dry_run:
        preview(repair, lanes)
        return
    repair.say(PLAN)
    if not repair.agrees():
        raise NotRepaired("nothing was changed")
    locked = [take_over(repair.conn, settings.kafka, settings.marker_topic, lane) for lane in lanes]
    check_caught_up(settings, repair.conn)  # now that nothing more can be published
    repair_locked(repair, locked)


PLAN = """\
Their relay is fenced, and their rows in the outbox are looked up in the topics. Rows that are there
are acknowledged: their pending workers become deployed. The others are sent. The count goes on from the
marker. Nothing is changed before all of that is known."""


def find_refused(repair: Repair, wanted: int | None) -> list[LaneCheck]:
    """Say how the lanes stand; return those that need a repair."""
    lanes = count_lanes(repair.conn)
    if wanted is not None and wanted >= lanes:
        raise NotRepaired(f"there is no lane {wanted}: the lanes are 0 to {lanes - 1}")
    settings = repair.settings
    found = check_lanes(repair.conn, settings.kafka, settings.marker_topic)
    checks = [check for check in found if wanted in {None, check.lane}]
    for check in checks:
        repair.say(check.refusal or f"lane {check.lane}: needs no repair")
    return [check for check in checks if check.refusal]


# ---- has the consumer taken everything? -----------------------------------------------------------


def check_caught_up(settings: Settings, conn: Connection) -> None:
    """Raise NotRepaired unless all records of the input up to now are consumed."""
    admin = topics.Admin(settings.kafka)
    partitions = [part.id for part in topics.describe_topic(admin, settings.input_topic).partitions]
    ends = topics.read_high_watermarks(admin, settings.input_topic, partitions)
    deadline = time.monotonic() + CATCH_UP_S
    while unread := find_unread(settings, conn, admin, ends):
        with closing(read_ranges(settings.kafka, settings.input_topic, unread)) as chunks:
            if not any(chunks):  # what is left is no records, only the ends of transactions
                return
        if time.monotonic() > deadline:
            left = sum(span.length for span in unread.values())
            raise NotRepaired(
                f"wait: up to {left:,} records of {settings.input_topic} are not consumed yet;"
                " let a consumer run until they are, then repair"
            )
        time.sleep(LOOK_S)


def find_unread(
    settings: Settings, conn: Connection, admin: AdminClient, ends: Mapping[int, int]
) -> dict[int, OffsetRange]:
    """Return what is left to consume up to `ends`. Raises NotRepaired for a paused partition."""
    topic = settings.input_topic
    topic_id = topics.topic_id(admin, topic)
    beginnings = topics.read_log_start_offsets(admin, topic, list(ends))
    positions = offsets.lock_positions(conn, settings.consumer_group, topic, list(ends))
    for partition, position in positions.items():
        if position.topic_id != topic_id or position.next_offset < beginnings[partition]:
            raise NotRepaired(
                f"partition {partition} of {topic} waits for a repair itself:"
                f" {repair_of_partition(partition)}"
            )
    nexts = {p: positions[p].next_offset if p in positions else beginnings[p] for p in ends}
    return {p: OffsetRange(nexts[p], end) for p, end in ends.items() if nexts[p] < end}


# ---- what the topics say, and what follows --------------------------------------------------------


def preview(repair: Repair, lanes: Sequence[int]) -> None:
    """Say what a repair would find now."""
    with evidence.waiting_rows(repair.conn, repair.settings, lanes):
        evidence.look_up(repair.conn, repair.settings, repair.talk)
        for lane in lanes:
            repair.say(f"lane {lane}: {describe_rows(evidence.count(repair.conn, lane))}")
    repair.say("dry run: nothing was changed")


def describe_rows(found: Evidence) -> str:
    """Return the counts in words."""
    text = f"{found.published:,} rows are in their topic already, {found.unsent:,} are to be sent"
    return text + (f", {found.undecided:,} are undecided" if found.undecided else "")


def repair_locked(repair: Repair, locked: Sequence[LockedLane]) -> None:
    """Look the rows up and finish each lane in a transaction of its own."""
    conn = repair.conn
    with evidence.waiting_rows(conn, repair.settings, [lane.lane for lane in locked]):
        evidence.look_up(conn, repair.settings, repair.talk)
        found = {lane.lane: evidence.count(conn, lane.lane) for lane in locked}
        apply_choice(repair, found)
        for lane in locked:
            finish(repair, lane, found[lane.lane])


def apply_choice(repair: Repair, found: Mapping[int, Evidence]) -> None:
    """Treat rows of which nobody knows as the person said. Raises NotRepaired without a word."""
    undecided = {lane: rows.undecided for lane, rows in found.items() if rows.undecided}
    if undecided and repair.undecided is None:
        rows = "; ".join(f"lane {lane}: {count:,}" for lane, count in undecided.items())
        raise NotRepaired(
            f"rows are in no topic, but are older than what retention has left there ({rows}): a"
            " reader may have seen them. Say what they are: --unknown-rows publish (a reader may see them"
            " twice) or --unknown-rows skip (perhaps no reader ever saw them)"
        )
    if repair.undecided is not None:
        evidence.decide(repair.conn, repair.undecided)


def finish(repair: Repair, locked: LockedLane, found: Evidence) -> None:
    """One Postgres transaction: rows acknowledged, count started again, repair written down."""
    conn, lane = repair.conn, locked.lane
    with transaction(conn):
        outcome, before, after = reset_batch_number(conn, locked)
        if outcome.refused:
            for ids in evidence.published(conn, lane):
                set_deployed(conn, acknowledge(conn, lane, ids))
            log_repair(
                conn,
                repair.command,
                f"lane {lane}",
                outcome.value,
                before._asdict() | {"marker": locked.marker and locked.marker._asdict()},
                after._asdict(),
                found._asdict() | {"undecided_taken_for": repair.undecided},
            )
    if outcome.refused:
        repair.say(
            f"lane {lane}: {describe_rows(found)}; batch {before.batch_number} became {after.batch_number};"
            " a running relay goes on within seconds"
        )
    else:
        repair.say(f"lane {lane}: needs no repair any more")
