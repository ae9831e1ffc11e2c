"""`orchestrator explain`: the life of an order, and of a command that never became one."""

import re
import time
from contextlib import closing
from io import StringIO
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from confluent_kafka import Producer

from orchestrator.cli.explain import render_explanation
from orchestrator.operations.explain import search, worker_records
from orchestrator.operations.explain.explanation import Explanation, explain
from outbox.outbox_rows import park
from testkit.eventually import eventually
from testkit.system import System, deferred_workers, delete_before, limit_messages, recreate_input, take
from tests.acceptance.test_status import SECRET, said, told


def explained(
    system: System, wanted: UUID, progress: StringIO | None = None
) -> tuple[Explanation, str]:
    """Return what is known of an id, and what is shown of it."""
    with closing(system.connect()) as conn:
        found = explain(system.settings, conn, wanted, progress)
    text = "\n".join(render_explanation(found))
    assert SECRET not in text
    return found, text


def command(scenario: UUID | str, url: str = f"rtsp://u:{SECRET}@camera/1") -> bytes:
    """Return a command as the API may write it."""
    return msgspec.json.encode({"scenario_uuid": str(scenario), "camera_url": url})


def invalid_command(scenario: UUID | str) -> bytes:
    """Return a command that becomes a dead letter."""
    return command(scenario, f"gopher://u:{SECRET}@camera/1")


def send(system: System, topic: str, *values: bytes, **record: Any) -> None:
    """Write records to any topic, each after the one before."""
    producer = Producer({**system.settings.kafka})
    for value in values:
        producer.produce(topic, value, **record)
    assert producer.flush(20) == 0


def consume(system: System, records: int) -> None:
    """Take so many records into Postgres."""
    with system.consumer() as session:
        take(session, records)


def publish(one_lane: System) -> None:
    """Send and acknowledge what is in the outbox."""
    with one_lane.lane() as owned:
        owned.recover()
        owned.drain()


# ---- orders -----------------------------------------------------------------------------------------


def test_the_history_of_an_order_is_found_by_either_id(system: System) -> None:
    system.start("consumer")
    system.start("relay")
    scenario = system.submit(30)[17]
    system.submit(30)
    system.check_exactly_once(60)
    ((worker,),) = system.query("SELECT worker_id FROM workers WHERE scenario_uuid = %s", scenario)

    for wanted in (scenario, worker):
        (order,) = told(system, "explain", str(wanted))["workers"]
        assert UUID(order["worker_id"]) == worker
        assert UUID(order["scenario_uuid"]) == scenario
        assert order["status"] == "deployed"
        assert order["row"] is None
        assert order["duplicates"] == []
        check_place(system, order["command"], system.settings.input_topic, scenario)
        check_place(system, order["order"], system.settings.output_topic, scenario)
        assert order["command_time"] <= order["created_at"] <= order["updated_at"]

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
    (order,) = told(one_lane, "explain", str(last))["workers"]
    assert order["row"]["table"] == "outbox"
    assert order["row"]["rows_ahead"] == 4
    assert order["order"] is None
    assert "behind 4 rows of its lane; see `orchestrator status`" in explained(one_lane, last)[1]
    assert "next in its lane; see `orchestrator status`" in explained(one_lane, first)[1]

    one_lane.start("relay", crash_at="relay.begun").wait_killed()  # in flight, not in Kafka
    assert "in batch 1, which is not in the topic yet; see" in explained(one_lane, first)[1]
    one_lane.start("relay", crash_at="relay.published").wait_killed()  # in Kafka, not acknowledged
    (order,) = told(one_lane, "explain", str(first))["workers"]
    assert order["row"]["batch_number"] == 2  # what is sent again has a number of its own
    assert order["order"]["topic"] == one_lane.settings.output_topic
    text = explained(one_lane, first)[1]
    assert "published to" in text
    assert "not acknowledged yet: batch 2; see `orchestrator status`" in text
    assert "  pending" not in text


def test_an_order_that_kafka_rejected_is_explained(one_lane: System) -> None:
    limit_messages(one_lane, 100)
    one_lane.start("relay")
    (worker,) = one_lane.accept(1)
    eventually(lambda: one_lane.query("SELECT count(*) FROM outbox_parked") == [(1,)])
    assert "PARKED (lane 0" in said(one_lane, "explain", str(worker))


def test_a_deferred_worker_is_explained(one_lane: System) -> None:
    with deferred_workers(one_lane, 1) as (worker,):
        text = said(one_lane, "explain", str(worker))
    assert "published to" in text
    assert "pending, DEFERRED: locked by another session; a relay sets it to deployed later" in text


