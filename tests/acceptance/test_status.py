"""`orchestrator status`: the screen and its JSON."""

import re
import signal
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from orchestrator.cli import status_screen
from orchestrator.operations.status import lanes
from orchestrator.operations.status.status import read_status
from orchestrator.runtime.database import open_session
from testkit.disagreement import set_marker
from testkit.empty_installation import run_command
from testkit.eventually import eventually
from testkit.system import INHERITED, PARTITIONS, System, deferred_workers, recreate_input

SECRET = "hush-hush"


def told(system: System, *words: str, code: int = 0) -> dict[str, Any]:
    """Return what a command tells a script."""
    ran = run_command(system.environ, *words, "--json")
    assert ran.returncode == code, ran.stderr
    assert SECRET not in ran.stdout + ran.stderr
    fields: dict[str, Any] = msgspec.json.decode(ran.stdout)
    return fields


def said(system: System, *words: str, code: int = 0) -> str:
    """Return the text that a command prints."""
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

    shown = told(system, "status", code=1)
    assert shown["consumers"] == shown["relays"] == 1
    assert {lane["state"] for lane in shown["lanes"]} == {"active"}
    assert all(lane["owner"].startswith("outbox relay") for lane in shown["lanes"])
    batch_numbers = dict(system.query("SELECT lane, batch_number FROM outbox_lane"))
    assert {lane["lane"]: lane["batch_number"] for lane in shown["lanes"]} == batch_numbers
    assert {partition["lag"] for partition in shown["partitions"]} == {0}
    assert sum(partition["position"] for partition in shown["partitions"]) == 51
    assert shown["rates"] == {"accepted": 50 / 60, "deployed": 50 / 60}
    assert datetime.now(UTC) - datetime.fromisoformat(shown["last_accepted"]) < timedelta(minutes=2)
    assert shown["dead_letters"] == 1
    assert not shown["dead_letters_is_upper_bound"]
    assert shown["refusals"] == shown["unknown"] == {}
    (problem,) = shown["problems"]
    assert re.fullmatch(
        r"1 dead letters wait for the operator, the first for [\d.]+ m?s: `orchestrator dlq list`",
        problem,
    )
    assert shown["versions"].keys() >= {"orchestrator", "postgres", "librdkafka"}

    assert run_command(system.environ, "dlq", "discard", "--all", "--yes").returncode == 0
    text = said(system, "status")
    assert text.startswith("ok ")
    assert "1 consumer(s), 1 relay(s)" in text
    assert "PROBLEM" not in text
    assert "NOTE" not in text


def test_an_installation_without_traffic_is_well(system: System) -> None:
    processes = system.start("consumer"), system.start("relay")
    eventually(lambda: all('"ready": true' in one.get("/readyz") for one in processes))
    eventually(lambda: run_command(system.environ, "status").returncode == 0)
    assert told(system, "status")["problems"] == []
    assert "PROBLEM" not in said(system, "status")
    assert run_command(system.environ, "doctor").returncode == 0


def test_status_shows_waiting_rows_and_commands_while_no_process_runs(system: System) -> None:
    system.accept(30)
    system.submit(7)
    shown = told(system, "status", code=1)
    assert {lane["state"] for lane in shown["lanes"]} == {"no_owner"}
    assert sum(lane["pending"] for lane in shown["lanes"]) == 30
    assert 0 < max(lane["oldest_s"] or 0 for lane in shown["lanes"]) < 60
    assert sum(partition["lag"] for partition in shown["partitions"]) == 7
    first, second, *_ = said(system, "status", code=1).splitlines()
    assert re.match(r"PROBLEM  no consumer is connected, the last command was sent .* ago: ", first)
    assert re.match(r"PROBLEM  no relay is connected, the oldest row waits for [\d.]+ m?s: ", second)


