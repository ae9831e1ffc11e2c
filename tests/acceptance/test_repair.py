"""`orchestrator repair`: what was refused continues; nothing is published twice, nothing is dropped.

The real processes run before, during and after.
"""

import os
import pty
import subprocess
import sys
from contextlib import closing
from functools import partial
from uuid import uuid4

import msgspec
import pytest
from confluent_kafka import Producer

from orchestrator.contract.messages import DeployOrder, encode_order
from outbox import InDoubt, Message, enqueue, transaction
from outbox.markers import Marker
from testkit.disagreement import (
    SECRET,
    back_up,
    forget_markers,
    is_refused,
    logged_repairs,
    repair,
    restore,
    set_marker,
)
from testkit.empty_installation import run_command, run_in_process
from testkit.eventually import eventually
from testkit.system import INHERITED, LANES, Running, System, delete_before

KEY = b"one partition"
RECHECKED_S = 45  # a paused partition, a lane that backs off, a dead consumer's session


def command() -> bytes:
    return msgspec.json.encode({"scenario_uuid": str(uuid4()), "camera_url": f"rtsp://{SECRET}c/1"})


def wait_refused(relay: Running, reason: str, lane: int = 0) -> None:
    eventually(partial(is_refused, relay, lane, reason))


def states(system: System) -> tuple[object, ...]:
    """Return all that a repair may change."""
    return (
        system.query("SELECT lane, batch_number, inflight FROM outbox_lane ORDER BY lane"),
        system.query("SELECT id FROM outbox ORDER BY id"),
        system.query("SELECT * FROM consumed_offsets ORDER BY partition"),
        system.statuses(),
        logged_repairs(system),
    )


def dead_letters(system: System) -> list[bytes | None]:
    return [record.value() for record in system.read(system.settings.dead_letter_topic)]


def publish_one_batch_and_die(one_lane: System, published: int, waiting: int) -> None:
    """Leave a batch that is in Kafka and not acknowledged, and rows after it."""
    one_lane.accept(published)
    one_lane.start("relay", crash_at="relay.published:2").wait_killed()
    one_lane.accept(waiting)


# ---- lanes ----------------------------------------------------------------------------------------


@pytest.mark.fault(10)
def test_after_a_restore_nothing_is_published_twice_and_nothing_is_missing(system: System) -> None:
    """marker_ahead: Postgres was restored; the consumer reads commands that are published already."""
    consumer, relay = system.start("consumer"), system.start("relay")
    system.submit(40)
    system.check_exactly_once(40)
    consumer.stop()
    relay.stop()
    back_up(system)
    consumer, relay = system.start("consumer"), system.start("relay")
    system.submit(60)
    letters = [b"no command %d" % number for number in range(20)]
    for letter in letters:
        system.produce(letter, key=letter)
    system.check_exactly_once(100)
    eventually(lambda: len(dead_letters(system)) == 20)

    restore(system)
    for lane in range(LANES):
        wait_refused(relay, "marker_ahead", lane)
    eventually(lambda: system.statuses() == {"deployed": 40, "pending": 60}, RECHECKED_S)
    system.submit(10)  # not sent yet: these must go out
    eventually(lambda: system.statuses()["pending"] == 70)
    assert relay.logged('"repair": "orchestrator repair lane 2"')

    code, said = repair(system, "lane", "all", "--yes")
    assert code == 0, said
    assert "rows are in their topic already" in said
    system.check_exactly_once(110)
    assert sorted(dead_letters(system), key=str) == sorted(letters)
    system.submit(20)
    system.check_exactly_once(130)
    done = logged_repairs(system)
    assert [row[:3] for row in done] == [
        ("repair lane all", f"lane {lane}", "marker_ahead") for lane in range(LANES)
    ]
    assert sum(row[3]["published"] for row in done) == 80
    assert sum(row[3]["not_published"] for row in done) == 10
    consumer.stop()
    relay.stop()


