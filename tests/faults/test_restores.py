"""The database is restored to an earlier state: no command sends twice what was sent in between."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from uuid import UUID, uuid4

import msgspec
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from orchestrator.contract.messages import DeployOrder, encode_order
from outbox import Message, enqueue, transaction
from testkit.cases import cases
from testkit.disagreement import (
    SECRET,
    back_up,
    is_refused,
    logged_repairs,
    operate,
    repair,
    restore,
)
from testkit.eventually import eventually
from testkit.system import (
    PARTITIONS,
    Running,
    System,
    delete_before,
    have_leaders,
    limit_messages,
    set_config,
)

RESUME_S = 45
LIMIT = 400  # bytes of a record, which a long URL exceeds


def command(url: str = f"rtsp://{SECRET}c/1") -> bytes:
    return msgspec.json.encode({"scenario_uuid": str(uuid4()), "camera_url": url})


def parked(system: System, *words: str) -> tuple[int, str]:
    """Run `orchestrator parked`, as `operate` does."""
    return operate(system, "parked", *words)


def records_of(system: System) -> dict[UUID, int]:
    """Return how many deploy orders each worker has in the output topic."""
    found: dict[UUID, int] = {}
    for order in system.orders():
        found[order.worker_id] = found.get(order.worker_id, 0) + 1
    return found


# ---- parked rows ----------------------------------------------------------------------------------


def publish(one_lane: System) -> None:
    """Let a relay publish what is in the outbox, and park what the topic rejects."""
    relay = one_lane.start("relay")
    eventually(partial(relay.logged, '"lane active"'), RESUME_S)
    eventually(lambda: one_lane.query("SELECT count(*) FROM outbox") == [(0,)], RESUME_S)
    relay.stop()


def park_one(one_lane: System) -> UUID:
    """Accept three commands, one of them too long for the topic: its row is parked.

    Return its scenario.
    """
    limit_messages(one_lane, LIMIT)
    with closing(one_lane.connect()) as conn, transaction(conn):
        order = DeployOrder(uuid4(), uuid4(), f"rtsp://{SECRET}c/{'x' * LIMIT}")
        conn.execute(
            "INSERT INTO workers (worker_id, scenario_uuid, camera_url) VALUES (%s, %s, 'rtsp://x')",
            [order.worker_id, order.scenario_uuid],
        )
        topic, key = one_lane.settings.output_topic, str(order.scenario_uuid).encode()
        enqueue(conn, [Message(topic, key, encode_order(order), (), order.worker_id)], 1)
    one_lane.accept(2)
    publish(one_lane)
    assert one_lane.query("SELECT count(*) FROM outbox_parked") == [(1,)]
    limit_messages(one_lane, 100_000)
    return order.scenario_uuid


def restore_to_before_the_retry(one_lane: System) -> None:
    """Retry the parked row, let it be published, and restore the database to before that.

    A later order of its scenario was published before it.
    """
    one_lane.accept(1, park_one(one_lane))
    publish(one_lane)
    back_up(one_lane)
    assert parked(one_lane, "retry", "--all", "--yes")[0] == 0
    publish(one_lane)
    assert one_lane.statuses() == {"deployed": 4}
    restore(one_lane)
    assert one_lane.statuses() == {"deployed": 3, "pending": 1}


@pytest.mark.fault(53)
@pytest.mark.parametrize("first", cases(["repair", "retry"], "retry"))
def test_a_row_that_was_retried_before_a_restore_is_not_sent_again(
    one_lane: System, first: str
) -> None:
    restore_to_before_the_retry(one_lane)
    assert not (found := one_lane.audit()).passed
    assert (found.published_and_parked, found.parked) == (1, 1)
    if first == "repair":
        code, said = repair(one_lane, "lane", "all", "--yes")
        assert (code, "1 parked rows are in their topic, too" in said) == (0, True), said
        assert "retry 0 parked rows" in parked(one_lane, "retry", "--all", "--yes")[1]
        ((_, _, reason, counts),) = logged_repairs(one_lane)
        assert (reason, counts["parked"]) == ("marker_ahead", 1)
    else:
        code, said = parked(one_lane, "retry", "--all", "--yes")
        topic = one_lane.settings.output_topic
        assert (code, f"was sent before: its record is at {topic}[" in said) == (0, True), said
        assert "1 were sent before: acknowledged" in said
        assert repair(one_lane, "lane", "all", "--yes")[0] == 0
    publish(one_lane)
    one_lane.check_exactly_once(4)


def test_an_order_that_a_retry_sent_late_is_left_out_of_the_order(one_lane: System) -> None:
    one_lane.accept(2, park_one(one_lane))
    publish(one_lane)
    assert parked(one_lane, "retry", "--all", "--yes")[0] == 0
    publish(one_lane)
    one_lane.check_exactly_once(5)
    assert one_lane.audit().sent_late == 1
    one_lane.query("DELETE FROM repairs")
    assert one_lane.audit().reordered == 1


@pytest.mark.fault(53)
def test_a_row_that_is_retried_while_its_lane_is_refused_is_sent_once(one_lane: System) -> None:
    """It was not sent before the restore, but the lane was used."""
    park_one(one_lane)
    back_up(one_lane)
    one_lane.accept(1)
    publish(one_lane)
    restore(one_lane)
    code, said = parked(one_lane, "retry", "--all", "--yes")
    assert (code, "1 parked rows are in the outbox now" in said) == (0, True), said
    code, said = repair(one_lane, "lane", "all", "--yes")
    assert (code, "0 rows are in their topic already, 1 will be published" in said) == (0, True), said
    publish(one_lane)
    assert sorted(records_of(one_lane).values()) == [1] * 4
    assert one_lane.statuses() == {
        "deployed": 3
    }  # the fourth was accepted in the history that was lost


@pytest.mark.fault(53)
def test_a_parked_row_of_another_service_is_found_by_its_message_id(one_lane: System) -> None:
    topic = one_lane.settings.output_topic
    limit_messages(one_lane, LIMIT)
    with closing(one_lane.connect()) as conn, transaction(conn):
        enqueue(conn, [Message(topic, b"bill", b"x" * 2 * LIMIT)], 1)
    publish(one_lane)
    limit_messages(one_lane, 100_000)
    back_up(one_lane)
    assert parked(one_lane, "retry", "--all", "--yes")[0] == 0
    publish(one_lane)
    restore(one_lane)
    code, said = parked(one_lane, "retry", "--all", "--yes")
    assert (code, f"its record is at {topic}[" in said) == (0, True), said
    assert one_lane.query("SELECT count(*) FROM outbox_parked") == [(0,)]
    assert repair(one_lane, "lane", "all", "--yes")[0] == 0
    publish(one_lane)
    assert len(one_lane.read(topic)) == 1


@pytest.mark.fault(53)
def test_a_parked_dead_letter_that_was_retried_before_a_restore_is_not_sent_again(
    one_lane: System,
) -> None:
    topic = one_lane.settings.dead_letter_topic
    set_config(one_lane, topic, "max.message.bytes", str(LIMIT))
    consumer = one_lane.start("consumer")
    one_lane.produce(b"no command" * LIMIT)
    eventually(lambda: one_lane.query("SELECT count(*) FROM outbox") == [(1,)], RESUME_S)
    consumer.stop()
    publish(one_lane)
    set_config(one_lane, topic, "max.message.bytes", "100000")
    back_up(one_lane)
    assert parked(one_lane, "retry", "--all", "--yes")[0] == 0
    publish(one_lane)
    restore(one_lane)
    code, said = parked(one_lane, "retry", "--all", "--yes")
    assert (code, f"its record is at {topic}[" in said) == (0, True), said
    assert repair(one_lane, "lane", "all", "--yes")[0] == 0
    publish(one_lane)
    assert len(one_lane.read(topic)) == 1


def test_a_parked_row_older_than_its_topics_records_is_left_to_the_operator(one_lane: System) -> None:
    park_one(one_lane)
    one_lane.query("UPDATE outbox_parked SET created_at = created_at - interval '8d'")
    topic, producer = one_lane.settings.output_topic, Producer(dict(one_lane.settings.kafka))
    for partition in range(PARTITIONS):
        for _ in range(3):
            producer.produce(topic, b"a stranger's", partition=partition)
        producer.flush(10)
        delete_before(one_lane, topic, partition, 1)
    code, said = parked(one_lane, "retry", "--all", "--dry-run")
    assert (code, "it is not known whether they were sent" in said) == (0, True), said
    code, said = parked(one_lane, "retry", "--all", "--yes")
    assert (code, "--unknown-rows publish" in said) == (1, True), said
    assert one_lane.query("SELECT count(*) FROM outbox_parked") == [(1,)]
    code, said = parked(one_lane, "retry", "--all", "--yes", "--unknown-rows", "publish")
    assert (code, "1 parked rows are in the outbox now" in said) == (0, True), said
    ((words, *_),) = logged_repairs(one_lane)
    assert words == "parked retry --unknown-rows publish"


# ---- two inputs on one database -------------------------------------------------------------------


@contextmanager
def another_input(system: System) -> Iterator[System]:
    """Yield an installation with another input and dead-letter topic, and the same database."""
    names = {name: f"{system.environ[name]}-2" for name in ("INPUT_TOPIC", "DEAD_LETTER_TOPIC")}
    admin = AdminClient(dict(system.settings.kafka))
    for future in admin.create_topics(
        [NewTopic(name, PARTITIONS, 1) for name in names.values()]
    ).values():
        future.result()
    eventually(lambda: have_leaders(admin, list(names.values())))
    directory = system.directory / "another input"
    directory.mkdir()
    other = System(system.environ | names | {"CONSUMER_GROUP": f"group-{uuid4()}"}, directory)
    try:
        yield other
    finally:
        other.end()
        for future in admin.delete_topics(list(names.values())).values():
            future.exception()


@pytest.fixture
def other(system: System) -> Iterator[System]:
    with another_input(system) as made:
        yield made


def letters(system: System) -> int:
    return len(system.read(system.settings.dead_letter_topic))


def restore_with_two_inputs(system: System, other: System) -> Running:
    """Let two inputs be consumed and published, and restore the database to before some of that.

    Return the relay, which refuses the lanes. No consumer runs.
    """
    both = (system, other)
    topics = {"RELAY_TOPICS": other.settings.dead_letter_topic}
    consumers, relay = [one.start("consumer") for one in both], system.start("relay", **topics)
    for one in both:
        one.submit(10)
    system.check_exactly_once(20, RESUME_S)
    for process in (*consumers, relay):
        process.stop()
    back_up(system)
    consumers, relay = [one.start("consumer") for one in both], system.start("relay", **topics)
    for one in both:
        one.submit(30)
        one.produce(*[b"no command %d" % number for number in range(8)])
    system.check_exactly_once(80, RESUME_S)
    eventually(lambda: [letters(one) for one in both] == [8, 8])
    for process in consumers:
        process.stop()
    restore(system)
    for lane in range(4):
        eventually(partial(is_refused, relay, lane, "marker_ahead"), RESUME_S)
    return relay


@pytest.mark.fault(53)
def test_a_repair_waits_for_every_input_of_the_database(system: System, other: System) -> None:
    relay = restore_with_two_inputs(system, other)
    first = system.start("consumer")
    eventually(lambda: system.statuses() == {"deployed": 20, "pending": 30}, RESUME_S)
    topic = other.settings.input_topic
    code, said = repair(system, "lane", "all", "--yes")
    assert (code, f"records of {topic} are not consumed yet" in said) == (1, True), said
    assert f"INPUT_TOPIC={topic}" in said
    assert f"--without-input {topic}" in said

    second = other.start("consumer")
    eventually(lambda: system.statuses() == {"deployed": 20, "pending": 60}, RESUME_S)
    code, said = repair(system, "lane", "all", "--yes")
    assert code == 0, said
    system.check_exactly_once(80, RESUME_S)
    assert [letters(one) for one in (system, other)] == [8, 8]
    for process in (first, second, relay):
        process.stop()


RENAMED = """
    INSERT INTO consumed_offsets
    SELECT (jsonb_populate_record(position, jsonb_build_object('topic', %s::text))).*
      FROM consumed_offsets AS position
