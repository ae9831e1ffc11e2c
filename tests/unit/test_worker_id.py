"""A worker's id: the same for the same record in every process and every release."""

from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.contract.messages import worker_id

TOPIC = UUID("6f1d2c3b-4a59-4687-9abc-def012345678")
NOW_MS = 1_700_000_000_123

places = st.tuples(st.uuids(), st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1))
times = st.integers(0, 2**48 - 1)


@pytest.mark.parametrize(
    ("partition", "offset", "timestamp_ms", "expected"),
    [
        (0, 0, 0, "00000000-0000-8958-a8c7-a57109e28290"),
        (3, 42, NOW_MS, "018bcfe5-687b-8ea7-9194-77cb2d79fc53"),
        (2**31 - 1, 2**63 - 1, 2**48 - 1, "ffffffff-ffff-8911-b31d-261c74b149d3"),
    ],
)
def test_the_function_never_changes(
    partition: int, offset: int, timestamp_ms: int, expected: str
) -> None:
    assert worker_id(TOPIC, partition, offset, timestamp_ms) == UUID(expected)


@given(places, times)
def test_it_is_a_uuid_of_version_8_that_begins_with_the_time(
    place: tuple[UUID, int, int], timestamp_ms: int
) -> None:
    made = worker_id(*place, timestamp_ms)
    assert (made.version, made.variant) == (8, RFC_4122)
    assert made.int >> 80 == timestamp_ms
    assert made == worker_id(*place, timestamp_ms)


@given(places, places, times)
def test_two_places_have_two_ids_at_the_same_time(
    one: tuple[UUID, int, int], other: tuple[UUID, int, int], timestamp_ms: int
) -> None:
    assert (worker_id(*one, timestamp_ms) == worker_id(*other, timestamp_ms)) == (one == other)


@given(places, places, times, times)
def test_ids_sort_by_time(
    one: tuple[UUID, int, int], other: tuple[UUID, int, int], earlier: int, later: int
) -> None:
    if earlier != later:
        first, second = worker_id(*one, min(earlier, later)), worker_id(*other, max(earlier, later))
        assert first < second
        assert str(first) < str(second)  # as text, too


@pytest.mark.parametrize(
    "other",
    [
        (UUID(int=TOPIC.int ^ 1), 1, 256),
        (TOPIC, 0, 256),
        (TOPIC, 1, 257),
        (TOPIC, 256, 1),
        (TOPIC, 1, 256 + 2**32),
    ],
)
def test_topic_partition_and_offset_count_each(other: tuple[UUID, int, int]) -> None:
    assert worker_id(*other, NOW_MS) != worker_id(TOPIC, 1, 256, NOW_MS)


@pytest.mark.parametrize("timestamp_ms", [-1, -(2**63)])
def test_a_record_without_a_timestamp_counts_as_time_0(timestamp_ms: int) -> None:
    assert worker_id(TOPIC, 0, 7, timestamp_ms) == worker_id(TOPIC, 0, 7, 0)


def test_a_time_beyond_48_bits_is_still_an_id() -> None:
    made = worker_id(TOPIC, 0, 0, 2**63 - 1)
    assert (made.version, made.variant) == (8, RFC_4122)


def test_every_bit_of_the_hash_is_used() -> None:
    ids = [worker_id(TOPIC, 0, offset, 0).int for offset in range(200)]
    hashed = (1 << 76) - 1 & ~(0b11 << 62)  # all below the version, but the variant
    ones, zeros = 0, 0
    for made in ids:
        ones, zeros = ones | made, zeros | ~made
    assert ones & hashed == zeros & hashed == hashed
