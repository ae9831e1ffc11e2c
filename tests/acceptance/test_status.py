"""`orchestrator status` and `orchestrator explain`: what a person sees at night."""

import re
import signal
import subprocess
import sys
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from tests.bare import run_command
from tests.eventually import eventually
from tests.repairs import set_marker
from tests.system import INHERITED, System, limit_messages, make_input_anew

SECRET = "hush-hush"


def told(system: System, *words: str, code: int = 0) -> dict[str, Any]:
    """Return what a command tells a script."""
    ran = run_command(system.environ, *words, "--json")
    assert ran.returncode == code, ran.stderr
    assert SECRET not in ran.stdout + ran.stderr
    fields: dict[str, Any] = msgspec.json.decode(ran.stdout)
    return fields


def said(system: System, *words: str, code: int = 0) -> str:
    """Return what a command tells a person."""
    ran = run_command(system.environ, *words)
    assert ran.returncode == code, ran.stderr
    assert SECRET not in ran.stdout + ran.stderr
    return ran.stdout


# ---- status -----------------------------------------------------------------------------------------


def test_status_shows_a_system_at_work(system: System) -> None:
    system.start("consumer")
    system.start("relay")
    system.submit(50)
    system.produce(f"no JSON {SECRET}".encode())
    system.check_exactly_once(50)
    eventually(lambda: len(system.read(system.settings.dead_letter_topic)) == 1)

    status = told(system, "status")
    assert status["consumers"] == status["relays"] == 1
    assert {lane["state"] for lane in status["lanes"]} == {"working"}
    assert all(lane["owner"].startswith("outbox lane") for lane in status["lanes"])
    seqs = dict(system.query("SELECT lane, seq FROM outbox_lane"))
    assert {lane["lane"]: lane["seq"] for lane in status["lanes"]} == seqs
    assert {partition["lag"] for partition in status["partitions"]} == {0}
    assert sum(partition["offset"] for partition in status["partitions"]) == 51
    assert status["rates"] == {"accepted": 50 / 60, "deployed": 50 / 60}
    assert status["dead_letters"] == 1
    assert status["refusals"] == {}
    assert status["versions"].keys() >= {"orchestrator", "postgres", "librdkafka"}

    text = said(system, "status")
    assert "1 consumer(s), 1 relay(s)" in text
    assert "REFUSED" not in text
    assert "NOTE" not in text


def test_status_shows_what_waits_while_nothing_runs(system: System) -> None:
    system.accept(30)
    system.submit(7)
    status = told(system, "status")
    assert {lane["state"] for lane in status["lanes"]} == {"no owner"}
    assert sum(lane["pending"] for lane in status["lanes"]) == 30
    assert 0 < max(lane["oldest_s"] or 0 for lane in status["lanes"]) < 60
    assert sum(partition["lag"] for partition in status["partitions"]) == 7
    text = said(system, "status")
    assert "no relay is connected" in text
    assert "no consumer is connected" in text


def test_status_names_what_is_refused_with_its_repair(system: System) -> None:
    relay, consumer = system.start("relay"), system.start("consumer")
    system.submit(20)
    system.check_exactly_once(20)
    relay.stop()
    consumer.stop()
    ((seq,),) = system.query("SELECT seq FROM outbox_lane WHERE lane = 0")
    set_marker(system, seq + 5)
    make_input_anew(system)
    refusals = told(system, "status")["refusals"]
    assert refusals == {
        "lane 0: marker_ahead": "orchestrator repair lane 0",
        "partition 0: topic_recreated": "orchestrator repair partition 0",
        "partition 1: topic_recreated": "orchestrator repair partition 1",
    }
    assert "REFUSED  lane 0: marker_ahead: orchestrator repair lane 0" in said(system, "status")


