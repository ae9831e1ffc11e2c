"""The checks of `doctor` that need both servers: can lanes work, and do both tell one history?"""

import time
from contextlib import closing

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import ResourceType  # type: ignore[attr-defined]  # public

from orchestrator.consumer import offsets
from orchestrator.contract.repair_commands import repair_of_lane, repair_of_partition
from orchestrator.kafka import topics
from orchestrator.kafka.reader import OffsetRange
from orchestrator.kafka.topics import REQUEST_S
from orchestrator.operations.doctor.check import Answer, Site, all_of, count, partitions
from orchestrator.operations.doctor.kafka import NOT_ALLOWED, ask_configs, lost, values_of, was_lost
from orchestrator.operations.doctor.permissions import WRITE, topic_operations
from orchestrator.operations.repair.partition import find_refusal
from orchestrator.operations.text import duration
from outbox import Timings, count_lanes
from outbox.admin import DEFAULT_CONFIG, check_lanes, try_transactional_id

NOT_OURS = KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
TIME_OUT = "transaction.timeout.ms"
TRANSACTIONS_S = 10.0  # more than the brokers need to end a transaction


def progress_partitions(site: Site) -> Answer:
    """Compare the marker topic with the lanes: each has its marker on a partition of its own."""
    lanes, topic = count_lanes(site.conn), site.settings.marker_topic
    found = len(site.topic(topic).partitions)
    text = f"{count(found, 'partition')} of {topic} for {count(lanes, 'lane')}"
    if found < lanes:
        return "failed", f"{text}: run `orchestrator setup`, which adds partitions"
    return "ok", text


def transactions(site: Site) -> Answer:
    """Take a transactional id as every lane does, but of no lane: a working one would be fenced."""
    started = time.monotonic()
    trial = try_transactional_id(site.conn, site.kafka, TRANSACTIONS_S)
    name, error = trial.transactional_id, trial.error
    if error is None:
        return "ok", f"{name} was taken in {duration(time.monotonic() - started)}"
    operations = topic_operations(site, site.settings.output_topic)
    if error.code() == NOT_OURS and WRITE not in (operations or ()):
        return "skipped", "this user is not the relay's: it may take no transactional id"
    if was_lost(site, error):
        return lost(site, KafkaException(error))
    return "failed", f"{name}: {error.str()} ({error.name()}): {advice_on(error, trial.prefix, site)}"


def advice_on(error: KafkaError, prefix: str, site: Site) -> str:
    """Say what to do about a transactional id that this user cannot have."""
    if error.code() == NOT_OURS:
        return f"grant Write on the transactional ids that begin with {prefix} (prefixed)"
    if error.code() == KafkaError.INVALID_TRANSACTION_TIMEOUT:
        wanted = {**DEFAULT_CONFIG, **site.kafka}[TIME_OUT]
        return f"let transaction.max.timeout.ms of the brokers be {wanted} or more"
    return "see that __transaction_state has all its leaders and enough replicas in sync"


def input_positions(site: Site) -> Answer:
    """Compare the offsets in Postgres with the log, and with the copy that Kafka shows.

    In this order: the copy is older than the offsets in Postgres, and these are older than the ends.
    """
    group, topic = site.settings.consumer_group, site.settings.input_topic
    found = site.topic(topic)
    topic_id, ids = topics.id_of(found), [partition.id for partition in found.partitions]
    shown = read_shown(site, group, topic)
    beginnings = topics.read_log_start_offsets(site.admin, topic, ids)
    stored = offsets.read_positions(site.conn, group, topic)
    ends = topics.read_high_watermarks(site.admin, topic, ids)
    remarks: list[Answer] = []
    for partition, position in stored.items():
        if partition not in ids:
            text = f"partition {partition} is not in {topic} any more: was it made again with fewer?"
            remarks.append(("warning", text))
        elif fault := find_refusal(
            position, topic_id, OffsetRange(beginnings[partition], ends[partition])
        ):
            remarks.append(
                ("failed", f"partition {partition}: {fault}: {repair_of_partition(partition)}")
            )
        elif shown.get(partition, 0) > position.next_offset:
            remarks.append(("warning", ahead(partition, shown[partition], position.next_offset)))
    lag = sum(max(ends[p] - stored[p].next_offset, 0) for p in ids if p in stored)
    new = [p for p in ids if p not in stored]
    text = f"{count(lag, 'offset')} behind the end" + (f", {partitions(new)} not yet read" * bool(new))
    return all_of(remarks, text)


def ahead(partition: int, shown: int, stored: int) -> str:
    """Say what a copy means that is ahead of its original."""
    return (
        f"partition {partition}: Kafka shows offset {shown} for our group, Postgres has {stored}: if it"
        " was restored, let a consumer catch up and see `markers`; else find who commits in our group"
    )


def read_shown(site: Site, group: str, topic: str) -> dict[int, int]:
    """Return the offsets that Kafka has for the group: a copy for lag tools.

    By a consumer that joins nothing, not by list_consumer_group_offsets: there librdkafka reaches for a
    group that an admin client does not have, when the brokers refuse, and the process dies by SIGSEGV.
    """
    config = {**site.kafka, "group.id": group, "enable.auto.commit": False, "log_level": 0}
    wanted = [TopicPartition(topic, part.id) for part in site.topic(topic).partitions]
    with closing(Consumer(config)) as reader:
        places = reader.committed(wanted, timeout=REQUEST_S)
    return {place.partition: place.offset for place in places if place.error is None}


RETENTION_MIN_S = 2 * Timings().marker_refresh_s
RETENTION_GOOD_S = 7 * 86_400.0  # the brokers' default
RETENTION = "offsets.retention.minutes"


def retention(site: Site) -> Answer:
    """Look how long brokers keep the markers: an idle lane refreshes its own, if a relay runs."""
    client = site.admin
    asked = [ask_configs(client, ResourceType.BROKER, [str(node.id)]) for node in site.brokers]
    try:
        told = [values_of(future).get(RETENTION) for one in asked for future in one.values()]
    except KafkaException as error:
        if error.args[0].code() not in NOT_ALLOWED:
            raise
        return "skipped", "the brokers show it only with the right DescribeConfigs on the cluster"
    known = [int(minutes) * 60.0 for minutes in told if minutes is not None]
    if not known:
        return "skipped", f"the brokers do not show {RETENTION}"
    text = f"{duration(min(known))} ({RETENTION})"
    if min(known) >= RETENTION_GOOD_S:
        return "ok", text
    danger = f"{text}: if no relay runs for so long, lanes end as marker_missing: set it to 7 days"
    return "failed" if min(known) < RETENTION_MIN_S else "warning", danger


def markers(site: Site) -> Answer:
    """Compare each lane's marker in Kafka with its batch in Postgres, as the relay does."""
    checks = check_lanes(site.conn, site.kafka, site.topic(site.settings.marker_topic).name)
    remarks: list[Answer] = [
        ("failed", f"{check.refusal}: {repair_of_lane(check.lane)}")
        for check in checks
        if check.refusal
    ]
    return all_of(remarks, f"those of {count(len(checks), 'lane')} agree with Postgres")
