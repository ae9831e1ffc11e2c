"""`discard --purge`: what was discarded is deleted; what waits, or a relay may search, is not."""

import time
from typing import NamedTuple

import msgspec
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from orchestrator.kafka.topics import read_log_start_offsets
from testkit.empty_installation import run_in_process
from testkit.system import System

SECRET = b"rtsp://admin:hush-hush@camera/1"
HOUR_MS = 3_600_000
OTHER_INPUT = {
    "kafka_dlt-original-topic": b"another",
    "kafka_dlt-original-consumer-group": b"another",
    "kafka_dlt-original-partition": (0).to_bytes(4, "big"),
    "kafka_dlt-original-offset": (0).to_bytes(8, "big"),
    "kafka_dlt-original-timestamp": (0).to_bytes(8, "big"),
}


class Ran(NamedTuple):
    code: int
    said: str


def run(system: System, *words: str) -> Ran:
    ran = run_in_process(system.environ, *words)
    assert "Traceback" not in ran.stderr
    return Ran(ran.returncode, ran.stdout + ran.stderr)


def letters(system: System, *ages_ms: int, headers: dict[str, bytes] | None = None) -> None:
    """Write dead letters of such an age to partition 0."""
    producer = Producer(dict(system.settings.kafka))
    for age_ms in ages_ms:
        producer.produce(
            system.settings.dead_letter_topic,
            SECRET,
            partition=0,
            timestamp=int(time.time() * 1000) - age_ms,
            headers=dict(headers or {}),
        )
    assert producer.flush(20) == 0


def log_start(system: System) -> int:
    admin = AdminClient(dict(system.settings.kafka))
    return read_log_start_offsets(admin, system.settings.dead_letter_topic, [0])[0]


def values_left(system: System) -> list[bytes | None]:
    return [record.value() for record in system.read(system.settings.dead_letter_topic)]


def test_handled_dead_letters_are_deleted_up_to_the_first_that_waits(system: System) -> None:
    letters(system, *[HOUR_MS] * 5)
    ran = run(system, "dlq", "discard", "0:0", "0:1", "0:3", "--purge", "--dry-run")
    assert "purge what is handled, up to the first that waits" in ran.said
    assert log_start(system) == 0
    ran = run(system, "dlq", "discard", "0:0", "0:1", "0:3", "--purge", "--yes")
    assert ran.code == 0, ran.said
    assert "2 dead letters that were handled are deleted" in ran.said
    assert "1 stay until retention deletes them" in ran.said
    assert log_start(system) == 2
    assert values_left(system) == [SECRET] * 3
    ran = run(system, "dlq", "discard", "0:2", "--purge", "--yes")
    assert "2 dead letters that were handled are deleted" in ran.said
    assert log_start(system) == 4
    assert run(system, "dlq", "discard", "--all", "--yes").code == 0
    ran = run(system, "dlq", "discard", "--all", "--purge", "--yes")  # what was discarded before
    assert "1 dead letters that were handled are deleted" in ran.said
    assert values_left(system) == []


@pytest.mark.parametrize(("age_ms", "headers", "left"), [(HOUR_MS, OTHER_INPUT, 1), (0, {}, 2)])
def test_dead_letters_of_another_input_and_young_ones_stay(
    system: System, age_ms: int, headers: dict[str, bytes], left: int
) -> None:
    letters(system, HOUR_MS)
    letters(system, age_ms, headers=headers)
    letters(system, HOUR_MS)
    ran = run(system, "dlq", "discard", "--all", "--purge", "--yes")
    assert "1 dead letters that were handled are deleted" in ran.said
    assert f"{left} stay" in ran.said
    assert log_start(system) == 1


def test_what_a_relay_may_search_stays(system: System) -> None:
    letters(system, *[HOUR_MS] * 4)
    start = msgspec.json.encode({system.settings.dead_letter_topic: [None, [3]]}).decode()
    system.query("UPDATE outbox_lane SET search_start = %s WHERE lane = 1", start)
    assert run(system, "dlq", "discard", "--all", "--purge", "--yes").code == 0
    assert log_start(system) == 3


@pytest.mark.parametrize("before", [False, True])
def test_discarded_parked_rows_lose_their_content_and_stay_as_a_trace(
    system: System, before: bool
) -> None:
    system.query(
        "INSERT INTO outbox_parked (lane, id, topic, key, value, headers, created_at, reason)"
        " SELECT 0, id, 'to_deploy', 'key', %s, '[[\"a\", \"YQ==\"]]', now(), 'too large'"
        "   FROM generate_series(1, 3) AS id",
        SECRET,
    )
    if before:
        assert run(system, "parked", "discard", "0:1", "0:2", "--yes").code == 0
    ran = run(system, "parked", "discard", "0:1", "0:2", "--purge", "--yes")
    assert ran.code == 0, ran.said
    assert "the content of 2 parked rows is deleted" in ran.said
    rows = system.query("SELECT id, key, value, headers, reason FROM outbox_parked ORDER BY id")
    assert rows[:2] == [(number, None, None, None, "too large") for number in (1, 2)]
    assert rows[2][2] == SECRET
    assert "0:1" in run(system, "parked", "list", "--handled").said
    ((command, counts),) = system.query("SELECT command, counts FROM repairs ORDER BY id DESC LIMIT 1")
    assert command.endswith("--purge")
    assert counts == {"parked_rows": 0 if before else 2, "purged": 2}
