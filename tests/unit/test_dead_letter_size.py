"""A dead letter has a bound, whatever its record holds, and names what it has not whole."""

import struct
from hashlib import sha256
from typing import Any

import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME
from confluent_kafka import Message as Record
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.contract.dead_letters import (
    HEADER_BYTES,
    KEPT_BYTES,
    MAX_LETTER_BYTES,
    dead_letter,
    keep,
)
from orchestrator.contract.messages import InvalidCommand, InvalidReason
from orchestrator.contract.records import headers_of, origin_id_of_record
from orchestrator.operations.dead_letters.headers import block_of, origin_id_in, truncated_parts
from orchestrator.operations.dead_letters.letters import parse_dead_letter
from outbox import Headers, Message

INVALID = InvalidCommand(InvalidReason.TOO_LONG)
GROUP = "g" * 255
TOPIC = "t" * 249
RETRY = ("dlq-retry-origin", b"1:2:3")


def record_of(key: bytes | None, value: bytes | None, own: Headers = ()) -> Record:
    """Return a record as the client gives it."""
    fields: dict[str, Any] = {"topic": TOPIC, "partition": 7, "offset": 2**60}
    timestamp, headers = (TIMESTAMP_CREATE_TIME, 1_700_000_000_123), list[Any](own)
    return Record(**fields, key=key, value=value, headers=headers, timestamp=timestamp)


def size_of(letter: Message) -> int:
    """Return at least the bytes that Kafka stores of a record."""
    added = [*letter.headers, ("message-id", b"x" * 36)]
    headers = sum(HEADER_BYTES + len(name.encode()) + len(value or b"") for name, value in added)
    return headers + len(letter.key or b"") + len(letter.value or b"") + 64


def read_back(letter: Message) -> Any:
    """Return the dead letter as an operator's command reads it."""
    fields: dict[str, Any] = {"topic": "dlq", "partition": 0, "offset": 0}
    headers = [*list[Any](letter.headers), ("message-id", b"x")]
    timestamp = (TIMESTAMP_CREATE_TIME, 1)
    return parse_dead_letter(
        Record(**fields, key=letter.key, value=letter.value, headers=headers, timestamp=timestamp)
    )


sizes = st.integers(0, 3) | st.integers(KEPT_BYTES - 2, KEPT_BYTES + 2) | st.just(200_000)
names = st.sampled_from([0, 1, 20_000])


def part(size: int | None) -> bytes | None:
    """Return so many bytes."""
    return None if size is None else b"x" * size


@given(
    st.none() | sizes,
    st.none() | sizes,
    st.lists(st.tuples(names, st.none() | sizes), max_size=5),
    st.sampled_from([1, 10_000]),
)
@settings(max_examples=40, deadline=None)
def test_a_dead_letter_is_never_larger_than_its_bound(
    key_size: int | None, value_size: int | None, lengths: list[tuple[int, int | None]], times: int
) -> None:
    key, value = part(key_size), part(value_size)
    headers = [("\u20ac" * name, part(size)) for name, size in lengths] + [("", b"")] * (times - 1)
    record = record_of(key, value, headers)
    letter = dead_letter("d", GROUP, record, INVALID)
    assert size_of(letter) <= MAX_LETTER_BYTES
    assert (letter.key is None, letter.value is None) == (key is None, value is None)
    read = read_back(letter)
    assert read.origin_id == origin_id_of_record(record)
    assert ("key" in read.truncated) == (len(key or b"") > KEPT_BYTES)
    assert ("value" in read.truncated) == (len(value or b"") > KEPT_BYTES)
    own = len(letter.headers) - len(block_of(letter.headers))
    assert ("headers" in read.truncated) == (own < len(headers_of(record)))


def test_what_is_too_long_is_named_by_its_length_and_hash() -> None:
    value = b"a" * KEPT_BYTES + b"b"
    letter = dead_letter("d", "g", record_of(b"k", value), INVALID)
    assert letter.value == value[:-1]
    note = f"{len(value)} bytes, SHA-256 {sha256(value).hexdigest()[:8]}"
    assert dict(letter.headers)["dlq-truncated-value"] == note.encode()
    assert truncated_parts(letter.headers) == {"value": note}
    assert letter.headers[-1] == ("dlq-reason", b"too_long")


def test_a_record_that_fits_is_kept_byte_for_byte() -> None:
    headers = [("a", b"x" * (KEPT_BYTES - HEADER_BYTES - 1))]
    kept = keep(b"k" * KEPT_BYTES, b"v" * KEPT_BYTES, headers)
    assert kept == (b"k" * KEPT_BYTES, b"v" * KEPT_BYTES, headers, [])


def test_the_last_headers_are_kept_with_that_of_a_retried_command() -> None:
    own = [("a", b"x" * KEPT_BYTES), ("b", None), RETRY]
    letter = dead_letter("d", "g", record_of(None, b"{", own), INVALID)
    assert letter.headers[:2] == own[1:]
    assert read_back(letter).first == (1, 2, 3)


OLDER = dead_letter("d", "g", record_of(b"k", b"v" * 70_000), INVALID)


@pytest.mark.parametrize("own", [OLDER.headers, OLDER.headers[-4:]], ids=["a copy", "forged"])
def test_a_record_cannot_claim_to_be_truncated(own: Headers) -> None:
    record = record_of(b"k", b"v", own)
    read = read_back(dead_letter("d", "g", record, INVALID))
    assert read.truncated == {}
    assert read.origin_id == origin_id_of_record(record)


@pytest.mark.parametrize("value", [b"", b"no id", b"\xff" * 36, struct.pack(">q", 1)])
def test_a_truncated_dead_letter_without_an_origin_id_has_none(value: bytes) -> None:
    headers = [(name, value if name == "dlq-origin-id" else old) for name, old in OLDER.headers]
    assert origin_id_in(headers) is None
    assert read_back(OLDER._replace(headers=headers)).origin_id is None
