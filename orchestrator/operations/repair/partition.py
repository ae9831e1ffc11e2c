"""`repair partition`: set the position from which a refused partition of the input continues.

The position in Postgres is the only one that counts, and consumers move it by compare-and-set: one that
still works from the old position rolls back and reads on from the new one.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple
from uuid import UUID

from confluent_kafka.admin import AdminClient

from orchestrator.consumer import offsets
from orchestrator.consumer.offsets import PartitionRefusal, Position
from orchestrator.errors import NotRepaired
from orchestrator.kafka import topics
from orchestrator.kafka.reader import OffsetRange
from orchestrator.operations.repair.log import log_repair
from orchestrator.operations.repair.run import RepairRun
from outbox import topic_id_of, transaction

MANUAL = "manual"  # reason of a repair of a partition that is not refused

Start = int | Literal["beginning"] | None


class PartitionCheck(NamedTuple):
    """A partition's position beside its log. refusal: why it is refused; None: it is not."""

    partition: int
    position: Position
    topic_id: UUID
    log: OffsetRange
    refusal: PartitionRefusal | None


class Plan(NamedTuple):
    """The new position of a partition, and what that means for its records."""

    check: PartitionCheck
    reason: str
    next_offset: int
    deleted: int | None  # no longer in the log, never consumed; None: unknown
    skipped: int  # in the log, never consumed, will not be
    reread: int  # consumed before, will be read again


def repair_partitions(run: RepairRun, wanted: int | None, start: Start) -> None:
    """Let one partition, or all that are refused, continue at `start`, else at the log start offset.

    A partition that is not refused is moved only if it is named and `start` is given.
    Raises NotRepaired, TopicMissing, KafkaException or psycopg.Error.
    """
    admin = topics.Admin(run.settings.kafka)
    checks = list(check_partitions(run, admin, wanted))
    moved_anyway = wanted is not None and start is not None
    chosen = [check for check in checks if check.refusal or moved_anyway]
    for check in checks:
        if check not in chosen:
            run.report(f"partition {check.partition}: needs no repair")
    plans = [make_plan(check, start) for check in chosen]
    for line in (line for plan in plans for line in describe_plan(plan)):
        run.report(line)
    if not plans:
        return
    if run.dry_run:
        run.report_dry_run()
        return
    run.require_confirmation()
    for plan in plans:
        set_position(run, admin, plan)


def check_partitions(
    run: RepairRun, admin: AdminClient, wanted: int | None
) -> Iterator[PartitionCheck]:
    """Compare one position, or all, with the log in Kafka; report partitions that have none."""
    settings, topic = run.settings, run.settings.input_topic
    description = topics.describe_topic(admin, topic)
    topic_id, numbers = topic_id_of(description), [part.id for part in description.partitions]
    if wanted is not None and wanted not in numbers:
        raise NotRepaired(f"there is no partition {wanted}: {topic} has 0 to {max(numbers)}")
    partitions = numbers if wanted is None else [wanted]
    positions = offsets.lock_positions(run.conn, settings.consumer_group, topic, partitions)
    # After the positions: a watermark older than a position would look like a truncated log.
    starts = topics.read_log_start_offsets(admin, topic, partitions)
    ends = topics.read_high_watermarks(admin, topic, partitions)
    for partition, position in positions.items():
        log = OffsetRange(starts[partition], ends[partition])
        refusal = find_refusal(position, topic_id, log)
        yield PartitionCheck(partition, position, topic_id, log, refusal)
    for partition in sorted(set(partitions) - positions.keys()):
        run.report(f"partition {partition}: was never consumed by {settings.consumer_group}")


def find_refusal(position: Position, topic_id: UUID, log: OffsetRange) -> PartitionRefusal | None:
    """Return why a consumer refuses the partition, None if it does not."""
    if position.topic_id != topic_id:
        return PartitionRefusal.TOPIC_RECREATED
    in_log = log.first <= position.next_offset <= log.end
    return None if in_log else PartitionRefusal.OFFSET_OUT_OF_RANGE


def make_plan(check: PartitionCheck, start: Start) -> Plan:
    """Work out what it means to continue at `start`. Raises NotRepaired if that is not in the log."""
    log, before = check.log, check.position.next_offset
    next_offset = start if isinstance(start, int) else log.first
    if not log.first <= next_offset <= log.end:
        raise NotRepaired(
            f"partition {check.partition}: offset {next_offset} is not in the log, which goes from"
            f" {log.first} to {log.end}"
        )
    reason = check.refusal or MANUAL
    if reason == PartitionRefusal.TOPIC_RECREATED:  # nothing of this topic was ever consumed
        return Plan(check, reason, next_offset, None, next_offset - log.first, 0)
    return Plan(
        check,
        reason,
        next_offset,
        deleted=max(log.first - before, 0),
        skipped=max(next_offset - max(before, log.first), 0),
        reread=max(min(before, log.end) - next_offset, 0),
    )


def describe_plan(plan: Plan) -> Iterator[str]:
    """Yield what happened to the partition and what the plan does, as lines for the operator."""
    check, reason, next_offset, deleted, skipped, reread = plan
    before, log = check.position.next_offset, check.log
    yield f"partition {check.partition}: {reason}: its position is {before}"
    yield f"  log start offset {log.first}, high watermark {log.end}"
    if deleted is None:
        yield f"  the topic with the id {check.position.topic_id} was deleted; its records from"
        yield f"  offset {before} on are lost, and their number is unknown"
    elif before > log.end:
        yield f"  {before - log.end:,} consumed records are no longer in it; their workers stay"
    elif deleted:
        yield f"  up to {deleted:,} records, {before} to {log.first - 1}, were deleted: no worker"
    yield f"  it will continue at offset {next_offset}"
    if skipped:
        yield f"  up to {skipped:,} records in the log are skipped: no worker"
    if reread:
        yield f"  up to {reread:,} records are read again: no new workers, but dead letters again"


SET_POSITION = """
    UPDATE consumed_offsets
       SET topic_id = %(topic_id)s, next_offset = %(next_offset)s, leader_epoch = -1
     WHERE consumer_group = %(group)s AND topic = %(topic)s AND partition = %(partition)s
"""


def set_position(run: RepairRun, admin: AdminClient, plan: Plan) -> None:
    """One Postgres transaction: position set and repair logged.

    Raises NotRepaired if the partition is no longer as it was checked.
    """
    settings, conn, check = run.settings, run.conn, plan.check
    group, topic, partition = settings.consumer_group, settings.input_topic, check.partition
    with transaction(conn):
        position = offsets.lock_positions(conn, group, topic, [partition]).get(partition)
        if position != check.position or topics.read_topic_id(admin, topic) != check.topic_id:
            raise NotRepaired(f"partition {partition} has changed meanwhile: repeat the repair")
        conn.execute(
            SET_POSITION,
            {
                "topic_id": check.topic_id,
                "next_offset": plan.next_offset,
                "group": group,
                "topic": topic,
                "partition": partition,
            },
        )
        log_repair(
            conn,
            run.command,
            f"partition {partition} of {topic}",
            plan.reason,
            check.position._asdict(),
            {"topic_id": check.topic_id, "next_offset": plan.next_offset},
            {"deleted": plan.deleted, "skipped": plan.skipped, "reread": plan.reread},
        )
    when = "with its next record" if plan.reason == MANUAL else "within 10 s"
    run.report(
        f"partition {partition}: continues at offset {plan.next_offset}; a running consumer sees it"
        f" {when}"
    )