@pytest.mark.fault(10)
@pytest.mark.slow
def test_a_repair_waits_until_the_consumer_has_caught_up(system: System) -> None:
    consumer, relay = system.start("consumer"), system.start("relay")
    system.submit(10)
    system.check_exactly_once(10)
    consumer.stop()
    relay.stop()
    back_up(system)
    consumer, relay = system.start("consumer"), system.start("relay")
    system.submit(60)
    system.check_exactly_once(70)
    consumer.stop()
    restore(system)
    for lane in range(LANES):
        wait_refused(relay, "marker_ahead", lane)

    before = states(system)
    code, said = repair(system, "lane", "all", "--yes")
    assert (code, "wait: up to 60 records" in said) == (1, True), said
    assert states(system) == before
    consumer = system.start("consumer")
    eventually(lambda: system.statuses() == {"deployed": 10, "pending": 60}, RECHECKED_S)
    assert repair(system, "lane", "all", "--yes")[0] == 0
    system.check_exactly_once(70)
    consumer.stop()
    relay.stop()


@pytest.mark.fault(28)
@pytest.mark.parametrize(
    ("reason", "marker"), [("marker_missing", None), ("marker_behind", 3), ("marker_ahead", 99)]
)
def test_rows_in_flight_are_published_once_whatever_the_marker(
    one_lane: System, reason: str, marker: int | None
) -> None:
    publish_one_batch_and_die(one_lane, 7, 5)
    if marker is None:
        forget_markers(one_lane)
    else:
        one_lane.query("UPDATE outbox_lane SET batch_number = 20")
        set_marker(one_lane, marker)
    relay = one_lane.start("relay")
    wait_refused(relay, reason)
    code, said = repair(one_lane, "lane", "0", "--yes")
    assert code == 0, said
    assert "7 rows are in their topic already, 5 will be published" in said
    one_lane.check_exactly_once(12)
    one_lane.accept(3)
    one_lane.check_exactly_once(15)
    ((words, target, why, counts),) = logged_repairs(one_lane)
    assert (words, target, why) == ("repair lane 0", "lane 0", reason)
    assert (counts["published"], counts["not_published"]) == (7, 5)
    relay.stop()


def test_a_worker_that_is_running_stays_running(one_lane: System) -> None:
    publish_one_batch_and_die(one_lane, 3, 0)
    forget_markers(one_lane)
    one_lane.query("UPDATE workers SET status = 'running' WHERE id = 1")
    assert repair(one_lane, "lane", "0", "--yes")[0] == 0
    assert one_lane.statuses() == {"running": 1, "deployed": 2}


def test_a_dead_letter_is_matched_by_the_record_that_it_was(one_lane: System) -> None:
    consumer = one_lane.start("consumer")
    one_lane.produce(b"first", b"second", key=KEY)
    eventually(lambda: one_lane.query("SELECT count(*) FROM outbox") == [(2,)])
    one_lane.start("relay", crash_at="relay.published:2").wait_killed()
    first = one_lane.read(one_lane.settings.dead_letter_topic)[0]
    # The same bytes, and a dead letter that comes in again: both are records of their own.
    one_lane.produce(b"first", key=KEY)
    one_lane.produce(first.value(), key=KEY, headers=first.headers())
    eventually(lambda: one_lane.query("SELECT count(*) FROM outbox") == [(4,)])
    forget_markers(one_lane)
    relay = one_lane.start("relay")
    wait_refused(relay, "marker_missing")
    code, said = repair(one_lane, "lane", "0", "--yes")
    assert (code, "2 rows are in their topic already, 2 will be published" in said) == (0, True), said
    eventually(lambda: dead_letters(one_lane) == [b"first", b"second", b"first", b"first"])
    consumer.stop()
    relay.stop()


