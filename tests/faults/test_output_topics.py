"""Output topics that are missing, or that the relay may not write to: their rows wait, and say so."""

import json
import time
from contextlib import closing
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from outbox import Message, enqueue, transaction
from outbox.message import lane_of
from testkit.empty_installation import run_command
from testkit.eventually import eventually
from testkit.system import LANES, System, have_leaders

HELD_S = 2.0  # so long may a row wait for another one's topic


@pytest.fixture
def system(system: System) -> System:
    """Its relays may send to any topic."""
    system.environ["RELAY_TOPICS"] = "*"
    return system


def key_of(lane: int) -> bytes:
    """Return a key of a lane."""
    return next(key for n in range(1000) if lane_of(key := b"%d" % n, LANES) == lane)


def put(system: System, lane: int, topic: str, value: bytes) -> None:
    """Write a row of a lane."""
    with closing(system.connect()) as conn, transaction(conn):
        enqueue(conn, [Message(topic, key_of(lane), value)], LANES)


def waiting(system: System) -> int:
    """Count the rows in the outbox."""
    ((rows,),) = system.query("SELECT count(*) FROM outbox")
    return int(rows)


def longest_wait(system: System, lanes: tuple[int, ...], seconds: float) -> float:
    """Write a row of each lane now and then; return how long the slowest took until it was gone."""
    longest, left, until = 0.0, waiting(system), time.monotonic() + seconds
    while time.monotonic() < until:
        for lane in lanes:
            put(system, lane, system.settings.output_topic, b"good")
        written = time.monotonic()
        eventually(lambda: waiting(system) <= left, 40)
        longest = max(longest, time.monotonic() - written)
        time.sleep(0.2)
    return longest


def delete(system: System, topic: str) -> None:
    """Delete a topic."""
    admin = AdminClient(dict(system.settings.kafka))
    admin.delete_topics([topic])[topic].result(10)


def create(system: System, topic: str) -> None:
    """Create a topic and wait until it has leaders."""
    admin = AdminClient(dict(system.settings.kafka))
    admin.create_topics([NewTopic(topic, 2, 1)])[topic].result(10)
    eventually(lambda: have_leaders(admin, [topic]))


@pytest.mark.fault(61)
def test_a_missing_topic_holds_up_its_own_rows_alone_and_is_named(system: System) -> None:
    relay, missing = system.start("relay"), f"missing-{uuid4()}"
    eventually(lambda: relay.logged('"lane active"'))
    put(system, 1, system.settings.output_topic, b"before")
    put(system, 1, missing, b"first")
    put(system, 1, system.settings.output_topic, b"behind")
    put(system, 2, missing, b"other lane")
    eventually(lambda: waiting(system) == 2)
    assert longest_wait(system, (0, 1, 2, 3), 6) < HELD_S
    why = f"topic {missing} is missing: create it"
    ready = json.loads(relay.get("/readyz"))
    assert ready["ready"]
    assert ready["notes"]["lanes"] == f"lane 1: waiting: {why}; lane 2: waiting: {why}"
    assert relay.log.read_text().count('"lane waiting"') == 2  # however often it is tried
    assert not relay.logged("lane in doubt")
    rows_wait = f"lanes 1, 2: rows wait: topic {missing} is missing"
    for command in ("status", "doctor"):
        shown = run_command(system.environ, command)
        assert shown.returncode == 1
        assert rows_wait in shown.stdout
    shown = run_command(system.environ, "status", "--json")
    states = [lane["state"] for lane in json.loads(shown.stdout)["lanes"]]
    assert states == ["active", "waiting", "waiting", "active"]
    create(system, missing)
    eventually(lambda: waiting(system) == 0, 15)
    assert sorted(r.value() or b"" for r in system.read(missing)) == [b"first", b"other lane"]
    eventually(lambda: "waiting" not in relay.get("/readyz"))


@pytest.mark.fault(61)
def test_a_topic_that_is_deleted_at_work_holds_up_its_own_rows_alone(system: System) -> None:
    relay, topic = system.start("relay"), f"deleted-{uuid4()}"
    create(system, topic)
    put(system, 1, topic, b"first")
    eventually(lambda: system.read(topic) != [] and waiting(system) == 0, 20)
    delete(system, topic)
    time.sleep(2)  # by then the relay has asked the brokers again
    put(system, 1, topic, b"second")
    assert longest_wait(system, (0, 1, 2, 3), 6) < HELD_S
    assert f"topic {topic} is missing" in relay.get("/readyz")


@pytest.mark.fault(61)
def test_a_relay_that_ends_while_rows_wait_leaves_them_to_the_next_one(system: System) -> None:
    missing = f"missing-{uuid4()}"
    for lane in range(LANES):
        put(system, lane, system.settings.output_topic, b"good")
        put(system, lane, missing, b"late")
    first = system.start("relay")
    eventually(lambda: waiting(system) == LANES)
    eventually(lambda: first.get("/readyz").count(": waiting: ") == LANES)
    second = system.start("relay")
    eventually(lambda: second.get("/readyz").count(": waiting: ") == LANES // 2)
    first.stop()
    second.kill()
    system.start("relay")
    create(system, missing)
    eventually(lambda: waiting(system) == 0, 30)
    assert len(system.read(missing)) == LANES
    assert len(system.read(system.settings.output_topic)) == LANES
