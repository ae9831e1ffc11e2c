"""The broker and the topics in trouble while both processes work."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)

from orchestrator.embedded import EmbeddedKafka, Servers
from orchestrator.kafka import topics
from outbox import Message, enqueue, transaction
from outbox.timings import PRODUCTION
from testkit.eventually import eventually
from testkit.private_servers import wait_ready
from testkit.system import LANES, PARTITIONS, System, recreate_input
from tests.faults.kafka_servers import (
    command,
    liveness_over,
    own_kafka,
    paused,
    stream,
)
from tests.faults.postgres_servers import installed

pytestmark = pytest.mark.xdist_group("own servers: Kafka")

PROPERTIES = {
    # Logs are cut by age within a second, not within minutes.
    "log.retention.check.interval.ms": "500",
    "log.initial.task.delay.ms": "500",
    # Kafka's default: a node that was frozen for 5 s is not fenced, and tells no client that there are
    # no brokers. The producer of a test would stand still then; ours is tested in test_no_brokers.
    "broker.session.timeout.ms": "9000",
}


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedKafka]:
    with own_kafka(PROPERTIES) as kafka:
        yield kafka


@pytest.fixture
def kafka(broker: EmbeddedKafka) -> EmbeddedKafka:
    """A broker of this module's own; it runs, whatever the test before did."""
    broker.start()
    return broker


@pytest.fixture
def own(kafka: EmbeddedKafka, servers: Servers, tmp_path: Path) -> Iterator[System]:
    """An installation on that broker."""
    on = Servers(servers.database_url, kafka.bootstrap_servers)
    with installed(on, tmp_path) as system:
        yield system


# ---- the broker -----------------------------------------------------------------------------------


@pytest.mark.fault(15)
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_a_broker_killed_at_work_costs_nothing_but_time(
    own: System, kafka: EmbeddedKafka, kills: int
) -> None:
    processes = own.start("consumer"), own.start("relay")
    with stream(own) as commands:
        for _ in range(kills):
            commands.wait_for_progress()
            kafka.kill()
            kafka.start()
        commands.wait_for_progress()
    commands.check()
    wait_ready(*processes)
    for process in processes:
        process.stop()


@pytest.mark.fault(16)
@pytest.mark.parametrize("seconds", [5, *(pytest.param(s, marks=pytest.mark.slow) for s in (20, 60))])
def test_after_a_frozen_broker_the_outcome_in_doubt_is_found_out(
    own: System, kafka: EmbeddedKafka, seconds: int
) -> None:
    consumer, relay = processes = own.start("consumer"), own.start("relay")
    with stream(own) as commands:
        commands.wait_for_progress()
        recovered = relay.log.read_text().count("lane recovered")
        with paused(kafka):
            rows = len(own.accept(20))  # so that a batch is certainly on its way
            assert liveness_over(seconds, processes) == {200}
        commands.wait_for_progress()
    commands.sent += rows
    commands.check()
    wait_ready(consumer, relay)
    if seconds > PRODUCTION.kafka_call_s:
        assert relay.logged('"lane in doubt"')
        assert relay.log.read_text().count("lane recovered") > recovered
    for process in processes:
        process.stop()


# ---- the input topic ------------------------------------------------------------------------------


def go_on_from(system: System, offset: int) -> None:
    """Do what the README says of a paused partition, with all of them."""
    admin = AdminClient(dict(system.settings.kafka))
    system.query(
        "UPDATE consumed_offsets SET next_offset = %s, decided_end = %s, topic_id = %s,"
        " refusal = NULL WHERE topic = %s",
        offset,
        offset,
        topics.read_topic_id(admin, system.settings.input_topic),
        system.settings.input_topic,
    )


def scenarios_in(system: System) -> set[UUID]:
    """Return the scenarios of the commands that are in the input topic now."""
    found = [record.value() or b"" for record in system.read(system.settings.input_topic)]
    return {UUID(msgspec.json.decode(value)["scenario_uuid"]) for value in found}


