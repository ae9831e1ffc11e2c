"""The inputs of a database: the topics whose commands become rows of its outbox.

Invariant: nothing is looked up before all of them are consumed. After a restore the consumers read
commands again that were published long ago, and write their rows again; a row that comes after the
look-up would be published twice, whichever input it comes from.
"""

import time
from collections.abc import Mapping
from contextlib import closing

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from orchestrator.consumer import offsets
from orchestrator.consumer.offsets import PartitionRefusal
from orchestrator.consumer.refusals import continuations_of, describe_refusal, find_refusal
from orchestrator.contract.repair_commands import repair_of_partition
from orchestrator.errors import NotRepaired
from orchestrator.kafka import topics
from orchestrator.kafka.reader import OffsetRange, read_ranges
from orchestrator.operations.repair.run import RepairRun
from outbox import Connection, scalars

CATCH_UP_S = 10.0  # a running consumer consumes what was already there within this time
CATCH_UP_POLL_S = 0.5

READ_INPUTS = "SELECT DISTINCT topic FROM consumed_offsets ORDER BY topic"


def read_inputs(conn: Connection) -> list[str]:
    """Return the topics that were ever consumed into this database."""
    return scalars(conn, str, READ_INPUTS)


def check_left_out(run: RepairRun) -> None:
    """Raise NotRepaired for a wrong --without-input; report the inputs that are not waited for."""
    admin, stored = topics.Admin(run.settings.kafka), read_inputs(run.conn)
    for topic in sorted(run.without_inputs):
        if topic == run.settings.input_topic:
            raise NotRepaired(f"{topic} is INPUT_TOPIC here: it cannot be left out")
        if topic not in stored:
            raise NotRepaired(f"{topic} is no input of this database: {', '.join(stored) or 'none is'}")
        run.report(f"input {topic}: left out; commands in it may be published twice if they are read")
    for topic in stored:
        if topic not in run.without_inputs and not exists(admin, topic):
            run.report(f"input {topic}: does not exist any more, so nothing of it is waited for")


def check_caught_up(run: RepairRun) -> None:
    """Raise NotRepaired unless all records of all inputs up to now are consumed."""
    own, admin = run.settings.input_topic, topics.Admin(run.settings.kafka)
    deadline = time.monotonic() + CATCH_UP_S
    for topic in dict.fromkeys([own, *read_inputs(run.conn)]):
        if topic == own or (topic not in run.without_inputs and exists(admin, topic)):
            wait_consumed(run, admin, topic, deadline)


def exists(admin: AdminClient, topic: str) -> bool:
    """Return whether an input exists. Raises NotRepaired if our user must not know."""
    try:
        return topics.exists(admin, topic)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise
        raise NotRepaired(
            f"our user must not read {topic}, an input of this database: grant Read on it"
            f"{or_leave_out(topic)}"
        ) from error


def or_leave_out(topic: str) -> str:
    """Return what else can be done about another input than INPUT_TOPIC."""
    return f"; or, if no consumer will read it any more: --without-input {topic}"


def wait_consumed(run: RepairRun, admin: AdminClient, topic: str, deadline: float) -> None:
    """Wait until all records of an input up to now are consumed. Raises NotRepaired."""
    partitions = [part.id for part in topics.describe_topic(admin, topic).partitions]
    ends = topics.read_high_watermarks(admin, topic, partitions)
    while unread := find_unread(run, admin, topic, ends):
        with closing(read_ranges(run.settings.kafka, topic, unread)) as chunks:
            if not any(chunks):  # no records are left, only the ends of transactions
                return
        if time.monotonic() > deadline:
            left = sum(part.length for part in unread.values())
            is_own = topic == run.settings.input_topic
            consumer = "a consumer" if is_own else f"its consumer (INPUT_TOPIC={topic})"
            raise NotRepaired(
                f"wait: up to {left:,} records of {topic} are not consumed yet; let {consumer} run"
                f" until they are, then repair{'' if is_own else or_leave_out(topic)}"
            )
        time.sleep(CATCH_UP_POLL_S)


def find_unread(
    run: RepairRun, admin: AdminClient, topic: str, ends: Mapping[int, int]
) -> dict[int, OffsetRange]:
    """Return what is left to consume up to `ends`. Raises NotRepaired for a refused partition."""
    topic_id = topics.read_topic_id(admin, topic)
    starts = topics.read_log_start_offsets(admin, topic, list(ends))
    positions = offsets.lock_positions(run.conn, topic, list(ends))
    latest = topics.read_high_watermarks(admin, topic, list(ends))  # the consumer may be beyond `ends`
    continuations = continuations_of(run.settings.kafka, topic, topic_id, positions)
    nexts = dict(starts)
    for partition, position in positions.items():
        log = OffsetRange(starts[partition], latest[partition])
        if refusal := find_refusal(position, topic_id, log, continuations.get(partition)):
            raise partition_refused(run, topic, partition, refusal)
        nexts[partition] = position.next_offset
    return {p: OffsetRange(nexts[p], end) for p, end in ends.items() if nexts[p] < end}


def partition_refused(
    run: RepairRun, topic: str, partition: int, refusal: PartitionRefusal
) -> NotRepaired:
    """Return the error that says which repair comes first."""
    by_whom = (
        "" if topic == run.settings.input_topic else f" with INPUT_TOPIC={topic}{or_leave_out(topic)}"
    )
    return NotRepaired(
        f"partition {partition} of {topic} needs a repair first:"
        f" {describe_refusal(refusal, repair_of_partition(partition) + by_whom)}"
    )
