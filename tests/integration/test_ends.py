"""A position moves over what is no record: ends of transactions, and records of aborted ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from orchestrator.config.timings import ConsumerTimings
from orchestrator.consumer.offsets import OffsetConflict
from orchestrator.consumer.session import ConsumerSession
from orchestrator.kafka import topics
from testkit.disagreement import repair
from testkit.empty_installation import run_in_process
from testkit.eventually import eventually
from testkit.system import System, delete_before, take
from tests.integration.test_ingest import MOVED, accepted, command, stored

SOON = ConsumerTimings(end_move_s=0.05, unread_s=0.5)
NEVER_RECHECKED = ConsumerTimings(end_move_s=0.05, position_check_s=600)
RARELY = ConsumerTimings(end_move_s=600)


@contextmanager
def transaction(system: System, partition: int = 0) -> Iterator[Producer]:
    """Begin a transaction with a command; end it after the block, unless the block did."""
    producer = Producer({**system.settings.kafka, "transactional.id": f"api-{uuid4()}"})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(system.settings.input_topic, command(), partition=partition)
    producer.flush(20)
    yield producer


def commit(system: System, partition: int = 0) -> None:
    """Write a command in a transaction: two offsets."""
    with transaction(system, partition) as producer:
        producer.commit_transaction(30)


def abort(system: System, partition: int = 0) -> None:
    """Write a command in a transaction that is aborted: two offsets, and no record to read."""
    with transaction(system, partition) as producer:
        producer.abort_transaction(30)


def run_until(session: ConsumerSession[Any], system: System, positions: dict[int, int]) -> None:
    """Run a session until it has moved to these positions."""

    def has_moved() -> bool:
        session.run_once()
        return stored(system) == positions

    eventually(has_moved, 30)


def high_watermarks(system: System) -> dict[int, int]:
    """Return where the partitions end."""
    admin, topic = AdminClient(dict(system.settings.kafka)), system.settings.input_topic
    return topics.read_high_watermarks(admin, topic, [0, 1])


@pytest.mark.fault(70)
def test_a_log_that_ends_with_a_transaction_is_consumed_to_its_end(system: System) -> None:
    commit(system)
    abort(system, partition=1)  # no record was ever there
    with system.consumer(SOON) as session:
        run_until(session, system, {0: 2, 1: 2})
        assert session.positions() == high_watermarks(system) == {0: 2, 1: 2}
    ends = "SELECT decided_end, leader_epoch >= 0 FROM consumed_offsets"
    assert system.query(ends) == [(2, True), (2, True)]
    for partition in (0, 1):
        delete_before(system, system.settings.input_topic, partition, 2)
    commit(system, partition=1)
    with system.consumer(SOON) as session:
        run_until(session, system, {0: 2, 1: 4})
        assert session.refused() == {}
    assert accepted(system) == 2


def test_ends_between_records_cost_no_move_of_their_own(system: System) -> None:
    """Only an end with nothing behind it is moved to, and not often."""
    with system.consumer(RARELY) as session:
        eventually(lambda: session.run_once() == 0 and session.positions(), 30)
        commit(system)
        run_until(session, system, {0: 2, 1: 0})  # the first move is due at once
        for _ in range(3):
            commit(system)
            take(session, 1)
        assert stored(system) == {0: 7, 1: 0}


def test_a_position_that_is_decided_again_moves_over_ends_too(system: System) -> None:
    commit(system)
    abort(system)
    with system.consumer(SOON) as session:
        run_until(session, system, {0: 4, 1: 0})
    system.query("UPDATE consumed_offsets SET next_offset = 0, decide_again = true WHERE partition = 0")
    with system.consumer(SOON) as session:
        run_until(session, system, {0: 4, 1: 0})
    again = "SELECT decided_end, decide_again FROM consumed_offsets WHERE partition = 0"
    assert system.query(again) == [(4, False)]
    assert accepted(system) == 1


@pytest.mark.fault(22)
@pytest.mark.parametrize("moved", MOVED)
def test_guard_an_end_whose_position_another_consumer_moved_is_not_moved_to(
    system: System, moved: str
) -> None:
    with system.consumer(NEVER_RECHECKED) as session:
        eventually(lambda: session.run_once() == 0 and session.positions(), 30)
        system.query(MOVED[moved])
        before = stored(system)
        abort(system)
        with pytest.raises(OffsetConflict):
            eventually(session.run_once, 30)
        assert stored(system) == before


def test_an_open_transaction_is_named_by_everything_and_moved_over_once_it_ends(
    system: System,
) -> None:
    system.environ["OUTBOX_TIMINGS"] = '{"unread_s": 0.5, "end_move_s": 0.1}'
    consumer = system.start("consumer")
    commit(system)
    with transaction(system) as producer:
        system.produce(command(), partition=0)  # hidden behind it
        hint = "a producer's transaction is open at offset 2"
        remedy = f"abort --topic {system.settings.input_topic} --partition 0 --start-offset 2"
        eventually(lambda: hint in consumer.get("/readyz"), 30)
        assert '"ready": true' in consumer.get("/readyz")
        assert consumer.logged('"partition waiting"')
        assert remedy in consumer.get("/readyz")
        assert stored(system)[0] == 2

        def is_named() -> bool:  # once it is old enough
            said = run_in_process(system.environ, "status").stdout
            return hint in said and remedy in said

        eventually(is_named, 60)
        assert hint in run_in_process(system.environ, "doctor").stdout
        producer.abort_transaction(30)
    eventually(lambda: stored(system)[0] == high_watermarks(system)[0], 30)
    eventually(lambda: hint not in consumer.get("/readyz"), 30)
    assert accepted(system) == 2
    assert hint not in run_in_process(system.environ, "status").stdout
    consumer.stop()


@pytest.mark.fault(25)
def test_a_gap_that_was_not_seen_stays_refused_and_may_hold_no_record(system: System) -> None:
    system.produce(command(), partition=0)
    with system.consumer() as session:
        take(session, 1)
    abort(system)  # while no consumer runs
    delete_before(system, system.settings.input_topic, 0, 3)
    consumer = system.start("consumer")
    hint = (
        "offset_out_of_range: orchestrator repair partition 0 (perhaps only ends of transactions were"
    )
    eventually(lambda: hint in consumer.get("/readyz"), 30)
    consumer.stop()
    assert hint in run_in_process(system.environ, "doctor").stdout
    code, said = repair(system, "partition", "0", "--dry-run")
    assert (code, "or only ends of transactions were, which are no records" in said) == (0, True), said
    code, said = repair(system, "partition", "0", "--yes")
    assert code == 0, said
    assert stored(system)[0] == 3