def test_status_names_what_it_could_not_count(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown is not none: neither in numbers, nor for a lane of which only a part was counted."""
    system.accept(30)
    monkeypatch.setattr(lanes, "MAX_COUNTED", 2)
    monkeypatch.setattr(status_screen, "MAX_COUNTED", 2)
    with closing(system.connect()) as conn:
        found = read_status(system.settings, conn)
        assert {lane.pending for lane in found.lanes} == {2}
        assert " 2+ " in "\n".join(status_screen.render_status(found))
        slow = "SELECT pg_sleep(60) WHERE %(at_most)s > 0"
        monkeypatch.setattr("outbox.admin.lanes.COUNT_BACKLOG", slow)
    with closing(open_session(system.settings, "test", statement_timeout_s=0.1)) as conn:
        found = read_status(system.settings, conn)
    assert {(lane.pending, lane.oldest_s) for lane in found.lanes} == {(None, None)}
    assert next(status_screen.render_status(found)).startswith("UNKNOWN  waiting rows: ")


def test_status_names_lanes_whose_oldest_row_waits_too_long(system: System) -> None:
    system.accept(30)
    system.query("UPDATE outbox SET created_at = created_at - interval '2 minutes'")
    with system.lane(), closing(system.connect()) as conn:
        found = read_status(system.settings, conn)
    assert [lane.state for lane in found.lanes] == ["behind"] + ["no_owner"] * (len(found.lanes) - 1)
    (problem,) = found._replace(relays=1, consumers=1, members=1, relays_without_kafka=()).problems
    assert re.match(r"orders are late, the oldest of lane 0 for 2\.\d m, 1 for ", problem)


def test_status_shows_deferred_workers_and_why(one_lane: System) -> None:
    assert told(one_lane, "status", code=1)["deferred"] == []
    with deferred_workers(one_lane, 12) as workers:
        (shown,) = told(one_lane, "status", code=1)["deferred"]
        text = said(one_lane, "status", code=1)
        one_lane.query("UPDATE outbox_deferred SET deferred_at = now() - interval '5 min'")
        *_, problem = told(one_lane, "status", code=1)["problems"]
    assert (shown["reason"], shown["rows"]) == ("locked by another session", 12)
    assert set(shown["aggregate_ids"]) < {str(worker) for worker in workers}
    assert "NOTE     deferred workers, 12, the oldest for" in text
    assert re.match("deferred workers, 12, the oldest for 5.. m: locked by another session: ", problem)
    assert f"locked by another session: {shown['aggregate_ids'][0]}, " in text


def test_status_shows_what_postgres_knows_while_kafka_is_away(system: System) -> None:
    system.accept(30)
    system.environ["KAFKA_BOOTSTRAP_SERVERS"] = "127.0.0.1:1"
    shown = told(system, "status", code=3)
    assert sum(lane["pending"] for lane in shown["lanes"]) == 30
    assert shown["partitions"] is shown["dead_letters"] is None
    assert shown["unknown"].keys() == {"brokers"}
    assert "UNKNOWN  brokers" in said(system, "status", code=3)


def test_status_shows_the_rest_while_a_topic_is_missing(system: System) -> None:
    system.environ["DEAD_LETTER_TOPIC"] = "not-made"
    shown = told(system, "status", code=1)
    assert len(shown["partitions"]) == PARTITIONS
    assert shown["unknown"].keys() == {"dead letters"}


def test_status_names_each_refusal_with_its_repair(system: System) -> None:
    relay, consumer = system.start("relay"), system.start("consumer")
    system.submit(20)
    system.check_exactly_once(20)
    relay.stop()
    consumer.stop()
    ((batch_number,),) = system.query("SELECT batch_number FROM outbox_lane WHERE lane = 0")
    set_marker(system, batch_number + 5)
    recreate_input(system)
    refusals = told(system, "status", code=1)["refusals"]
    assert refusals == {
        "lane 0: marker_ahead": "orchestrator repair lane 0",
        "partition 0: topic_recreated": "orchestrator repair partition 0",
        "partition 1: topic_recreated": "orchestrator repair partition 1",
    }
    refused = "PROBLEM  refused: lane 0: marker_ahead: orchestrator repair lane 0"
    assert refused in said(system, "status", code=1)


def test_status_with_watch_repeats_until_it_is_interrupted(system: System) -> None:
    command = [sys.executable, "-m", "orchestrator", "status", "--watch"]
    with subprocess.Popen(
        command, env={**INHERITED, **system.environ}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        looks = 0
        for line in process.stdout:
            looks += " consumer(s), " in line
            if looks == 2:
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
        assert process.wait(60) == 0
    assert looks == 2
