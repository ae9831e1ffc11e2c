"""`repair lane`: let a refused lane continue, by what the topics say.

Invariant: no row is published twice whose record a reader could have seen, and no row is dropped whose
record no reader could see. Therefore in this order:

1. Take the lane over and fence it: whatever can be in the topics from earlier is there now.
2. Wait until the consumers have consumed all inputs (inputs.py).
3. Look the lane's rows up in the topics, its parked rows, too: they may have been retried in the
   history that was lost.
4. In one Postgres transaction acknowledge the rows that were found, restart the batch number from the
   marker in Kafka, and log the repair. The relay claims the other rows again, in their order. Parked
   rows that were not found stay parked.
"""

from collections.abc import Mapping, Sequence
from uuid import UUID

from orchestrator.contract.workers import set_deployed
from orchestrator.errors import NotRepaired
from orchestrator.operations.repair import published_rows
from orchestrator.operations.repair.inputs import check_caught_up, check_left_out
from orchestrator.operations.repair.log import log_repair
from orchestrator.operations.repair.published_rows import RowCounts
from orchestrator.operations.repair.run import RepairRun
from outbox import count_lanes, transaction
from outbox.admin import (
    LaneCheck,
    LockedLane,
    acknowledge,
    acknowledge_parked,
    check_lanes,
    check_session,
    defer,
    read_parked,
    reset_batch_number,
    take_over,
)


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
    check_left_out(run)
    check_caught_up(run)
    if run.dry_run:
        preview(run, lanes)
        return
    run.report(PLAN)
    run.require_confirmation()
    locked = [take_over(run.conn, settings.kafka, settings.marker_topic, lane) for lane in lanes]
    check_caught_up(run)  # again, now that nothing more can be published
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


# ---- what the topics say, and what follows --------------------------------------------------------


def preview(run: RepairRun, lanes: Sequence[int]) -> None:
    """Report what a repair would find now."""
    with published_rows.row_list(run.conn):
        look_up(run, lanes)
        for lane in lanes:
            run.report(f"lane {lane}: {describe_counts(published_rows.count_outcomes(run.conn, lane))}")
    run.report_dry_run()


def look_up(run: RepairRun, lanes: Sequence[int]) -> None:
    """List the rows of lanes, parked ones too, and look them up in the topics. Raises ForeignRows."""
    parked = [row for row in read_parked(run.conn) if row.lane in lanes and row.discarded_at is None]
    published_rows.list_lanes(run.conn, run.settings, lanes)
    published_rows.list_parked(run.conn, run.settings, parked)
    published_rows.look_up(run.conn, run.settings, run.progress)


def describe_counts(rows: RowCounts) -> str:
    """Return the counts as text."""
    text = f"{rows.published:,} rows are in their topic already"
    text += f", {rows.not_published:,} will be published"
    text += f", {rows.unknown:,} are unknown" if rows.unknown else ""
    return text + (f"; {rows.parked:,} parked rows are in their topic, too" if rows.parked else "")


def repair_locked(run: RepairRun, locked: Sequence[LockedLane]) -> None:
    """Look the rows up, then repair each lane in a transaction of its own."""
    with published_rows.row_list(run.conn):
        look_up(run, [lane.lane for lane in locked])
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
            sent_late = acknowledge_sent_rows(run, lane)
            log_repair(
                conn,
                run.command,
                f"lane {lane}",
                outcome.value,
                before._asdict()
                | {"marker": locked.marker and locked.marker._asdict(), "worker_ids": sent_late},
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


def acknowledge_sent_rows(run: RepairRun, lane: int) -> list[UUID]:
    """Acknowledge the lane's parked rows that are in their topic; return their workers.

    `parked retry` published them in a history that was lost. The audit must know: their orders are out
    of order.
    """
    found = [one.row_id for one in published_rows.read_published_parked(run.conn) if one.lane == lane]
    rows = acknowledge_parked(run.conn, found)
    workers = [row.aggregate_id for row in rows if row.aggregate_id]
    defer(run.conn, set_deployed(run.conn, workers))
    return workers
