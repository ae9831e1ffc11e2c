"""Dead letters of more than one input, of a database that was restored, of settings that changed.

Rows 53 to 55: whatever was forgotten or configured in between, a command becomes one worker.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest
from confluent_kafka import Producer

from orchestrator.contract.dead_letters import dead_letter
from orchestrator.contract.messages import InvalidCommand, InvalidReason
from orchestrator.operations.dead_letters.filter import RecordFilter
from orchestrator.operations.dead_letters.handling import Handled, handle_dead_letters
from orchestrator.operations.dead_letters.letters import find_dead_letters, read_dead_letters
from orchestrator.operations.doctor.runner import run_all_checks
from testkit.cases import cases
from testkit.disagreement import back_up, logged_repairs, repair, restore
from testkit.eventually import eventually
from testkit.installations import Installations
from testkit.system import LANES, PARTITIONS, System, delete_before
from tests.acceptance.test_dlq_and_parked import (
    letters_of,
    listed,
    make_dead_letters,
    publish,
    retried,
    run,
    states,
)

WORKS_S = 45
WIDE = {"CAMERA_URL_SCHEMES": "gopher,rtsp"}


def commands(number: int) -> list[bytes]:
    """Return commands that are valid only with the settings WIDE."""
    return [
        msgspec.json.encode({"scenario_uuid": str(uuid4()), "camera_url": f"gopher://h/{n}"})
        for n in range(number)
    ]


def has_no_work(system: System) -> bool:
    """Return whether all input is consumed, and the outbox empty."""
    return not system.query("SELECT 1 FROM outbox LIMIT 1") and has_read_all(system)


def has_read_all(system: System) -> bool:
    """Return whether all input is consumed."""
    positions = dict(system.query("SELECT partition, next_offset FROM consumed_offsets"))
    records = system.read(system.settings.input_topic)
    return all(positions.get(one.partition(), 0) > (one.offset() or 0) for one in records)


# ---- row 54: a dead-letter topic of two installations ---------------------------------------------


@pytest.fixture
def two(installations: Installations, tmp_path: Path) -> Iterator[tuple[System, System]]:
    """Two installations with databases and inputs of their own, and one dead-letter topic."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with (
        installations.system(tmp_path / "one", LANES) as one,
        installations.system(tmp_path / "other", LANES) as other,
    ):
        shared = {"DEAD_LETTER_TOPIC": one.settings.dead_letter_topic}
        sharing = System(other.environ | shared, other.directory)
        try:
            yield one, sharing
        finally:
            sharing.end()


@pytest.mark.fault(54)
def test_letters_of_a_shared_topic_go_back_to_their_own_input(two: tuple[System, System]) -> None:
    narrow = [system.start(process) for system in two for process in ("consumer", "relay")]
    for system in two:
        system.produce(*commands(5))
    eventually(lambda: len(letters_of(two[0])) == 10, WORKS_S)
    for process in narrow:
        process.stop()
    for system in two:
        system.start("consumer", **WIDE)
        system.start("relay")
        code, said = run(system, "dlq", "retry", "--all", "--yes")
        assert code == 0, said
        assert "5 dead letters are in the outbox now" in said
    for system in two:
        system.check_exactly_once(5, WORKS_S)
        assert len(system.read(system.settings.input_topic)) == 10


def leave_letters(systems: Sequence[System]) -> None:
    """Let each have a record that is no command, and publish its dead letter."""
    for system in systems:
        system.produce(b"{")
        with system.consumer() as session:
            eventually(session.run_once)
        with system.lane(*range(LANES)) as relay:
            relay.recover()
            relay.drain()


@pytest.mark.fault(54)
def test_the_letters_of_another_input_are_named(two: tuple[System, System]) -> None:
    one, other = two
    leave_letters(two)
    (foreign,) = [r for r in letters_of(one) if other.settings.input_topic in str(r.headers())]
    record_id = f"{foreign.partition()}:{foreign.offset()}"
    settings = other.settings
    hint = f"INPUT_TOPIC={settings.input_topic} CONSUMER_GROUP={settings.consumer_group}"
    hint += f" DEAD_LETTER_TOPIC={settings.dead_letter_topic}, and its DATABASE_URL"
    named = f"topic {settings.input_topic}, group {settings.consumer_group}"
    for action in (["list"], ["retry", "--all", "--dry-run"]):
        code, said = run(one, "dlq", *action)
        assert code == 0
        assert "1 dead letters: 1 not_json" in said
        assert f"1 dead letters of {named}" in said
        assert hint in said
    for action in (["list"], ["show"], ["retry", "--yes"], ["discard", "--yes"]):
        code, said = run(one, "dlq", *action, record_id)
        assert code == 1, said
        assert named in said
        assert hint in said
        assert (f"{record_id} (of {named})" in said) == ("--yes" in action)
    assert one.query("SELECT count(*) FROM dead_letters_handled") == [(0,)]
    assert listed(one, "dlq") == listed(other, "dlq") == {"not_json": 1}
    assert "1 dead letters wait for the operator" in run(one, "status")[1]