def test_a_retried_command_is_matched_by_the_dead_letter_that_it_was(one_lane: System) -> None:
    """Published after `dlq retry` and not acknowledged when the marker is lost."""
    consumer, relay = one_lane.start("consumer"), one_lane.start("relay")
    one_lane.produce(b"first", b"second", key=KEY)
    eventually(lambda: dead_letters(one_lane) == [b"first", b"second"])
    relay.stop()
    assert run_command(one_lane.environ, "dlq", "retry", "--all", "--yes").returncode == 0
    one_lane.start("relay", crash_at="relay.published").wait_killed()
    eventually(lambda: one_lane.query("SELECT count(*) FROM outbox") == [(4,)])  # dead letters again
    forget_markers(one_lane)
    relay = one_lane.start("relay")
    wait_refused(relay, "marker_missing")
    code, said = repair(one_lane, "lane", "0", "--yes")
    assert (code, "2 rows are in their topic already, 2 will be published" in said) == (0, True), said
    eventually(lambda: dead_letters(one_lane) == [b"first", b"second"] * 2)
    commands = [record.value() for record in one_lane.read(one_lane.settings.input_topic)]
    assert commands == [b"first", b"second"] * 2
    consumer.stop()
    relay.stop()


@pytest.mark.parametrize("begun", [True, False], ids=["its records are in the log", "nothing is"])
def test_no_older_producer_can_commit_once_the_topics_are_read(one_lane: System, begun: bool) -> None:
    one_lane.accept(4)
    with one_lane.lane(owner=False) as older:
        older.recover()
        rows = older.claim()
        if begun:
            older.publisher.producer.begin_transaction()
            older.publisher.send_records(rows, {})
        one_lane.query("UPDATE outbox_lane SET batch_number = 9, marker_token = gen_random_uuid()")
        code, said = repair(one_lane, "lane", "0", "--yes")
        assert (code, "0 rows are in their topic already, 4 will be published" in said) == (0, True), (
            said
        )
        publisher = older.publisher
        commit = publisher.commit if begun else partial(publisher.publish, {0: Marker(10, uuid4())}, ())
        with pytest.raises(InDoubt):
            commit()
    relay = one_lane.start("relay")
    one_lane.check_exactly_once(4)
    relay.stop()


def test_active_lanes_are_not_repaired_under_load(system: System) -> None:
    consumer, relay = system.start("consumer"), system.start("relay", BATCH_SIZE="10")
    for _ in range(3):
        system.submit(1000)
        code, said = repair(system, "lane", "all", "--yes")
        assert (code, said.count("needs no repair")) == (0, LANES), said
    system.check_exactly_once(3000)
    assert relay.log.read_text().count('"lane recovered"') == LANES  # as each began
    assert logged_repairs(system) == []
    consumer.stop()
    relay.stop()


def test_one_lane_is_repaired_and_the_others_stay_refused(system: System) -> None:
    system.query("UPDATE outbox_lane SET batch_number = 5")
    relay = system.start("relay")
    wait_refused(relay, "marker_missing", 3)
    assert repair(system, "lane", "1", "--yes")[0] == 0
    eventually(lambda: "lane 1:" not in relay.get("/readyz"))
    assert is_refused(relay, 3, "marker_missing")
    batch_numbers = system.query("SELECT batch_number FROM outbox_lane ORDER BY lane")
    assert batch_numbers == [(5,), (0,), (5,), (5,)]
    relay.stop()


def test_foreign_rows_are_named_and_nothing_is_changed(one_lane: System) -> None:
    one_lane.accept(1)
    with closing(one_lane.connect()) as conn, transaction(conn):
        enqueue(conn, [Message("bills", b"k", SECRET.encode())], 1)
    one_lane.query("UPDATE outbox_lane SET batch_number = 5")
    before = states(one_lane)
    code, said = repair(one_lane, "lane", "all", "--yes")
    assert (code, "lane 0: 1 for topic bills" in said) == (1, True), said
    assert states(one_lane) == before


def test_a_row_for_the_dead_letter_topic_without_its_headers_is_named(one_lane: System) -> None:
    with closing(one_lane.connect()) as conn, transaction(conn):
        enqueue(conn, [Message(one_lane.settings.dead_letter_topic, b"k", SECRET.encode())], 1)
    one_lane.query("UPDATE outbox_lane SET batch_number = 5")
    before = states(one_lane)
    code, said = repair(one_lane, "lane", "0", "--yes")
    assert (code, "do not say what they were" in said) == (1, True), said
    assert states(one_lane) == before