def test_an_order_that_is_nowhere_is_called_missing(system: System) -> None:
    pending, deployed = system.accept(2)
    theirs = uuid4()
    system.query(
        "INSERT INTO workers (worker_id, scenario_uuid, camera_url) VALUES (%s, %s, 'rtsp://x')",
        theirs,
        uuid4(),
    )
    system.query("DELETE FROM outbox")
    system.query("UPDATE workers SET status = 'deployed' WHERE worker_id = %s", deployed)
    system.query("UPDATE workers SET created_at = NULL, updated_at = NULL")  # an adopted table may
    assert "MISSING: neither outbox row nor record" in said(system, "explain", str(pending))
    text = explained(system, deployed)[1]
    assert (
        "no record in the topic: deleted by retention, or never published; `orchestrator audit`" in text
    )
    text = explained(system, theirs)[1]
    assert "not made by us: its id is of no command" in text
    assert "no order, and none is expected" in text
    assert "MISSING" not in text


def test_a_second_record_is_shown_and_the_line_of_progress_is_left(one_lane: System) -> None:
    (worker,) = one_lane.accept(1)
    publish(one_lane)
    topic = one_lane.settings.output_topic
    (record,) = one_lane.read(topic)
    send(one_lane, topic, record.value() or b"", partition=record.partition())

    terminal = Terminal()
    found, text = explained(one_lane, worker, terminal)
    assert "PUBLISHED TWICE" in text
    (history,) = found.workers
    (again,) = history.duplicates
    assert history.order
    assert history.order.offset == record.offset()
    assert again.offset > history.order.offset
    assert f"{topic}, partition {again.partition}, offset {again.offset}" in text
    assert terminal.getvalue().endswith("\n")