@pytest.mark.fault(54)
def test_the_doctor_warns_of_a_shared_dead_letter_topic(two: tuple[System, System]) -> None:
    one, other = two
    leave_letters(two)
    (found,) = [one for one in run_all_checks(one.settings) if one.check == "dead-letter topic"]
    assert found.state == "warning"
    topic, settings = one.settings.dead_letter_topic, other.settings
    named = f"topic {settings.input_topic}, group {settings.consumer_group}"
    assert f"{topic} has 1 dead letter of {named}" in found.text
    assert "give each installation a DEAD_LETTER_TOPIC of its own" in found.text
    for letter in letters_of(one):
        delete_before(one, topic, letter.partition() or 0, (letter.offset() or 0) + 1)
    (found,) = [one for one in run_all_checks(one.settings) if one.check == "dead-letter topic"]
    assert found.state == "ok"


# ---- row 55: other settings at the second reading -------------------------------------------------


def read_again(system: System, **environ: str) -> None:
    """Let a consumer with these settings read the whole input again, and publish what it writes."""
    for partition in range(PARTITIONS):
        words = ["--from", "beginning", "--again", "--yes"]
        code, said = repair(system, "partition", str(partition), *words)
        assert code == 0, said
    consumer, relay = system.start("consumer", **environ), system.start("relay")
    eventually(lambda: has_no_work(system), WORKS_S)
    consumer.stop()
    relay.stop()


@pytest.mark.fault(55)
def test_a_command_that_was_accepted_is_not_retried_after_narrower_settings(system: System) -> None:
    consumer, relay = system.start("consumer"), system.start("relay")
    system.submit(3)
    system.check_exactly_once(3, WORKS_S)
    consumer.stop()
    relay.stop()
    read_again(system, MAX_MESSAGE_BYTES="64")
    code, said = run(system, "dlq", "retry", "--all", "--yes")
    assert code == 0, said
    assert "retry 0 dead letters" in said
    consumer, relay = system.start("consumer"), system.start("relay")
    system.submit(1)
    system.check_exactly_once(4, WORKS_S)
    assert len(system.read(system.settings.input_topic)) == 4
    consumer.stop()
    relay.stop()


@pytest.mark.fault(55)
@pytest.mark.parametrize("together", [True, False])
def test_a_command_and_its_retry_make_one_worker_and_one_order(
    one_lane: System, together: bool
) -> None:
    (command,), topic = commands(1), one_lane.settings.input_topic
    producer = Producer({**one_lane.settings.kafka, "linger.ms": 100})  # one batch: one fetch has both
    producer.produce(topic, command, partition=0, timestamp=1_700_000_000_000)
    origin: list[tuple[str, str | bytes | None]] = [("dlq-retry-origin", b"0:0:1700000000000")]
    producer.produce(topic, command, partition=0, headers=origin)
    assert producer.flush(20) == 0
    wide = System(
        one_lane.environ | WIDE | ({} if together else {"BATCH_SIZE": "1"}), one_lane.directory
    )
    with wide.consumer() as session:
        eventually(lambda: session.run_once() and has_read_all(one_lane))
    assert one_lane.query("SELECT count(*) FROM workers") == [(1,)]
    assert one_lane.query("SELECT count(*) FROM outbox") == [(1,)]


@pytest.fixture
def accepted(one_lane: System) -> tuple[System, UUID]:
    """A command that is a worker, and a dead letter, too: earlier releases read it twice."""
    one_lane.submit(1)
    with one_lane.consumer() as session:
        eventually(session.run_once)
    publish(one_lane)
    (record,) = one_lane.read(one_lane.settings.input_topic)
    settings = one_lane.settings
    letter = dead_letter(
        settings.dead_letter_topic,
        settings.consumer_group,
        record,
        InvalidCommand(InvalidReason.TOO_LONG),
    )
    producer = Producer(dict(settings.kafka))
    producer.produce(letter.topic, letter.value, letter.key, headers=list(letter.headers))
    assert producer.flush(20) == 0
    ((worker,),) = one_lane.query("SELECT worker_id FROM workers")
    return one_lane, worker


@pytest.mark.fault(55)
def test_a_dead_letter_whose_record_is_a_worker_is_not_sent(accepted: tuple[System, UUID]) -> None:
    system, worker = accepted
    (letter,) = letters_of(system)
    record_id = f"{letter.partition()}:{letter.offset()}"
    assert listed(system, "dlq") == {}
    assert states(system) == ["accepted"]
    assert str(worker) in run(system, "dlq", "list", "--handled")[1]
    assert "dead letters wait" not in run(system, "status")[1]
    for action in ("retry", "discard"):
        code, said = run(system, "dlq", action, record_id, "--yes")
        assert code == 1
        assert f"{record_id} (accepted as worker {worker})" in said
        assert f"{action} 0 dead letters" in said
    assert system.query("SELECT count(*) FROM outbox") == [(0,)]
    assert logged_repairs(system) == []


