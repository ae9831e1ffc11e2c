"""The checks of `doctor` that need both servers: can lanes be active, do both have the same history?"""

import time
from contextlib import closing

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from orchestrator.consumer import offsets
from orchestrator.consumer.refusals import describe_refusal, find_refusal, read_continuations
from orchestrator.consumer.unread import find_unread
from orchestrator.contract.repair_commands import repair_of_lane, repair_of_partition
from orchestrator.kafka import topics
from orchestrator.kafka.reader import OffsetRange
from orchestrator.kafka.topics import REQUEST_S
from orchestrator.operations.doctor.check import (
    Installation,
    Result,
    combine,
    counted,
    name_partitions,
)
from orchestrator.operations.doctor.kafka import (
    connection_lost,
    is_connection_lost,
    read_configs,
)
from orchestrator.operations.doctor.kafka_permissions import WRITE, topic_operations
from orchestrator.operations.text import duration
from orchestrator.program import PROGRAM
from outbox import count_lanes, topic_id_of
from outbox.admin import DEFAULT_CONFIG, check_lanes, try_transactional_id

ID_NOT_ALLOWED = KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
TRANSACTION_TIMEOUT = "transaction.timeout.ms"
TRANSACTIONAL_ID_S = 10.0  # longer than the brokers need to end a transaction


def marker_topic_partitions(installation: Installation) -> Result:
    """Compare the marker topic with the lanes: each has its marker on a partition of its own."""
    lanes, topic = count_lanes(installation.conn), installation.settings.marker_topic
    found = len(installation.topic(topic).partitions)
    text = f"{counted(found, 'partition')} of {topic} for {counted(lanes, 'lane')}"
    if found < lanes:
        return "failed", f"{text}: run `{PROGRAM} setup`, which adds partitions"
    return "ok", text


def kafka_transactions(installation: Installation) -> Result:
    """Take a transactional id as a relay does, but of no lane: an active one would be fenced."""
    started = time.monotonic()
    trial = try_transactional_id(installation.conn, installation.kafka, TRANSACTIONAL_ID_S)
    name, error = trial.transactional_id, trial.error
    if error is None:
        return "ok", f"{name} was taken in {duration(time.monotonic() - started)}"
    operations = topic_operations(installation, installation.settings.output_topic)
    if error.code() == ID_NOT_ALLOWED and WRITE not in (operations or ()):
        return "skipped", "this user is not the relay's: it may take no transactional id"
    if is_connection_lost(installation, error):
        return connection_lost(installation, KafkaException(error))
    advice = _transactional_id_advice(installation, error, trial.prefix)
    return "failed", f"{name}: {error.str()} ({error.name()}): {advice}"


def _transactional_id_advice(installation: Installation, error: KafkaError, prefix: str) -> str:
    """Return what to do about a transactional id that this user cannot take."""
    if error.code() == ID_NOT_ALLOWED:
        return f"grant Write on the transactional ids that begin with {prefix} (prefixed)"
    if error.code() == KafkaError.INVALID_TRANSACTION_TIMEOUT:
        wanted = {**DEFAULT_CONFIG, **installation.kafka}[TRANSACTION_TIMEOUT]
        return f"set transaction.max.timeout.ms of the brokers to {wanted} or more"
    return "see that __transaction_state has all its leaders and enough replicas in sync"


def input_positions(installation: Installation) -> Result:
    """Compare the positions in Postgres with the log, and with the copy in Kafka.

    They are read in this order: the copy is older than the positions, these are older than the high
    watermarks.
    """
    group, topic = installation.settings.consumer_group, installation.settings.input_topic
    description = installation.topic(topic)
    topic_id, ids = topic_id_of(description), [part.id for part in description.partitions]
    copies = read_committed_offsets(installation, group, topic)
    starts = topics.read_log_start_offsets(installation.admin, topic, ids)
    positions = offsets.read_positions(installation.conn, topic)
    ends = topics.read_high_watermarks(installation.admin, topic, ids)
    continuations = read_continuations(installation.kafka, topic, topic_id, positions)
    last_stable = topics.read_last_stable_offsets(installation.admin, topic, ids)
    remarks: list[Result] = []
    for partition, position in positions.items():
        found = continuations.get(partition)
        if partition not in ids:
            text = f"partition {partition} is no longer in {topic}: was it recreated with fewer?"
            remarks.append(("warning", text))
        elif refusal := find_refusal(
            position,
            topic_id,
            OffsetRange(starts[partition], ends[partition]),
            found and found.continues_at,
        ):
            text = describe_refusal(refusal, repair_of_partition(partition))
            remarks.append(("failed", f"partition {partition}: {text}"))
        elif unread := find_unread(
            topic,
            partition,
            position.next_offset,
            last_stable[partition],
            ends[partition],
            found,
            repair_of_partition(partition),
        ):
            remarks.append(("failed", f"partition {partition}: {unread}"))
        elif copies.get(partition, 0) > position.next_offset:
            remarks.append(("warning", _ahead(partition, copies[partition], position.next_offset)))
    lag = sum(max(ends[p] - positions[p].next_offset, 0) for p in ids if p in positions)
    text = f"{counted(lag, 'offset')} behind the high watermarks"
    if new := [p for p in ids if p not in positions]:
        text += f", {name_partitions(new)} not yet consumed"
    return combine(remarks, text)


def _ahead(partition: int, copy: int, position: int) -> str:
    """Return what it means that a copy is ahead of its original."""
    return (
        f"partition {partition}: Kafka has offset {copy} for our group, Postgres has {position}: if it"
        " was restored, let a consumer catch up and see `markers`; else find out who commits in our"
        " group"
    )


def read_committed_offsets(installation: Installation, group: str, topic: str) -> dict[int, int]:
    """Return the offsets that are committed in Kafka for the group: a copy, for lag tools.

    By a consumer that joins nothing, not by list_consumer_group_offsets: when the brokers refuse that,
    librdkafka uses a group that an admin client does not have, and the process dies by SIGSEGV.
    """
    config = {**installation.kafka, "group.id": group, "enable.auto.commit": False, "log_level": 0}
    wanted = [TopicPartition(topic, part.id) for part in installation.topic(topic).partitions]
    with closing(Consumer(config)) as consumer:
        committed = consumer.committed(wanted, timeout=REQUEST_S)
    return {one.partition: one.offset for one in committed if one.error is None}


def marker_topic_policy(installation: Installation) -> Result:
    """Check that the marker topic is compacted: retention would delete the markers of idle lanes."""
    topic = installation.topic(installation.settings.marker_topic).name
    configs, unseen = read_configs(installation.admin, [topic])
    if unseen:
        return (
            "skipped",
            f"the brokers show it only with the permission DescribeConfigs on topic {topic}",
        )
    policy = configs[topic].get("cleanup.policy", "")
    if policy == "compact":
        return "ok", f"{topic} is compacted"
    return (
        "failed",
        f"cleanup.policy of {topic} is {policy}: run `{PROGRAM} setup`, which sets compact",
    )


def lane_markers(installation: Installation) -> Result:
    """Compare each lane's marker in Kafka with its batch in Postgres, as a relay does."""
    topic = installation.topic(installation.settings.marker_topic).name
    checks = check_lanes(installation.conn, installation.kafka, topic)
    remarks: list[Result] = [
        ("failed", f"{check.refusal}: {repair_of_lane(check.lane)}")
        for check in checks
        if check.refusal
    ]
    return combine(remarks, f"those of {counted(len(checks), 'lane')} agree with Postgres")