def accepted_of(system: System, scenarios: set[UUID]) -> int:
    """Count the workers of these scenarios."""
    found = "SELECT count(*) FROM workers WHERE scenario_uuid = ANY(%s)"
    return int(system.query(found, list(scenarios))[0][0])


@pytest.mark.fault(24)
def test_a_topic_recreated_under_load_is_read_only_after_a_repair(own: System) -> None:
    consumer, relay = own.start("consumer"), own.start("relay")
    producer = Producer({**own.settings.kafka, "message.timeout.ms": 5000, "log_level": 0})

    def send() -> bool:
        producer.produce(own.settings.input_topic, command(uuid4(), 1))
        producer.poll(0)
        return True

    eventually(lambda: send() and own.statuses().get("deployed", 0) > 50)
    recreate_input(own)
    eventually(lambda: send() and "topic_recreated" in consumer.get("/readyz"), 30)
    producer.flush(10)
    eventually(lambda: set(own.statuses()) == {"deployed"})
    anew, before = scenarios_in(own), own.statuses()["deployed"]
    assert anew
    assert accepted_of(own, anew) == 0
    assert consumer.logged('"partition refused"')
    consumer.stop()
    go_on_from(own, 0)
    own.start("consumer")
    own.check_exactly_once(before + len(anew))
    relay.stop()


@pytest.mark.fault(25)
def test_records_deleted_before_they_were_read_pause_their_partition(own: System) -> None:
    consumer = own.start("consumer", crash_at="consumer.polled:5:freeze", BATCH_SIZE="1")
    own.start("relay")
    admin, topic = AdminClient(dict(own.settings.kafka)), own.settings.input_topic
    own.produce(*[command(uuid4(), number) for number in range(20)], partition=0)
    consumer.wait_frozen()
    admin.delete_records([place := TopicPartition(topic, 0, 12)])[place].result(10)
    consumer.kill()
    second = own.start("consumer")
    eventually(lambda: "partition 0: offset_out_of_range" in second.get("/readyz"), 30)
    own.produce(*[command(uuid4(), number) for number in range(5)], partition=1)  # the others go on
    own.check_exactly_once(4 + 5)
    second.stop()
    own.query("UPDATE consumed_offsets SET next_offset = 12, refusal = NULL WHERE partition = 0")
    own.start("consumer")
    own.check_exactly_once(4 + 5 + 8)


@pytest.mark.fault(25)
def test_a_log_cut_by_its_retention_pauses_the_partition(own: System) -> None:
    consumer = own.start("consumer")
    own.start("relay")
    own.produce(*[command(uuid4(), number) for number in range(3)], partition=0)
    own.check_exactly_once(3)
    consumer.stop()
    own.produce(*[command(uuid4(), number) for number in range(5)], partition=0)
    topic = own.settings.input_topic
    set_topic(own, topic, "retention.ms", "1")
    eventually(lambda: begins_at(own, 8))
    set_topic(own, topic, "retention.ms", "-1")
    own.produce(command(uuid4(), 8), partition=0)
    consumer = own.start("consumer")
    eventually(lambda: "partition 0: offset_out_of_range" in consumer.get("/readyz"), 30)
    assert own.statuses() == {"deployed": 3}
    consumer.stop()
    own.query("UPDATE consumed_offsets SET next_offset = 8, refusal = NULL WHERE partition = 0")
    own.start("consumer")
    own.check_exactly_once(4)


def begins_at(system: System, offset: int) -> bool:
    """Say whether the log of input partition 0 begins there."""
    admin, topic = AdminClient(dict(system.settings.kafka)), system.settings.input_topic
    try:
        return topics.read_log_start_offsets(admin, topic, [0]) == {0: offset}
    except KafkaException:  # a busy broker may just have become the leader again
        return False


def set_topic(system: System, topic: str, name: str, value: str) -> None:
    """Change a setting of a topic."""
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient(dict(system.settings.kafka))
    admin.incremental_alter_configs([resource])[resource].result(10)


