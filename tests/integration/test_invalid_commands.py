"""Invalid commands through the real topic, consumer and lane: each a dead letter, byte for byte."""

import random
import struct
import time
from itertools import chain
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
import pytest
from confluent_kafka import Message as Record
from confluent_kafka import Producer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from orchestrator.contract.dead_letters import KEPT_BYTES
from orchestrator.operations.dead_letters.headers import block_of
from testkit.system import System, own_headers, take
from tests.unit.test_messages import FIXED_LIST, near_misses, outcome

GENERATED = 1000
SENT_MS = int(time.time() * 1000)  # of an old record retention would make short work
Headers = list[tuple[str, str | bytes | None]]


class Sent(NamedTuple):
    """What goes into the input topic. headers: none and an empty list are the same to Kafka."""

    key: bytes | None
    value: bytes | None
    headers: Headers


# librdkafka holds a header's name as a C string: NUL cannot be in it.
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
headers = st.lists(st.tuples(names, st.none() | st.binary(max_size=8)), max_size=4)
values = st.none() | st.binary(max_size=200) | near_misses
bad_records = st.builds(Sent, st.none() | st.binary(max_size=8), values, headers).filter(
    lambda sent: not is_command(sent.value)
)


def is_command(value: bytes | None) -> bool:
    """Say whether the parser takes it; test_messages.py says what it must take."""
    return isinstance(outcome(value), msgspec.Struct)


def generate() -> list[Sent]:
    """Return the same invalid commands every time."""
    made: list[Sent] = []

    @settings(
        max_examples=GENERATED,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(bad_records)
    def collect(sent: Sent) -> None:
        made.append(sent)

    collect()
    assert len(made) >= GENERATED
    return made


def good(number: int) -> Sent:
    """Return a good neighbour; its key spreads it over the partitions."""
    scenario = str(uuid4())
    value = {"scenario_uuid": scenario, "camera_url": f"rtsp://u:p@camera/{number}"}
    return Sent(scenario.encode(), msgspec.json.encode(value), [])


def send(system: System, records: list[Sent], **config: Any) -> None:
    """Write records to the input topic."""
    producer = Producer({**system.settings.kafka, "linger.ms": 5, **config})
    topic = system.settings.input_topic
    for sent in records:
        producer.produce(topic, sent.value, sent.key, headers=sent.headers, timestamp=SENT_MS)
    assert producer.flush(30) == 0


def carry(system: System, records: int) -> None:
    """Move consumer and lane until everything has gone through."""
    with system.consumer() as session, system.lane() as lane:
        take(session, records)
        assert session.run_once() == 0
        lane.recover()
        assert lane.drain() == records
    assert system.query("SELECT count(*) FROM outbox_parked") == [(0,)]


def original(letter: Record) -> Sent:
    """Return a dead letter as it was before our headers were added."""
    headers = own_headers(letter)
    return Sent(letter.key(), letter.value(), list(headers[: -len(block_of(headers))]))


SPRING = [
    "kafka_dlt-original-topic",
    "kafka_dlt-original-partition",
    "kafka_dlt-original-offset",
    "kafka_dlt-original-timestamp",
    "kafka_dlt-original-timestamp-type",
    "kafka_dlt-original-consumer-group",
    "kafka_dlt-exception-fqcn",
    "kafka_dlt-exception-message",
    "dlq-reason",
]
TRUNCATED = ["dlq-origin-id", "dlq-truncated-value"]


def by_place(records: list[Record]) -> dict[tuple[int, int], Sent]:
    """Return what is in the input topic, by partition and offset."""
    return {
        (record.partition() or 0, record.offset() or 0): Sent(
            record.key(),
            record.value(),
            list(record.headers() or ()),  # type: ignore[arg-type]
        )
        for record in records
    }


def check_dead_letters(system: System, bad: int) -> None:
    """Compare each dead letter with the record at the place that its headers name."""
    source = by_place(system.read(system.settings.input_topic))
    letters = system.read(system.settings.dead_letter_topic)
    seen = set()
    for letter in letters:
        found: dict[str, Any] = dict(block_of(own_headers(letter)))
        (partition,) = struct.unpack(">i", found["kafka_dlt-original-partition"])
        (offset,) = struct.unpack(">q", found["kafka_dlt-original-offset"])
        was = source[partition, offset]
        assert original(letter) == was._replace(value=was.value and was.value[:KEPT_BYTES])
        is_truncated = len(was.value or b"") > KEPT_BYTES
        assert list(found) == SPRING[:-1] + TRUNCATED * is_truncated + SPRING[-1:]
        assert not is_command(letter.value())
        assert found["kafka_dlt-original-timestamp"] == struct.pack(">q", SENT_MS)
        assert found["kafka_dlt-original-topic"] == system.settings.input_topic.encode()
        seen.add((partition, offset))
    assert len(seen) == len(letters) == bad
    assert seen == {place for place, sent in source.items() if not is_command(sent.value)}


@pytest.mark.fault(30)
def test_every_record_becomes_a_worker_or_a_dead_letter(one_lane: System) -> None:
    fixed = [Sent(b"fixed", value, []) for value, _ in FIXED_LIST]
    bad = [*generate(), *fixed]
    random.Random(1).shuffle(bad)
    neighbours = [good(number) for number in range(len(bad))]
    send(one_lane, list(chain.from_iterable(zip(bad, neighbours, strict=True))))
    carry(one_lane, 2 * len(bad))
    check_dead_letters(one_lane, len(bad))
    one_lane.check_exactly_once(len(bad))
    scenarios = {str(order.scenario_uuid).encode() for order in one_lane.orders()}
    assert scenarios == {sent.key for sent in neighbours}


@pytest.mark.fault(30)
def test_null_and_empty_stay_apart(one_lane: System) -> None:
    send(one_lane, [Sent(key, value, []) for key in (None, b"") for value in (None, b"")])
    carry(one_lane, 4)
    check_dead_letters(one_lane, 4)
    letters = one_lane.read(one_lane.settings.dead_letter_topic)
    found = {(letter.key(), letter.value()) for letter in letters}
    assert found == {(None, None), (None, b""), (b"", None), (b"", b"")}
