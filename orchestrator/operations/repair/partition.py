"""`repair partition`: say where a paused partition of the input goes on.

The offset in Postgres is the only one that counts, and is moved by compare-and-set as ever: a consumer
that still works on the old one rolls back and reads on from the new one.
"""

from collections.abc import Iterator
from typing import NamedTuple

from confluent_kafka import OFFSET_BEGINNING
from confluent_kafka.admin import AdminClient

from orchestrator.consumer import offsets
from orchestrator.consumer.offsets import Position
from orchestrator.errors import NotRepaired
from orchestrator.kafka import topics
from orchestrator.kafka.reader import OffsetRange
from orchestrator.operations.repair.lane import Repair
from orchestrator.operations.repair.log import log_repair
from outbox import transaction

RECREATED, OUT_OF_RANGE, BY_HAND = "topic_recreated", "offset_out_of_range", "moved_by_hand"


class Finding(NamedTuple):
    """How a partition stands. log: what the topic of now holds. fault: None if there is none."""

    partition: int
    position: Position
    topic_id: object
    log: OffsetRange
    fault: str | None


class Plan(NamedTuple):
    """Where a partition is to go on, and what that means in offsets."""

    finding: Finding
    reason: str
    following: int
    gone: int | None  # no longer in the log, never consumed; None: nobody can tell
    skipped: int  # in the log, never consumed, passed over
    again: int  # consumed before, read again


def repair_partitions(repair: Repair, wanted: int | None, start: int | None) -> None:
    """Let one partition, or all that need it, go on at offset `start`, else where the log begins.

    One that needs no repair is moved only if it is named and `start` is given.
    Raises NotRepaired, TopicMissing, KafkaException or psycopg.Error.
    """
    admin = topics.Admin(repair.settings.kafka)
    findings = list(find(repair, admin, wanted))
    chosen = [found for found in findings if found.fault or (wanted is not None and start is not None)]
    for found in findings:
        if found not in chosen:
            repair.say(f"partition {found.partition}: needs no repair")
    plans = [plan(found, start) for found in chosen]
    for line in (line for planned in plans for line in explain(planned)):
        repair.say(line)
    if not plans:
        return
    if repair.dry_run:
        repair.say("dry run: nothing was changed")
    elif not repair.agrees():
        raise NotRepaired("nothing was changed")
    else:
        for planned in plans:
            move(repair, admin, planned)


def find(repair: Repair, admin: AdminClient, wanted: int | None) -> Iterator[Finding]:
    """Look at one partition or all: the offset in Postgres against the log in Kafka."""
    settings, topic = repair.settings, repair.settings.input_topic
    description = topics.describe_topic(admin, topic)
    topic_id, numbers = topics.id_of(description), [part.id for part in description.partitions]
    if wanted is not None and wanted not in numbers:
        raise NotRepaired(f"there is no partition {wanted}: {topic} has 0 to {max(numbers)}")
    partitions = numbers if wanted is None else [wanted]
    positions = offsets.lock_positions(repair.conn, settings.consumer_group, topic, partitions)
    # After the positions: an end that is older than a position would look like a truncated log.
    beginnings = topics.read_log_start_offsets(admin, topic, partitions)
    ends = topics.read_high_watermarks(admin, topic, partitions)
    for partition, position in positions.items():
        log = OffsetRange(beginnings[partition], ends[partition])
        yield Finding(partition, position, topic_id, log, fault_of(position, topic_id, log))
    for partition in sorted(set(partitions) - positions.keys()):
        repair.say(f"partition {partition}: was never consumed by {settings.consumer_group}")


def fault_of(position: Position, topic_id: object, log: OffsetRange) -> str | None:
    """Return why a consumer pauses the partition, None if it does not."""
    if position.topic_id != topic_id:
        return RECREATED
    return None if log.first <= position.next_offset <= log.end else OUT_OF_RANGE


def plan(found: Finding, start: int | None) -> Plan:
    """Work out what it means to go on at `start`. Raises NotRepaired for an offset outside the log."""
    log, before = found.log, found.position.next_offset
    following = log.first if start in {None, OFFSET_BEGINNING} else start
    if not log.first <= following <= log.end:
        raise NotRepaired(
            f"partition {found.partition}: offset {following} is not in the log, which holds"
            f" {log.first} up to {log.end}"
        )
    reason = found.fault or BY_HAND
    if reason == RECREATED:  # nothing of this topic was ever consumed
        return Plan(found, reason, following, None, following - log.first, 0)
    return Plan(
        found,
        reason,
        following,
        gone=max(log.first - before, 0),
        skipped=max(following - max(before, log.first), 0),
        again=max(min(before, log.end) - following, 0),
    )


def explain(planned: Plan) -> Iterator[str]:
    """Yield what happened to a partition and what the plan does, for people."""
    found, reason, following, gone, skipped, again = planned
    before, log = found.position.next_offset, found.log
    yield f"partition {found.partition}: {reason}: offset {before} comes next"
    yield f"  the log holds {log.first} up to {log.end}"
    if gone is None:
        yield f"  the topic with the id {found.position.topic_id} is gone: what it may have held from"
        yield f"  offset {before} on is lost, and nobody can tell how many records that were"
    elif before > log.end:
        yield f"  {before - log.end:,} records that were consumed are gone from it; their workers stay"
    elif gone:
        yield f"  up to {gone:,} records, {before} to {log.first - 1}, are gone for good: no worker"
    yield f"  it will go on at offset {following}"
    if skipped:
        yield f"  up to {skipped:,} records in the log are passed over: no worker"
    if again:
        yield f"  up to {again:,} records are read again: commands in vain, dead letters go out again"


MOVE = """
    UPDATE consumed_offsets
       SET topic_id = %(topic_id)s, next_offset = %(following)s, leader_epoch = -1
     WHERE consumer_group = %(group)s AND topic = %(topic)s AND partition = %(partition)s
"""


def move(repair: Repair, admin: AdminClient, planned: Plan) -> None:
    """One Postgres transaction: the offset moved and the repair written down.

    Raises NotRepaired if the partition is not as it was found.
    """
    settings, conn, found = repair.settings, repair.conn, planned.finding
    group, topic, partition = settings.consumer_group, settings.input_topic, found.partition
    with transaction(conn):
        position = offsets.lock_positions(conn, group, topic, [partition]).get(partition)
        if position != found.position or topics.topic_id(admin, topic) != found.topic_id:
            raise NotRepaired(f"partition {partition} has changed meanwhile: look again")
        conn.execute(
            MOVE,
            {
                "topic_id": found.topic_id,
                "following": planned.following,
                "group": group,
                "topic": topic,
                "partition": partition,
            },
        )
        log_repair(
            conn,
            repair.command,
            f"partition {partition} of {topic}",
            planned.reason,
            found.position._asdict(),
            {"topic_id": found.topic_id, "next_offset": planned.following},
            {"gone": planned.gone, "skipped": planned.skipped, "again": planned.again},
        )
    when = "with its next record" if planned.reason == BY_HAND else "within 10 s"
    repair.say(
        f"partition {partition}: goes on at {planned.following}; a running consumer sees it {when}"
    )
