"""Large records: what is kept of them is small, a batch is, and nothing is lost by that."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from orchestrator.consumer import session as consumer_session
from orchestrator.contract.dead_letters import KEPT_BYTES, MAX_LETTER_BYTES
from orchestrator.contract.records import headers_of
from testkit.eventually import eventually
from testkit.system import System, delete_before, recreate, recreate_input, set_config, take
from tests.acceptance.test_dlq_and_parked import (
    letters_of,
    listed,
    make_dead_letters,
    retried,
    run,
    shown,
    states,
)

ALL_LARGE: dict[str, Any] = {
    "key": b"k" * 300_000,
    "value": b"v" * 300_000,
    "headers": [("h", b"h" * 300_000)],
}


def send(system: System, *records: Mapping[str, Any]) -> None:
    """Write records to the first partition of the input, as large as Kafka takes them by default."""
    producer = Producer({**system.settings.kafka, "message.max.bytes": 1_048_000})
    for record in records:
        producer.produce(system.settings.input_topic, partition=0, **record)
    assert producer.flush(20) == 0


@pytest.fixture
def truncated(one_lane: System) -> System:
    """Two dead letters in the topic: one that is whole, and one that is truncated."""
    send(one_lane, {"value": b"{", "key": b"k"}, ALL_LARGE)
    make_dead_letters(one_lane, 2)
    return one_lane


@pytest.mark.fault(30)
def test_the_largest_dead_letter_fits_a_topic_of_its_bound(one_lane: System) -> None:
    set_config(
        one_lane, one_lane.settings.dead_letter_topic, "max.message.bytes", str(MAX_LETTER_BYTES)
    )
    send(one_lane, ALL_LARGE, {"value": b"v", "headers": [("", b"")] * 90_000})
    make_dead_letters(one_lane, 2)
    assert one_lane.query("SELECT count(*) FROM outbox_parked") == [(0,)]
    many, large = sorted(letters_of(one_lane), key=lambda one: len(one.value() or b""))
    assert (large.key(), large.value()) == (b"k" * KEPT_BYTES, b"v" * KEPT_BYTES)
    assert headers_of(large)[0][0] == "kafka_dlt-original-topic"
    assert len(headers_of(many)) < 10_000


def test_a_truncated_dead_letter_says_so(truncated: System) -> None:
    code, said = run(truncated, "dlq", "list")
    assert code == 0
    assert f"{KEPT_BYTES} (truncated)" in said
    whole, large = (shown(truncated, "dlq", one) for one in ids_of(truncated))
    assert whole["truncated"] == {}
    assert large["truncated"].keys() == {"key", "value", "headers"}
    assert large["truncated"]["value"].startswith("300000 bytes, SHA-256 ")
    ours = {one["name"]: one["value"] for one in large["headers"]}
    assert ours["dlq-truncated-value"] == large["truncated"]["value"]


def ids_of(system: System) -> list[str]:
    """Return the record ids of the dead letters, the smaller one first."""
    records = sorted(letters_of(system), key=lambda one: len(one.value() or b""))
    return [f"{one.partition()}:{one.offset()}" for one in records]


def test_a_retry_sends_a_truncated_dead_letter_whole(truncated: System) -> None:
    code, said = run(truncated, "dlq", "retry", "--all", "--yes")
    assert code == 0, said
    assert "2 dead letters are in the outbox now" in said
    with truncated.lane(0) as lane:
        lane.recover()
        lane.drain()
    small, large = sorted(retried(truncated), key=lambda one: len(one[1] or b""))
    assert small[:2] == (b"k", b"{")
    assert large[:2] == (ALL_LARGE["key"], ALL_LARGE["value"])
    names = ["h", "dlq-retry-of", "dlq-retry-origin", "message-id"]
    assert [name for name, _ in large[2]] == names
    assert large[2][0] == ("h", b"h" * 300_000)
    assert listed(truncated, "dlq") == {}
    make_dead_letters(truncated, 2)  # as bad as before; the first record is still named
    assert run(truncated, "dlq", "discard", "--all", "--yes")[0] == 0
    assert set(states(truncated)) == {"retried", "discarded"}


@pytest.fixture(params=["deleted", "another record"])
def lost(request: pytest.FixtureRequest, truncated: System) -> System:
    """The same, whose records are not in the input any more."""
    if request.param == "deleted":
        delete_before(truncated, truncated.settings.input_topic, 0, 2)
    else:
        recreate_input(truncated)
        send(truncated, {"value": b"{"}, {**ALL_LARGE, "value": b"w" * 300_000})
    return truncated


def test_a_retry_refuses_what_the_input_has_not_any_more(lost: System) -> None:
    small, large = ids_of(lost)
    for words in (["--all"], [small, large]):
        code, said = run(lost, "dlq", "retry", *words, "--dry-run")
        assert code == 1
        assert f"dead letter {large} is truncated (" in said
        assert f"its record at {lost.settings.input_topic}:0:1 is not in the input any more" in said
        assert "have its writer send the command again, and discard the dead letter" in said
        assert "retry 1 dead letters" in said
    code, said = run(lost, "dlq", "retry", "--all", "--yes")
    assert code == 1
    assert "1 dead letters are in the outbox now" in said
    assert lost.query("SELECT length(value) FROM outbox") == [(1,)]
    assert run(lost, "dlq", "discard", large, "--yes")[0] == 0
    assert listed(lost, "dlq") == {}


def test_a_batch_has_a_bound_in_bytes(one_lane: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_session, "BATCH_BYTES", 20_000)
    monkeypatch.setattr(consumer_session, "SLICE", 5)
    send(one_lane, *[{"value": b"v" * 900, "key": b"k" * 100}] * 100)
    with one_lane.consumer() as session:
        sizes = iter(session.run_once, -1)
        batches: list[int] = []
        eventually(lambda: batches.append(next(sizes)) or sum(batches) == 100)  # type: ignore[func-returns-value]
    assert max(batches) <= 25
    assert one_lane.query("SELECT count(*) FROM outbox") == [(100,)]


MANY = 700
SMALL_MB = 200


@pytest.mark.slow
@pytest.mark.fault(30)
@pytest.mark.xdist_group("measures")
@pytest.mark.parametrize("part", ["key", "value", "headers"])
def test_a_consumer_with_large_records_waiting_stays_small(one_lane: System, part: str) -> None:
    """The client counts the bytes of values alone."""
    large = {"value": b"{", part: ALL_LARGE[part]}
    for _ in range(MANY // 100):
        send(one_lane, *[large] * 100)
    consumer = one_lane.start("consumer")
    status = Path(f"/proc/{consumer.process.pid}/status")
    dead = "SELECT count(*) FROM outbox"
    eventually(lambda: one_lane.query(dead) == [(MANY,)], 60)
    (peak_kb,) = [line.split()[1] for line in status.read_text().splitlines() if "VmHWM" in line]
    consumer.stop()
    assert int(peak_kb) < SMALL_MB * 1024


HUGE = 8_000_000


@pytest.mark.fault(30)
def test_a_record_that_only_the_input_may_hold_is_a_dead_letter(one_lane: System) -> None:
    recreate(one_lane, one_lane.settings.input_topic, **{"max.message.bytes": str(2 * HUGE)})
    one_lane.produce(b"{", bytes(HUGE), b"{", partition=0)
    with one_lane.consumer() as session:
        take(session, 3)
    assert one_lane.query("SELECT max(length(value)) FROM outbox") == [(KEPT_BYTES,)]