@pytest.mark.parametrize(("answer", "sent"), [("publish", 4), ("skip", 0)])
def test_rows_older_than_the_topics_records_are_left_to_the_operator(
    one_lane: System, answer: str, sent: int
) -> None:
    one_lane.accept(4)
    one_lane.query("UPDATE outbox SET created_at = created_at - interval '8d'")
    stranger = encode_order(DeployOrder(uuid4(), uuid4(), "rtsp://x"))
    producer = Producer(dict(one_lane.settings.kafka))
    for _ in range(2):
        producer.produce(one_lane.settings.output_topic, stranger, partition=0)
    producer.flush(10)
    delete_before(one_lane, one_lane.settings.output_topic, 0, 1)
    one_lane.query("UPDATE outbox_lane SET batch_number = 5")
    relay = one_lane.start("relay")
    wait_refused(relay, "marker_missing")
    code, said = repair(one_lane, "lane", "0", "--yes")
    assert (code, "lane 0: 4" in said, "--unknown-rows" in said) == (1, True, True), said
    assert logged_repairs(one_lane) == []
    wait_refused(relay, "marker_missing")
    assert repair(one_lane, "lane", "0", "--yes", "--unknown-rows", answer)[0] == 0
    eventually(lambda: one_lane.statuses() == {"deployed": 4})
    assert len(one_lane.orders()) == 1 + sent
    assert logged_repairs(one_lane)[0][0] == f"repair lane 0 --unknown-rows {answer}"
    relay.stop()


@pytest.mark.parametrize(
    ("crash_at", "answer", "orders"),
    [("relay.published:2", "skip", 39), ("relay.produced:2", "publish", 40)],
)
def test_a_lane_whose_log_cannot_tell_what_became_of_it_is_named_and_repaired(
    one_lane: System, crash_at: str, answer: str, orders: int
) -> None:
    """log_unusable: records of a batch in doubt were deleted before its next owner looked for them."""
    topic = one_lane.settings.output_topic
    one_lane.accept(40)  # of many scenarios: some in each partition
    one_lane.start("relay", crash_at=crash_at).wait_killed()
    delete_before(one_lane, topic, 0, 1)
    relay = one_lane.start("relay")
    wait_refused(relay, "log_unusable")
    why = f"{topic}[0] begins at offset 1, the batch could be from offset 0"
    assert relay.logged(why)
    metrics = relay.get("/metrics")
    assert "outbox_lanes_refused 1.0" in metrics
    assert 'outbox_recoveries_total{outcome="log_unusable"}' in metrics
    status = run_in_process(one_lane.environ, "status")
    assert "PROBLEM  refused: lane 0: log_unusable: orchestrator repair lane 0" in status.stdout, (
        status.stdout
    )
    doctor = run_in_process(one_lane.environ, "doctor")
    assert doctor.returncode == 1
    assert f"lane 0: log_unusable: what became of batch 1 cannot be found out: {why}" in doctor.stdout

    code, said = repair(one_lane, "lane", "0", "--yes")
    assert (code, "--unknown-rows" in said) == (1, True), said
    wait_refused(relay, "log_unusable")
    code, said = repair(one_lane, "lane", "0", "--yes", "--unknown-rows", answer)
    assert code == 0, said
    eventually(lambda: one_lane.statuses() == {"deployed": 40}, RECHECKED_S)
    assert len(one_lane.orders()) == orders  # one was deleted that readers had seen; or none was there
    assert logged_repairs(one_lane)[0][2] == "log_unusable"
    assert one_lane.query("SELECT log_refusal FROM outbox_lane") == [(None,)]
    relay.stop()


# ---- partitions -----------------------------------------------------------------------------------


