"""`repair lane`: let a refused lane continue, by what the topics say.

Invariant: no row is published twice whose record a reader could have seen, and no row is dropped whose
record no reader could see. Therefore in this order:

1. Take the lane over and fence it: whatever can be in the topics from earlier is there now.
2. Wait until the consumer has consumed all input. After a restore it reads commands again that were
   published long ago, and writes their rows again; later such a row would look like a new one.
3. Look the lane's rows up in the topics.
4. In one Postgres transaction acknowledge the rows that were found, restart the batch number from the
   marker in Kafka, and log the repair. The relay claims the other rows again, in their order.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing

from confluent_kafka.admin import AdminClient

from orchestrator.config.settings import Settings
from orchestrator.consumer import offsets
from orchestrator.contract.repair_commands import repair_of_partition
from orchestrator.contract.workers import set_deployed
from orchestrator.errors import NotRepaired
from orchestrator.kafka import topics
from orchestrator.kafka.reader import OffsetRange, read_ranges
from orchestrator.operations.repair import published_rows
from orchestrator.operations.repair.log import log_repair
from orchestrator.operations.repair.published_rows import RowCounts
from orchestrator.operations.repair.run import RepairRun
from outbox import Connection, count_lanes, transaction
from outbox.admin import (
    LaneCheck,
    LockedLane,
    acknowledge,
    check_lanes,
    check_session,
    defer,
    reset_batch_number,
    take_over,
)

CATCH_UP_S = 10.0  # a running consumer consumes what was already there within this time
CATCH_UP_POLL_S = 0.5


def repair_lanes(run: RepairRun, wanted: int | None) -> None:
    """Repair one lane, or all that are refused.

    Raises NotRepaired, LaneBusy, InDoubt, TopicMissing, KafkaException or psycopg.Error.
    """
    check_session(run.conn)
    settings = run.settings
    lanes = [check.lane for check in find_refused(run, wanted)]
    if not lanes:
        return
    published_rows.check_origin(run.conn, settings, lanes)
    check_caught_up(settings, run.conn)
    if run.dry_run:
        preview(run, lanes)
        return
    run.report(PLAN)
    run.require_confirmation()
    locked = [take_over(run.conn, settings.kafka, settings.marker_topic, lane) for lane in lanes]
    check_caught_up(settings, run.conn)  # again, now that nothing more can be published
    repair_locked(run, locked)


PLAN = """\
The lanes are taken from their relay, and their outbox rows are looked up in the topics. Rows that are
there are acknowledged: their pending workers become deployed. The others are published. The batch
number restarts from the marker. Nothing is changed before all of that is known."""


def find_refused(run: RepairRun, wanted: int | None) -> list[LaneCheck]:
    """Report the state of the lanes; return those that need a repair."""
    lanes = count_lanes(run.conn)
    if wanted is not None and wanted >= lanes:
        raise NotRepaired(f"there is no lane {wanted}: the lanes are 0 to {lanes - 1}")
    settings = run.settings
    found = check_lanes(run.conn, settings.kafka, settings.marker_topic)
    checks = [check for check in found if wanted in {None, check.lane}]
    for check in checks:
        run.report(check.refusal or f"lane {check.lane}: needs no repair")
    return [check for check in checks if check.refusal]


# ---- has the consumer consumed everything? --------------------------------------------------------


def check_caught_up(settings: Settings, conn: Connection) -> None:
    """Raise NotRepaired unless all records of the input up to now are consumed."""
    admin = topics.Admin(settings.kafka)
    partitions = [part.id for part in topics.describe_topic(admin, settings.input_topic).partitions]
    ends = topics.read_high_watermarks(admin, settings.input_topic, partitions)
    deadline = time.monotonic() + CATCH_UP_S
    while unread := find_unread(settings, conn, admin, ends):
        with closing(read_ranges(settings.kafka, settings.input_topic, unread)) as chunks:
            if not any(chunks):  # no records are left, only the ends of transactions
                return
        if time.monotonic() > deadline:
            left = sum(part.length for part in unread.values())
            raise NotRepaired(
                f"wait: up to {left:,} records of {settings.input_topic} are not consumed yet;"
                " let a consumer run until they are, then repair"
            )
        time.sleep(CATCH_UP_POLL_S)


def find_unread(
    settings: Settings, conn: Connection, admin: AdminClient, ends: Mapping[int, int]
) -> dict[int, OffsetRange]:
    """Return what is left to consume up to `ends`. Raises NotRepaired for a refused partition."""
    topic = settings.input_topic
    topic_id = topics.read_topic_id(admin, topic)
    starts = topics.read_log_start_offsets(admin, topic, list(ends))
    positions = offsets.lock_positions(conn, settings.consumer_group, topic, list(ends))
    for partition, position in positions.items():
        if position.topic_id != topic_id or position.next_offset < starts[partition]:
            raise NotRepaired(
                f"partition {partition} of {topic} needs a repair first:"
                f" {repair_of_partition(partition)}"
            )
    nexts = {p: positions[p].next_offset if p in positions else starts[p] for p in ends}
    return {p: OffsetRange(nexts[p], end) for p, end in ends.items() if nexts[p] < end}


# ---- what the topics say, and what follows --------------------------------------------------------


def preview(run: RepairRun, lanes: Sequence[int]) -> None:
    """Report what a repair would find now."""
    with published_rows.listed_rows(run.conn, run.settings, lanes):
        published_rows.look_up(run.conn, run.settings, run.progress)
        for lane in lanes:
            run.report(f"lane {lane}: {describe_counts(published_rows.count_outcomes(run.conn, lane))}")
    run.report_dry_run()


def describe_counts(rows: RowCounts) -> str:
    """Return the counts as text."""
    text = f"{rows.published:,} rows are in their topic already"
    text += f", {rows.not_published:,} will be published"
    return text + (f", {rows.unknown:,} are unknown" if rows.unknown else "")


def repair_locked(run: RepairRun, locked: Sequence[LockedLane]) -> None:
    """Look the rows up, then repair each lane in a transaction of its own."""
    with published_rows.listed_rows(run.conn, run.settings, [lane.lane for lane in locked]):
        published_rows.look_up(run.conn, run.settings, run.progress)
        found = {lane.lane: published_rows.count_outcomes(run.conn, lane.lane) for lane in locked}
        apply_choice(run, found)
        for lane in locked:
            commit_repair(run, lane, found[lane.lane])


def apply_choice(run: RepairRun, found: Mapping[int, RowCounts]) -> None:
    """Treat unknown rows as the operator chose. Raises NotRepaired if a choice is missing."""
    unknown = {lane: rows.unknown for lane, rows in found.items() if rows.unknown}
    if unknown and run.unknown_rows is None:
        rows = "; ".join(f"lane {lane}: {count:,}" for lane, count in unknown.items())
        raise NotRepaired(
            f"rows are in no topic, but retention may have deleted their records ({rows}): a reader may"
            " have seen them. Choose --unknown-rows publish (a reader may see them twice) or"
            " --unknown-rows skip (perhaps no reader ever saw them)"
        )
    if run.unknown_rows is not None:
        published_rows.treat_unknown(run.conn, run.unknown_rows)


def commit_repair(run: RepairRun, locked: LockedLane, rows: RowCounts) -> None:
    """One Postgres transaction: rows acknowledged, batch number restarted, repair logged."""
    conn, lane = run.conn, locked.lane
    with transaction(conn):
        outcome, before, after = reset_batch_number(conn, locked)
        if outcome.refused:
            for ids in published_rows.read_published(conn, lane):
                defer(conn, set_deployed(conn, acknowledge(conn, lane, ids)))
            log_repair(
                conn,
                run.command,
                f"lane {lane}",
                outcome.value,
                before._asdict() | {"marker": locked.marker and locked.marker._asdict()},
                after._asdict(),
                rows._asdict() | {"unknown_rows": run.unknown_rows},
            )
    if outcome.refused:
        run.report(
            f"lane {lane}: {describe_counts(rows)}; batch {before.batch_number} became"
            f" {after.batch_number}; a running relay continues within seconds"
        )
    else:
        run.report(f"lane {lane}: needs no repair any more")