"""


@pytest.mark.fault(53)
@pytest.mark.slow
def test_an_input_that_no_consumer_reads_any_more_is_left_out_by_name(
    system: System, other: System
) -> None:
    own, retired = system.settings.input_topic, other.settings.input_topic
    consumer = other.start("consumer")
    count = "SELECT count(*) FROM consumed_offsets"
    eventually(lambda: system.query(count) == [(PARTITIONS,)], RESUME_S)
    consumer.stop()
    other.submit(3)
    system.query(RENAMED, f"{retired}-gone")
    system.accept(4)
    system.query("UPDATE outbox_lane SET batch_number = 5")
    code, said = repair(system, "lane", "all", "--yes", "--without-input", own)
    assert (code, "it cannot be left out" in said) == (1, True), said
    code, said = repair(system, "lane", "all", "--yes", "--without-input", "another")
    assert (code, "another is no input of this database" in said) == (1, True), said
    code, said = repair(system, "lane", "all", "--yes")
    assert (code, f"wait: up to 3 records of {retired} are not consumed yet" in said) == (1, True), said
    assert f"{retired}-gone: does not exist any more" in said
    system.query("UPDATE consumed_offsets SET topic_id = gen_random_uuid() WHERE topic = %s", retired)
    code, said = repair(system, "lane", "all", "--yes")
    assert (code, f"of {retired} needs a repair first" in said) == (1, True), said
    assert logged_repairs(system) == []
    code, said = repair(system, "lane", "all", "--yes", "--without-input", retired)
    assert (code, f"input {retired}: left out" in said) == (0, True), said
    assert logged_repairs(system)[0][0] == f"repair lane all --without-input {retired}"