@pytest.mark.fault(26)
def test_partitions_added_under_load_lose_nothing(own: System) -> None:
    consumer = own.start("consumer", KAFKA_CONFIG_TOPIC_METADATA_REFRESH_INTERVAL_MS="500")
    relay = own.start("relay")
    admin, topic = AdminClient(dict(own.settings.kafka)), own.settings.input_topic
    with stream(own) as commands:
        for partitions in (PARTITIONS + 1, PARTITIONS + 4):
            commands.wait_for_progress()
            admin.create_partitions([NewPartitions(topic, partitions)])[topic].result()
        eventually(lambda: len(consumed(own)) == PARTITIONS + 4 and min(consumed(own)) > 0, 30)
    own.check_exactly_once(commands.sent)  # a key may have moved to another partition: no order
    consumer.stop()
    relay.stop()


def consumed(system: System) -> list[int]:
    """Return the next offset of each partition."""
    return [offset for (offset,) in system.query("SELECT next_offset FROM consumed_offsets")]


@pytest.mark.fault(27)
def test_aborted_transactions_leave_gaps_and_no_workers(own: System) -> None:
    own.start("consumer", BATCH_SIZE="50")
    own.start("relay")
    api = Producer({**own.settings.kafka, "transactional.id": f"api-{uuid4()}", "linger.ms": 1})
    api.init_transactions(20)
    committed = 0
    for number in range(4 * 32):
        api.begin_transaction()
        for _ in range(5):
            scenario = uuid4()
            api.produce(own.settings.input_topic, command(scenario, number), scenario.bytes)
        if number % 32 == 7:
            api.flush(20)  # or it would never reach the log
            api.abort_transaction(20)
        else:
            api.commit_transaction(20)
            committed += 5
    own.check_exactly_once(committed)
    assert committed == 4 * 31 * 5


# ---- the output topic and the markers -------------------------------------------------------------


@pytest.mark.fault(19)
def test_a_record_invalid_for_its_topic_is_parked_alone(own: System) -> None:
    topic = own.settings.output_topic
    set_topic(own, topic, "cleanup.policy", "compact")  # which refuses records without a key
    own.accept(10)
    with closing(own.connect()) as conn, transaction(conn):
        enqueue(conn, [Message(topic, None, b"no key")], LANES)
    own.accept(10)
    relay = own.start("relay")
    own.check_exactly_once(20)
    ((value, reason),) = own.query("SELECT value, reason FROM outbox_parked")
    assert (value, own.query("SELECT count(*) FROM outbox")) == (b"no key", [(0,)])
    assert "failed to validate" in reason
    relay.stop()


QUIET_S = 30  # in which the cleaner runs many times
CLEANED_OFTEN = {
    "segment.ms": "1000",
    "retention.ms": "1000",
    "min.cleanable.dirty.ratio": "0.01",
    "max.compaction.lag.ms": "1000",
    "delete.retention.ms": "100",
}
CLEANER = {"log.cleaner.backoff.ms": "500", "log.retention.check.interval.ms": "500"}


@pytest.mark.fault(35)
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_markers_outlive_a_quiet_week_because_their_topic_is_compacted(
    servers: Servers, tmp_path: Path
) -> None:
    with (
        own_kafka(CLEANER) as kafka,
        installed(Servers(servers.database_url, kafka.bootstrap_servers), tmp_path) as system,
    ):
        for name, value in CLEANED_OFTEN.items():
            set_topic(system, system.settings.marker_topic, name, value)
        relay = system.start("relay")
        for rows in range(40, 201, 40):
            system.accept(40)
            system.check_exactly_once(rows)
        quiet = time.monotonic() + QUIET_S
        eventually(lambda: time.monotonic() > quiet, QUIET_S + 5)
        relay.kill()
        assert 0 < len(system.read(system.settings.marker_topic)) < 5 * LANES
        successor = system.start("relay")
        system.accept(40)
        system.check_exactly_once(240)
        assert successor.log.read_text().count('"outcome": "published"') == LANES
        successor.stop()
