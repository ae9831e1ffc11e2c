"""A record of the input is decided once, whatever its group is called and is configured since."""

import json
from uuid import uuid4

import pytest

from orchestrator.observability.health import Health
from orchestrator.observability.metrics import ConsumerMetrics, new_registry
from testkit.disagreement import repair
from testkit.empty_installation import run_in_process
from testkit.eventually import eventually
from testkit.system import System, take

KEY = b"key"  # all records in one partition
AGAIN = "UPDATE consumed_offsets SET next_offset = 0, decide_again = true"
BACK = "UPDATE consumed_offsets SET next_offset = 0"


def command(number: int, length: int = 0) -> bytes:
    """Return a command, with so many characters of no meaning."""
    url = f"rtsp://user:pw@camera/{number}"
    return json.dumps({"scenario_uuid": str(uuid4()), "camera_url": url, "more": "x" * length}).encode()


def consume(system: System, records: int) -> None:
    """Run a session until it has read so many records."""
    with system.consumer() as session:
        take(session, records)


def consume_nothing(system: System) -> None:
    """Run a session; see that it reads nothing."""
    with system.consumer() as session:
        seen = 0

        def is_assigned() -> bool:
            nonlocal seen
            seen += session.run_once()
            return bool(session.positions())

        eventually(is_assigned, 30)
        assert seen + sum(session.run_once() for _ in range(4)) == 0


def workers(system: System) -> int:
    return int(system.query("SELECT count(*) FROM workers")[0][0])


def orders(system: System) -> int:
    """Count the orders in the outbox."""
    return int(system.query("SELECT count(aggregate_id) FROM outbox")[0][0])


def letters(system: System) -> int:
    """Count the dead letters in the outbox."""
    topic = system.settings.dead_letter_topic
    return int(system.query("SELECT count(*) FROM outbox WHERE topic = %s", topic)[0][0])


def other(system: System, **environ: str) -> System:
    """Return the same installation with other settings."""
    return System(system.environ | environ, system.directory)


def test_a_group_of_another_name_continues_where_the_last_one_stopped(system: System) -> None:
    system.produce(*[command(number) for number in range(5)], b"no command", key=KEY)
    consume(system, 6)
    system.query("DELETE FROM workers")  # as the platform does with old ones
    renamed = other(system, CONSUMER_GROUP=f"renamed-{uuid4()}")
    consume_nothing(renamed)
    system.produce(command(5), key=KEY)
    consume(renamed, 1)
    assert (workers(system), orders(system), letters(system)) == (1, 6, 1)


def test_a_position_that_was_set_back_by_hand_is_skipped_and_said(
    system: System, caplog: pytest.LogCaptureFixture
) -> None:
    system.produce(*[command(number) for number in range(5)], key=KEY)
    consume(system, 5)
    system.query(BACK)
    consume_nothing(system)
    assert "position skipped" in [record.message for record in caplog.records]
    assert system.query("SELECT sum(next_offset) FROM consumed_offsets") == [(5,)]


def test_reading_again_is_refused_unless_the_operator_says_so(system: System) -> None:
    system.produce(*[command(number) for number in range(3)], partition=0)
    consume(system, 3)
    code, said = repair(system, "partition", "0", "--from", "beginning", "--yes")
    assert (code, "the records from 0 to 2 were decided before" in said) == (1, True), said
    assert "--again" in said


def test_decided_again_existing_workers_stay_and_deleted_ones_get_another_order(
    system: System,
) -> None:
    system.produce(*[command(number) for number in range(5)], partition=0)
    consume(system, 5)
    gone = "DELETE FROM workers WHERE worker_id IN (SELECT worker_id FROM workers LIMIT 2)"
    system.query(gone)
    code, said = repair(system, "partition", "0", "--from", "beginning", "--again", "--yes")
    assert (code, "up to 5 records are decided again" in said) == (0, True), said
    metrics = ConsumerMetrics(new_registry("consumer"), Health())
    with system.consumer(metrics=metrics) as session:
        eventually(lambda: session.run_once() == 5, 30)
    assert (workers(system), orders(system)) == (5, 7)
    assert metrics._records.labels("duplicate")._value.get() == 3
    ((end, again),) = system.query(
        "SELECT decided_end, decide_again FROM consumed_offsets WHERE partition = 0"
    )
    assert (end, again) == (5, False)  # from here on records are new


@pytest.mark.fault(55)
def test_a_command_that_was_accepted_is_no_dead_letter_by_other_settings(system: System) -> None:
    system.produce(command(0, length=2000), command(1), partition=0)
    consume(system, 2)
    narrow = other(system, MAX_MESSAGE_BYTES="1000")
    system.query(AGAIN)
    consume(narrow, 2)
    assert (workers(system), orders(system), letters(system)) == (2, 2, 0)
    system.produce(command(2, length=2000), partition=0)
    consume(narrow, 1)
    assert letters(system) == 1


@pytest.mark.fault(55)
@pytest.mark.parametrize("action", ["discard", "retry"])
def test_a_dead_letter_that_was_dealt_with_is_no_worker_by_other_settings(
    system: System, action: str
) -> None:
    narrow = other(system, MAX_MESSAGE_BYTES="1000")
    system.produce(command(0, length=2000), partition=0)
    consume(narrow, 1)
    relay = system.start("relay")
    eventually(lambda: len(system.read(system.settings.dead_letter_topic)) == 1, 30)
    relay.stop()
    done = run_in_process(narrow.environ, "dlq", action, "--all", "--yes")
    assert done.returncode == 0, done.stderr
    system.query(AGAIN)
    consume(system, 1)
    assert (workers(system), letters(system)) == (0, 0)


@pytest.mark.fault(53)
def test_a_letter_whose_record_is_not_consumed_yet_is_handled_by_its_id_alone(system: System) -> None:
    system.produce(b"no command", partition=0)
    consume(system, 1)
    relay = system.start("relay")
    eventually(lambda: len(system.read(system.settings.dead_letter_topic)) == 1, 30)
    relay.stop()
    system.query("UPDATE consumed_offsets SET next_offset = 0, decided_end = 0")  # as after a restore
    for action in ("discard", "retry"):
        done = run_in_process(system.environ, "dlq", action, "--all", "--yes")
        assert done.returncode == 1, done.stdout
        assert "1 dead letters were records that this database has not consumed" in done.stderr
    (letter,) = system.read(system.settings.dead_letter_topic)
    one = f"{letter.partition()}:{letter.offset()}"
    done = run_in_process(system.environ, "dlq", "discard", one, "--yes")
    assert (done.returncode, "1 dead letters are discarded" in done.stdout) == (0, True), done.stderr