class Terminal(StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        """Say that it is one."""
        return True


def test_of_many_workers_the_latest_are_shown_with_a_note_of_more(one_lane: System) -> None:
    scenario = uuid4()
    workers = one_lane.accept(11, scenario)
    found, text = explained(one_lane, scenario)
    assert [history.worker.worker_id for history in found.workers] == workers[1:]
    assert "earlier workers are left out: these are the latest 10" in text
    one_lane.query("DELETE FROM workers WHERE worker_id = %s", workers[0])
    assert "left out" not in explained(one_lane, scenario)[1]


def test_a_command_that_was_not_found_is_gone_only_if_all_places_were_tried(
    one_lane: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_an_hour = int(time.time() + 3600) * 1000
    topic, scenario = one_lane.settings.input_topic, uuid4()
    send(one_lane, topic, command(uuid4()), partition=0, timestamp=in_an_hour)  # the log's times jump
    send(one_lane, topic, *(command(uuid4()) for _ in range(5)), command(scenario), partition=0)
    consume(one_lane, 7)

    (history,) = explained(one_lane, scenario)[0].workers
    assert history.command
    assert history.command[:3] == (topic, 0, 6)
    monkeypatch.setattr(worker_records, "MAX_TRIED_OFFSETS", 4)
    found, text = explained(one_lane, scenario)
    assert "in no partition any more" not in text
    assert "3 later ones were not" in text
    assert found.workers[0].unsearched_offsets == 3

    delete_before(one_lane, topic, 0, 7)
    found, text = explained(one_lane, scenario)
    assert f"command in {topic}, partition 0, offset 6, deleted since by retention" in text
    assert found.workers[0].unsearched_offsets == 0
    recreate_input(one_lane)
    assert "in no partition any more, or its topic was recreated" in explained(one_lane, scenario)[1]


# ---- what never became an order ---------------------------------------------------------------------


def test_an_invalid_command_is_shown_beside_an_earlier_worker(one_lane: System) -> None:
    scenario = uuid4()
    one_lane.produce(command(scenario))
    consume(one_lane, 1)
    one_lane.produce(invalid_command(scenario))
    consume(one_lane, 1)
    publish(one_lane)
    one_lane.produce(command(scenario), command(scenario))

    fields = told(one_lane, "explain", str(scenario))
    (order,), (letter,) = fields["workers"], fields["dead_letters"]
    assert order["status"] == "deployed"
    assert letter["reason"] == "url_scheme"
    assert letter["origin"].startswith(f"{one_lane.settings.input_topic}:")
    assert len(fields["not_yet_consumed"]) == 2
    assert fields["complete"] is True
    text = explained(one_lane, scenario)[1]
    assert f"dead letter {letter['partition']}:{letter['offset']}" in text
    assert "orchestrator dlq show" in text
    assert "not consumed yet" in text
    assert "deployed" in text

    found = explained(one_lane, UUID(order["worker_id"]))[0]  # a worker's id is of one command alone
    assert not found.letters
    assert not found.unread
    one_lane.query("UPDATE consumed_offsets SET next_offset = 0")  # as it was just before
    assert order["command"]["offset"] not in {
        place.offset
        for place in explained(one_lane, scenario)[0].unread
        if place.partition == order["command"]["partition"]
    }


def test_a_dead_letter_that_is_not_published_is_not_passed_over(one_lane: System) -> None:
    scenario = uuid4()
    one_lane.produce(invalid_command(scenario))
    consume(one_lane, 1)
    found, text = explained(one_lane, scenario)
    assert "is unknown" not in text
    assert "1 dead letters are not published yet" in text
    assert found.unpublished == 1
    assert not found.known  # the operator may not read the content of outbox rows

    ((lane, row_id),) = one_lane.query("SELECT lane, id FROM outbox")
    with closing(one_lane.connect()) as conn:
        park(conn, lane, row_id, "MSG_SIZE_TOO_LARGE")
    found, text = explained(one_lane, scenario)
    assert found.known
    assert f"orchestrator parked show {lane}:{row_id}" in text
    assert "is unknown" in explained(one_lane, uuid4())[1]


def test_a_lag_too_long_to_be_searched_is_reported(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, scenario = system.settings.input_topic, uuid4()
    send(system, topic, *(command(uuid4()) for _ in range(10)), partition=0)
    send(system, topic, command(scenario), partition=1)
    monkeypatch.setattr(search, "MAX_SEARCHED", 4)
    found, text = explained(system, uuid4())
    assert "is unknown" not in text
    assert "up to 8 unconsumed commands were not searched" in text
    assert found.unsearched == 8
    (place,) = explained(system, scenario)[0].unread  # no partition takes the place of another
    assert place[:3] == (topic, 1, 0)


def test_records_of_a_recreated_input_topic_are_not_consumed(system: System) -> None:
    system.submit(20)
    consume(system, 20)
    recreate_input(system)
    scenario = uuid4()
    system.submit(2, scenario)
    found, text = explained(system, scenario)
    assert len(found.unread) == 2
    assert "not consumed yet" in text


def test_an_id_is_found_in_each_form_that_a_command_may_have(system: System) -> None:
    scenario = uuid4()
    forms = (str(scenario), scenario.hex, str(scenario).upper(), scenario.hex.upper())
    topic = system.settings.input_topic
    send(system, topic, *map(command, forms), partition=0)
    consume(system, 4)
    assert system.query("SELECT DISTINCT scenario_uuid FROM workers") == [(scenario,)]  # all are valid
    send(system, topic, *map(command, forms), b"{}", partition=0)
    for form in forms:
        send(system, topic, b"{}", partition=0, key=form.encode())
    unread = [place.offset for place in explained(system, scenario)[0].unread]
    assert unread == [4, 5, 6, 7, 9, 10, 11, 12]
    ((row_id,),) = system.query(
        "INSERT INTO outbox_parked (lane, id, topic, value, created_at, reason)"
        " OVERRIDING SYSTEM VALUE VALUES (0, 1, 'dlq', %s, now(), 'too large') RETURNING id",
        forms[-1].encode() + b"\xff\x00\\",
    )
    assert [row.id for row in explained(system, scenario)[0].parked] == [row_id]


def test_of_many_dead_letters_the_latest_of_all_partitions_are_shown(system: System) -> None:
    scenario, topic = uuid4(), system.settings.dead_letter_topic
    now_ms = int(time.time() * 1000)
    for number in range(12):  # partition 1 has the older half, and is perhaps read last
        at = now_ms + number
        send(system, topic, invalid_command(scenario), partition=int(number < 6), timestamp=at)
    found, text = explained(system, scenario)
    times = [letter.at.timestamp() * 1000 for letter in found.letters]
    assert times == pytest.approx([now_ms + number for number in range(2, 12)], abs=0.5)
    assert "2 earlier dead letters are left out" in text


@pytest.mark.parametrize("form", ["--json", None])
def test_an_unknown_id_is_reported_as_unknown(system: System, form: str | None) -> None:
    stranger = str(uuid4())
    if form:
        assert told(system, "explain", stranger, code=1)["known"] is False
    else:
        assert f"{stranger} is unknown" in said(system, "explain", stranger, code=1)