@pytest.mark.fault(55)
def test_a_command_that_is_accepted_meanwhile_is_not_retried(accepted: tuple[System, UUID]) -> None:
    """Between the question and its answer."""
    system, _ = accepted
    topic = find_dead_letters(system.settings, RecordFilter())
    with closing(system.connect()) as conn, conn.transaction(force_rollback=True):
        conn.execute("DELETE FROM workers")
        (letters,) = read_dead_letters(conn, topic, RecordFilter(), None)
    assert [letter.state for letter in letters] == ["waiting"]
    with closing(system.connect()) as conn:
        assert handle_dead_letters(conn, topic, letters, "retry", "dlq retry") == Handled()
    assert system.query("SELECT count(*) FROM outbox") == [(0,)]


@pytest.mark.fault(55)
def test_a_command_whose_worker_was_deleted_is_not_sent_again(
    accepted: tuple[System, UUID],
) -> None:
    system, worker = accepted
    (order,) = system.read(system.settings.output_topic)
    system.query("DELETE FROM workers")
    assert listed(system, "dlq") == {"too_long": 1}
    code, said = run(system, "dlq", "retry", "--all", "--yes")
    assert code == 0, said
    place = f"{system.settings.output_topic}[{order.partition()}] {order.offset()}"
    assert f"worker {worker}: its order is at {place}" in said
    assert "0 dead letters are in the outbox now" in said
    assert "1 were sent before" in said
    assert states(system) == ["retried"]
    assert system.query("SELECT count(*) FROM outbox") == [(0,)]
    assert logged_repairs(system)[0][3] == {"dead_letters": 0, "sent_before": 1}


@pytest.mark.fault(55)
def test_a_retry_says_how_far_back_the_output_tells_what_was_sent(
    accepted: tuple[System, UUID],
) -> None:
    system, _ = accepted
    topic = system.settings.output_topic
    (order,) = system.read(topic)
    delete_before(system, topic, order.partition() or 0, (order.offset() or 0) + 1)
    system.query("DELETE FROM workers")
    code, said = run(system, "dlq", "retry", "--all", "--yes")
    assert code == 0, said
    assert f"{topic} has only records since" in said
    assert "1 dead letters are in the outbox now" in said


# ---- row 53: the database was restored ------------------------------------------------------------


def work_and_check(system: System, workers: int) -> None:
    """Repair the lanes and let processes with wide settings work; check that so many workers come."""
    consumer = system.start("consumer", **WIDE)
    eventually(lambda: repair(system, "lane", "all", "--yes")[0] == 0, WORKS_S)
    relay = system.start("relay")
    eventually(lambda: has_no_work(system), WORKS_S)
    system.check_exactly_once(workers, WORKS_S)
    consumer.stop()
    relay.stop()


@pytest.mark.fault(53)
@pytest.mark.parametrize(
    "backup", cases(["before the first reading", "before the retry"], "before the retry")
)
@pytest.mark.parametrize("sent", ["the command", "its order"])
def test_a_retry_and_a_restore_and_a_retry_make_one_worker(
    one_lane: System, backup: str, sent: str
) -> None:
    """The settings are wide by then: the consumer accepts what it reads again."""
    one_lane.produce(*commands(2))
    if backup == "before the first reading":
        back_up(one_lane)
    make_dead_letters(one_lane, 2)
    if backup == "before the retry":
        back_up(one_lane)
    assert run(one_lane, "dlq", "retry", "--all", "--yes")[0] == 0
    publish(one_lane)
    if sent == "its order":
        work_and_check(one_lane, 2)
    restore(one_lane)
    assert listed(one_lane, "dlq") == {"url_scheme": 2}
    code, said = run(one_lane, "dlq", "retry", "--all", "--yes")
    assert code == 0, said
    assert ("2 were sent before" in said) == (sent == "its order")
    work_and_check(one_lane, 2)
    assert len(retried(one_lane)) == 2  # the repair knows the dead letter of a retried command
    assert listed(one_lane, "dlq") == {}


# ---- a letter that does not say what it was -------------------------------------------------------


def test_a_letter_of_unknown_origin_is_retried_by_its_id_alone(one_lane: System) -> None:
    producer = Producer(dict(one_lane.settings.kafka))
    producer.produce(one_lane.settings.dead_letter_topic, b"{", partition=0)
    part = ("kafka_dlt-original-offset", struct.pack(">q", 7))
    producer.produce(one_lane.settings.dead_letter_topic, b"{", partition=0, headers=[part])
    assert producer.flush(20) == 0
    assert listed(one_lane, "dlq") == {"unknown": 2}
    code, said = run(one_lane, "dlq", "retry", "--all", "--yes")
    assert code == 0, said
    assert "retry 0 dead letters" in said
    assert "2 dead letters do not say which record they were" in said
    assert "only by id, such as 0:0, 0:1" in said
    code, said = run(one_lane, "dlq", "retry", "0:1", "--yes")
    assert "1 dead letters are in the outbox now" in said
    publish(one_lane)
    ((_, _, headers),) = retried(one_lane)
    assert [name for name, _ in headers] == ["dlq-retry-of", "message-id"]
    assert run(one_lane, "dlq", "discard", "--all", "--yes")[0] == 0
    assert listed(one_lane, "dlq") == {}