def test_status_that_is_watched_looks_again_until_it_is_interrupted(system: System) -> None:
    command = [sys.executable, "-m", "orchestrator", "status", "--watch"]
    with subprocess.Popen(
        command, env={**INHERITED, **system.environ}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        looks = 0
        for line in process.stdout:
            looks += line.startswith("processes:")
            if looks == 2:
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
        assert process.wait(10) == 0
    assert looks == 2


# ---- explain ----------------------------------------------------------------------------------------


def test_the_life_of_an_order_is_told_by_either_id(system: System) -> None:
    system.start("consumer")
    system.start("relay")
    scenario = system.submit(30)[17]
    system.submit(30)
    system.check_exactly_once(60)
    ((worker,),) = system.query("SELECT worker_id FROM workers WHERE scenario_uuid = %s", scenario)

    for wanted in (scenario, worker):
        (order,) = told(system, "explain", str(wanted))["orders"]
        assert UUID(order["worker_id"]) == worker
        assert UUID(order["scenario_uuid"]) == scenario
        assert order["status"] == "deployed"
        assert order["waiting"] is None
        check_place(system, order["command"], system.settings.input_topic, scenario)
        check_place(system, order["order"], system.settings.output_topic, scenario)
        assert order["commanded_at"] <= order["created_at"] <= order["updated_at"]

    text = said(system, "explain", str(scenario))
    steps = re.findall(r"(command in|accepted|published to|deployed)", text)
    assert steps == ["command in", "accepted", "published to", "deployed"]


def check_place(system: System, place: dict[str, Any], topic: str, scenario: UUID) -> None:
    """See that the record is where it is said to be."""
    assert place["topic"] == topic
    (record,) = [
        record
        for record in system.read(topic)
        if (record.partition(), record.offset()) == (place["partition"], place["offset"])
    ]
    assert str(scenario).encode() in (record.value() or b"")


def test_an_order_that_waits_says_behind_what(one_lane: System) -> None:
    first, *_, last = one_lane.accept(5)
    (order,) = told(one_lane, "explain", str(last))["orders"]
    assert order["waiting"]["table"] == "outbox"
    assert order["waiting"]["ahead"] == 4
    assert order["order"] is None
    assert "behind 4 rows" in said(one_lane, "explain", str(last))
    one_lane.start("relay", crash_at="relay.published:2").wait_killed()  # in Kafka, not settled
    (order,) = told(one_lane, "explain", str(first))["orders"]
    assert order["waiting"]["in_hand"] == 1
    assert order["order"]["topic"] == one_lane.settings.output_topic


def test_an_order_that_kafka_refused_says_so(one_lane: System) -> None:
    limit_messages(one_lane, 100)
    one_lane.start("relay")
    (worker,) = one_lane.accept(1)
    eventually(lambda: one_lane.query("SELECT count(*) FROM outbox_parked") == [(1,)], 20)
    assert "PARKED (lane 0" in said(one_lane, "explain", str(worker))


def test_a_lost_order_is_called_missing(system: System) -> None:
    (worker,) = system.accept(1)
    system.query("DELETE FROM outbox")
    assert "MISSING: neither outbox row nor record" in said(system, "explain", str(worker))


def test_what_never_became_a_worker_is_found_among_the_dead_letters_or_in_the_input(
    system: System,
) -> None:
    scenario, unread = uuid4(), uuid4()
    consumer = system.start("consumer")
    system.start("relay")
    system.produce(
        msgspec.json.encode({"scenario_uuid": str(scenario), "camera_url": f"gopher://u:{SECRET}@h/1"})
    )
    eventually(lambda: len(system.read(system.settings.dead_letter_topic)) == 1, 20)
    (letter,) = told(system, "explain", str(scenario))["dead_letters"]
    assert letter["reason"] == "url_scheme"
    assert letter["origin"].startswith(f"{system.settings.input_topic}:")
    assert "orchestrator dlq show" in said(system, "explain", str(scenario))

    consumer.stop()
    system.submit(3, unread)
    found = told(system, "explain", str(unread))
    assert len(found["not_yet_consumed"]) == 3
    assert "not consumed yet" in said(system, "explain", str(unread))


@pytest.mark.parametrize("form", ["--json", None])
def test_an_id_that_nobody_knows_is_told_as_such(system: System, form: str | None) -> None:
    stranger = str(uuid4())
    if form:
        assert told(system, "explain", stranger, code=1)["known"] is False
    else:
        assert f"nothing is known of {stranger}" in said(system, "explain", stranger, code=1)
