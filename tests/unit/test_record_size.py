"""What a record counts in the bound of a batch: all of it that a writer of the input can make large."""

from typing import Any

import pytest
from confluent_kafka import Message as Record

from orchestrator.consumer.session import HEADER_BYTES, size_of


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, 0),
        ({"value": b"v" * 30, "key": b"k" * 20}, 50),
        ({"headers": [("h", b"x" * 300), ("h", None)]}, 302 + 2 * HEADER_BYTES),
        ({"value": b"{", "headers": [("", b"")] * 1_000}, 1 + 1_000 * HEADER_BYTES),
    ],
)
def test_value_key_and_headers_count(fields: dict[str, Any], size: int) -> None:
    assert size_of(Record(topic="t", partition=0, offset=1, **fields)) == size