def test_a_partition_that_is_not_refused_is_moved_only_with_from(system: System) -> None:
    consumer, relay = system.start("consumer"), system.start("relay")
    system.produce(*[command() for _ in range(4)], partition=0)
    system.check_exactly_once(4)
    assert repair(system, "partition", "all", "--yes")[1].count("needs no repair") == 2
    assert logged_repairs(system) == []
    code, said = repair(system, "partition", "0", "--from", "1", "--yes")
    assert (code, "from 1 to 3 were decided before" in said) == (1, True), said
    code, said = repair(system, "partition", "0", "--from", "1", "--again", "--yes")
    assert (code, "up to 3 records are decided again" in said) == (0, True), said
    system.produce(command(), partition=0)
    system.check_exactly_once(5, RECHECKED_S)
    code, said = repair(system, "partition", "0", "--from", "beginning", "--again", "--yes")
    assert (code, "within seconds" in said) == (0, True), said
    system.produce(command(), partition=0)
    system.check_exactly_once(6, RECHECKED_S)
    assert system.query("SELECT sum(next_offset) FROM consumed_offsets") == [(6,)]
    assert [(words, reason) for words, _, reason, _ in logged_repairs(system)] == [
        ("repair partition 0 --from 1 --again", "manual"),
        ("repair partition 0 --from beginning --again", "manual"),
    ]
    consumer.stop()
    relay.stop()


# ---- asking ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("lane", "4"), "there is no lane 4: the lanes are 0 to 3"),
        (("partition", "2"), "there is no partition 2"),
        (("partition", "0", "--from", "7"), "offset 7 is not in the log"),
    ],
    ids=" ".join,
)
def test_a_lane_partition_or_offset_that_does_not_exist_is_exit_code_1(
    system: System, words: tuple[str, ...], why: str
) -> None:
    system.query(
        "INSERT INTO consumed_offsets (topic, partition, topic_id, next_offset)"
        " VALUES (%s, 0, gen_random_uuid(), 3)",
        system.settings.input_topic,
    )
    code, said = repair(system, *words, "--yes")
    assert (code, why in said) == (1, True), said


@pytest.mark.parametrize(
    "words",
    [
        ("lane", "0"),
        ("partition", "all"),
        ("partition", "all", "--from", "7", "--yes"),
        ("lane", "-1", "--yes"),
        ("lane",),
        (),
    ],
    ids=" ".join,
)
def test_without_a_terminal_or_with_wrong_arguments_it_is_exit_code_2(
    system: System, words: tuple[str, ...]
) -> None:
    assert run_in_process(system.environ, "repair", *words).returncode == 2


def refuse_everything(system: System) -> None:
    system.accept(3)
    system.produce(*[command() for _ in range(3)], partition=0)
    with system.consumer() as session:
        eventually(lambda: session.run_once() >= 0 and system.statuses() == {"pending": 6})
    system.query("UPDATE outbox_lane SET batch_number = 5")
    system.query("UPDATE consumed_offsets SET next_offset = 50 WHERE partition = 0")


@pytest.mark.parametrize("what", ["lane", "partition"])
def test_a_dry_run_reports_what_it_would_do_and_changes_nothing(system: System, what: str) -> None:
    refuse_everything(system)
    if what == "lane":
        system.query("UPDATE consumed_offsets SET next_offset = decided_end")
    before = states(system)
    code, said = repair(system, what, "all", "--dry-run")
    assert code == 0, said
    assert "nothing was changed" in said
    assert ("will be published" if what == "lane" else "it will continue at offset ") in said
    assert states(system) == before


@pytest.mark.parametrize(("answer", "code"), [("yes", 0), ("no", 1), ("", 1)])
def test_on_a_terminal_it_asks(system: System, answer: str, code: int) -> None:
    refuse_everything(system)
    before = states(system)
    terminal, its_end = pty.openpty()
    os.write(terminal, answer.encode() + b"\n")
    asked = subprocess.run(
        [sys.executable, "-m", "orchestrator", "repair", "partition", "0"],
        env={**INHERITED, **system.environ},
        stdin=its_end,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    os.close(terminal)
    os.close(its_end)
    assert asked.returncode == code, asked.stderr
    assert "Go on?" in asked.stderr
    assert (states(system) == before) is (code == 1)
