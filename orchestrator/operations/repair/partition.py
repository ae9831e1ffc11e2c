"""`repair partition`: set the position from which a refused partition of the input continues.

The position in Postgres is the only one that counts, and consumers move it by compare-and-set: one that
still works from the old position rolls back and reads on from the new one.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, TypeVar
from uuid import UUID

from confluent_kafka.admin import AdminClient

from orchestrator.consumer import offsets
from orchestrator.consumer.offsets import PartitionRefusal, Position
from orchestrator.consumer.refusals import find_refusal, read_continuations, shows_cut
from orchestrator.errors import NotRepaired
from orchestrator.kafka import topics
from orchestrator.kafka.continuations import find_batch_end
from orchestrator.kafka.reader import OffsetRange
from orchestrator.operations.repair.log import log_repair
from orchestrator.operations.repair.run import RepairRun
from outbox import topic_id_of, transaction

MANUAL = "manual"  # reason of a repair of a partition that is not refused

T = TypeVar("T")
Start = int | Literal["beginning"] | None


class PartitionCheck(NamedTuple):
    """A partition's position beside its log.

    leader_epoch: of the partition, read before all else: a later cut of the log has a higher one.
    continues_at: where a reader of the position would continue; None: unknown. refusal: why the
    partition is refused; None: it is not. unreadable_at: the offset of the batch at the position that
    cannot be decoded; None: it can be.
    """

    partition: int
    position: Position
    topic_id: UUID
    log: OffsetRange
    leader_epoch: int
    continues_at: int | None
    refusal: PartitionRefusal | None
    unreadable_at: int | None = None

    @property
    def is_cut(self) -> bool:
        """Return whether the log has lost records that were consumed."""
        return self.refusal == PartitionRefusal.LOG_TRUNCATED

    @property
    def kept_end(self) -> int | None:
        """Return up to where the log holds what was consumed, or began since; None: unknown."""
        if self.refusal == PartitionRefusal.TOPIC_RECREATED:
            return self.log.first
        if not self.is_cut:
            return max(self.position.next_offset, self.log.first)
        # What was found when it was refused counts, too: the log may have grown since to look whole.
        seen = [self.position.cut_at]
        if self.position.leader_epoch >= 0 and shows_cut(self.position, self.log, self.continues_at):
            seen.append(self.continues_at)
        known = [offset for offset in seen if offset is not None]
        return max(min(known), self.log.first) if known else None


class Plan(NamedTuple):
    """The new position of a partition, and what that means for its records."""

    check: PartitionCheck
    reason: str
    next_offset: int
    decided_end: int
    deleted: int | None  # no longer in the log, never consumed; None: unknown
    skipped: int  # in the log, never consumed, will not be
    again: int  # decided before, and will be decided again


def repair_partitions(run: RepairRun, wanted: int | None, start: Start, again: bool = False) -> None:
    """Let one partition, or all that are refused, continue at `start`, else at what is undecided.

    A partition that is not refused is moved only if it is named and `start` is given, or behind a batch
    that cannot be decoded. again: decide
    records once more that were decided before.
    Raises NotRepaired, TopicMissing, KafkaException or psycopg.Error.
    """
    admin = topics.Admin(run.settings.kafka)
    checks = list(check_partitions(run, admin, wanted))
    is_named = wanted is not None
    chosen = [
        check
        for check in checks
        if check.refusal or (is_named and (start is not None or check.unreadable_at is not None))
    ]
    for check in checks:
        if check not in chosen:
            run.report(f"partition {check.partition}: needs no repair")
    plans: list[Plan] = []

    def plan(check: PartitionCheck) -> None:
        plans.append(make_plan(check, start_of(run, check, start), again))

    not_repaired = [*attempt(plan, chosen)]
    for line in (line for plan in plans for line in describe_plan(plan)):
        run.report(line)
    if plans and run.dry_run:
        run.report_dry_run()
    elif plans:
        run.require_confirmation()
        not_repaired += attempt(lambda plan: set_position(run, admin, plan), plans)
    if not_repaired:
        raise NotRepaired("; ".join(not_repaired))


def start_of(run: RepairRun, check: PartitionCheck, start: Start) -> Start:
    """Return where to continue: where the operator says, else behind a batch that cannot be decoded."""
    if start is not None or check.refusal or check.unreadable_at is None:
        return start
    settings = run.settings
    return find_batch_end(
        settings.kafka, settings.input_topic, check.partition, check.unreadable_at, check.log.end
    )


def attempt(do: Callable[[T], None], each: Iterable[T]) -> Iterator[str]:
    """Do it with each; yield why one is not repaired, which does not stop the others."""
    for one in each:
        try:
            do(one)
        except NotRepaired as error:
            yield str(error)


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
    epochs = topics.read_leader_epochs(admin, topic, partitions)
    positions = offsets.lock_positions(run.conn, topic, partitions)
    # After the positions: a watermark older than a position would look like a truncated log.
    starts = topics.read_log_start_offsets(admin, topic, partitions)
    ends = topics.read_high_watermarks(admin, topic, partitions)
    continuations = read_continuations(settings.kafka, topic, topic_id, positions)
    for partition, position in positions.items():
        log = OffsetRange(starts[partition], ends[partition])
        found, epoch = continuations.get(partition), epochs[partition]
        continues_at = found and found.continues_at
        refusal = find_refusal(position, topic_id, log, continues_at)
        yield PartitionCheck(
            partition,
            position,
            topic_id,
            log,
            epoch,
            continues_at,
            refusal,
            found and found.unreadable_at,
        )
    for partition in sorted(set(partitions) - positions.keys()):
        run.report(f"partition {partition}: was never consumed")


def make_plan(check: PartitionCheck, start: Start, again: bool) -> Plan:
    """Work out what it means to continue at `start`.

    Raises NotRepaired if that is not in the log, or before records that were decided, without `again`;
    or if it is not given, and not known.
    """
    log, position, kept_end = check.log, check.position, check.kept_end
    if kept_end is None and start is None:
        raise NotRepaired(
            f"partition {check.partition}: the log was cut before its position, {position.next_offset}."
            " The leader epoch of that is unknown, and so is where it was cut. Give --from OFFSET, the"
            f" first of {log.first} to {log.end} that was not consumed, or --from beginning --again"
        )
    undecided = log.first if kept_end is None else kept_end
    next_offset = undecided if start is None else log.first if start == "beginning" else start
    if not log.first <= next_offset <= log.end:
        raise NotRepaired(
            f"partition {check.partition}: offset {next_offset} is not in the log, which goes from"
            f" {log.first} to {log.end}"
        )
    is_new = check.is_cut or check.refusal == PartitionRefusal.TOPIC_RECREATED
    decided_end = max(next_offset, undecided if is_new else position.decided_end)
    if kept_end is None:
        decided_end = log.end
    is_told = again or position.decide_again or (kept_end is None and isinstance(start, int))
    if next_offset < decided_end and not is_told:
        raise NotRepaired(
            f"partition {check.partition}: the records from {next_offset} to {decided_end - 1} were"
            " decided before, or skipped by an operator: a consumer does not read them again. --again"
            " decides them once more: workers that exist stay as they are, one that was deleted gets"
            " another order, and what is no valid command becomes a dead letter again"
        )
    deleted: int | None = max(log.first - position.next_offset, 0)
    if check.refusal == PartitionRefusal.TOPIC_RECREATED:
        deleted = None
    return Plan(
        check,
        check.refusal or MANUAL,
        next_offset,
        decided_end,
        deleted,
        skipped=max(next_offset - max(undecided, position.decided_end if not is_new else 0), 0),
        again=decided_end - next_offset,
    )


def describe_plan(plan: Plan) -> Iterator[str]:
    """Yield what happened to the partition and what the plan does, as lines for the operator."""
    check, next_offset = plan.check, plan.next_offset
    before, log, kept_end = check.position.next_offset, check.log, check.kept_end
    yield f"partition {check.partition}: {plan.reason}: its position is {before}"
    yield f"  log start offset {log.first}, high watermark {log.end}"
    if check.unreadable_at is not None:
        yield f"  the batch at offset {check.unreadable_at} cannot be decoded"
    if plan.deleted is None:
        yield f"  the topic with the id {check.position.topic_id} was deleted; its records from"
        yield f"  offset {before} on are lost, and their number is unknown"
    elif plan.deleted:
        yield f"  up to {plan.deleted:,} records, {before} to {log.first - 1}, were deleted: no worker;"
        yield "  or only ends of transactions were, which are no records: nothing tells that any more"
    elif check.is_cut and kept_end is None:
        yield "  the log was cut before the position: it is unknown where"
    elif check.is_cut and kept_end is not None:
        yield f"  the log was cut at offset {kept_end}: {before - kept_end:,} consumed records are no"
        yield "  longer in it; their workers stay"
        if log.end > kept_end:
            last = min(before, log.end) - 1
            yield f"  offsets {kept_end} to {last} hold other records now, which were never read"
    yield f"  it will continue at offset {next_offset}"
    if plan.skipped:
        yield f"  up to {plan.skipped:,} records in the log are skipped: they get no worker"
    if plan.again:
        yield f"  up to {plan.again:,} records are decided again: no new workers for those that exist"


SET_POSITION = """
    UPDATE consumed_offsets
       SET topic_id = %(topic_id)s,
           next_offset = %(next_offset)s,
           leader_epoch = %(leader_epoch)s,
           decided_end = %(decided_end)s,
           decide_again = %(next_offset)s < %(decided_end)s,
           refusal = NULL,
           cut_at = NULL
     WHERE topic = %(topic)s AND partition = %(partition)s
"""


def set_position(run: RepairRun, admin: AdminClient, plan: Plan) -> None:
    """One Postgres transaction: position set and repair logged.

    Raises NotRepaired if the partition is no longer as it was checked.
    """
    settings, conn, check = run.settings, run.conn, plan.check
    topic, partition = settings.input_topic, check.partition
    with transaction(conn):
        position = offsets.lock_positions(conn, topic, [partition]).get(partition)
        if position != check.position or topics.read_topic_id(admin, topic) != check.topic_id:
            raise NotRepaired(f"partition {partition} has changed meanwhile: repeat the repair")
        conn.execute(
            SET_POSITION,
            {
                "topic_id": check.topic_id,
                "next_offset": plan.next_offset,
                "leader_epoch": check.leader_epoch,
                "decided_end": plan.decided_end,
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
            {
                "cut_at": check.kept_end if check.is_cut else None,
                "deleted": plan.deleted,
                "skipped": plan.skipped,
                "again": plan.again,
            },
        )
    run.report(
        f"partition {partition}: continues at offset {plan.next_offset}; a running consumer sees it"
        " within seconds"
    )
