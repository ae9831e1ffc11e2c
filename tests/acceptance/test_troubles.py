"""The log itself says what stops a first try: once, with the variable and the next step."""

import json
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]  # public

from orchestrator.kafka.topics import Admin
from testkit.eventually import eventually
from testkit.system import Running, System

CLOSED = "127.0.0.1:1"  # nothing listens there


def lines(process: Running, event: str) -> list[dict[str, Any]]:
    """Return the lines of an event in a process's log."""
    said = [json.loads(line) for line in process.log.read_text().splitlines()]
    return [line for line in said if line["event"] == event]


def drop_workers(system: System) -> None:
    system.query("DROP TABLE workers")


TROUBLES: dict[str, tuple[Mapping[str, str], Callable[[System], None] | None, str, str]] = {
    "Kafka refuses the connection": (
        {"KAFKA_BOOTSTRAP_SERVERS": CLOSED},
        None,
        "Connection refused",
        "KAFKA_BOOTSTRAP_SERVERS",
    ),
    "Postgres refuses the connection": (
        {"DATABASE_URL": f"postgresql://user:pw@{CLOSED}/db"},
        None,
        "Connection refused",
        "DATABASE_URL",
    ),
    "the topic is missing": ({"INPUT_TOPIC": "no_such_topic"}, None, "no_such_topic", "INPUT_TOPIC"),
    "the table is missing": ({}, drop_workers, "workers", "schema/001_workers.sql"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_the_log_says_what_is_wrong_and_what_to_do_once(system: System, trouble: str) -> None:
    environ, break_it, thing, advice = TROUBLES[trouble]
    if break_it:
        break_it(system)
    consumer = system.start("consumer", LOG_LEVEL="INFO", **environ)
    eventually(lambda: lines(consumer, "consumer waiting"))
    consumer.stop()
    (waiting,) = lines(consumer, "consumer waiting")
    assert thing in waiting["error"]
    assert advice in waiting["error"] + waiting.get("advice", "")
    assert "pw@" not in consumer.log.read_text()


def test_the_log_says_why_no_message_comes(system: System) -> None:
    topic = f"one_partition_{uuid4().hex[:8]}"
    admin = Admin(system.settings.kafka)
    admin.create_topics([NewTopic(topic, 1)])[topic].result()
    pair = [system.start("consumer", INPUT_TOPIC=topic) for _ in range(2)]
    eventually(lambda: any(lines(one, "no partition assigned") for one in pair))
    eventually(lambda: any(lines(one, "no commands") for one in pair))
    spare = next(one for one in pair if lines(one, "no partition assigned"))
    reader = next(one for one in pair if lines(one, "no commands"))
    (spared,), (quiet,) = lines(spare, "no partition assigned")[:1], lines(reader, "no commands")
    assert "CONSUMER_GROUP" in spared["advice"]
    assert quiet["topic"] == topic
    assert "INPUT_TOPIC" in quiet["advice"]
    for one in pair:
        one.stop()
    admin.delete_topics([topic])


def test_the_log_tells_the_story_of_a_scenario(system: System) -> None:
    consumer, relay = system.start("consumer"), system.start("relay")
    (scenario,) = system.submit(1)
    system.produce(b'{"scenario_uuid":1}', b"rtsp://user:pw@camera")
    system.check_exactly_once(1)
    ((worker,),) = system.query("SELECT worker_id FROM workers")
    eventually(lambda: len(lines(consumer, "command refused")) == 2)
    eventually(lambda: lines(relay, "order sent"))
    ids = {"worker_id": str(worker), "scenario_uuid": str(scenario)}
    ((accepted,), (sent,)) = lines(consumer, "command accepted"), lines(relay, "order sent")
    assert accepted.items() >= ids.items()
    assert accepted.keys() >= {"partition", "offset"}
    assert sent.items() >= (ids | {"topic": system.settings.output_topic}).items()
    assert {line["error"] for line in lines(consumer, "command refused")} == {
        "scenario_uuid must be a UUID and camera_url a string",
        "the value is not JSON in UTF-8, or is nested too deeply",
    }
    assert not lines(consumer, "no commands")
    for process in (consumer, relay):
        process.stop()
        assert "rtsp" not in process.log.read_text()
