"""The dead letter of a record: what it held, byte for byte up to a bound, and which record it was.

A small batch of the input may hold large records. What is kept of each has a bound, so that it is not
copied whole into the outbox and the dead-letter topic, and always fits there. The record itself stays
in the input: what was truncated is named by length and hash, and `dlq retry` takes it from there.
"""

import struct
from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple

from confluent_kafka import Message as Record

from orchestrator.contract.records import (
    TIMESTAMP_TYPES,
    InvalidRecord,
    headers_of,
    origin_id_of_record,
)
from outbox import Headers, Message

KEPT_BYTES = 65_536  # of the value, of the key, and of the headers
HEADER_BYTES = 8  # that a header counts beside its name and value: empty ones take memory, too
ADDED_BYTES = 8_192  # more than the headers have that we add
MAX_LETTER_BYTES = 3 * KEPT_BYTES + ADDED_BYTES

ORIGIN_ID = "dlq-origin-id"  # of a truncated one: made of the whole key and value
TRUNCATED_VALUE = "dlq-truncated-value"
TRUNCATED_KEY = "dlq-truncated-key"
TRUNCATED_HEADERS = "dlq-truncated-headers"


def dead_letter(topic: str, group: str, record: Record, invalid: InvalidRecord) -> Message:
    """Return the record as it came, up to KEPT_BYTES, with Spring's dead-letter headers added.

    Numbers are big-endian as Spring Kafka's DeadLetterPublishingRecoverer writes them.
    """
    kept = keep(record.key(), record.value(), headers_of(record))
    kind, timestamp = record.timestamp()
    origin: list[tuple[str, bytes | None]] = [
        ("kafka_dlt-original-topic", (record.topic() or "").encode()),
        ("kafka_dlt-original-partition", struct.pack(">i", record.partition())),
        ("kafka_dlt-original-offset", struct.pack(">q", record.offset())),
        ("kafka_dlt-original-timestamp", struct.pack(">q", timestamp)),
        ("kafka_dlt-original-timestamp-type", TIMESTAMP_TYPES.get(kind, b"NO_TIMESTAMP_TYPE")),
        ("kafka_dlt-original-consumer-group", group.encode()),
        ("kafka_dlt-exception-fqcn", invalid.exception_name.encode()),
        ("kafka_dlt-exception-message", str(invalid).encode()),
    ]
    if kept.truncated:
        origin += [(ORIGIN_ID, str(origin_id_of_record(record)).encode()), *kept.truncated]
    origin.append(("dlq-reason", invalid.reason.encode()))
    return Message(topic, kept.key, kept.value, [*kept.headers, *origin])


class Kept(NamedTuple):
    """What a dead letter keeps. truncated: a header for each part that is not whole."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    truncated: list[tuple[str, bytes]]


def keep(key: bytes | None, value: bytes | None, headers: Headers) -> Kept:
    """Return the first KEPT_BYTES of key and value, and the last headers that have no more.

    The last, since the last header of a name counts, and those of a retried command come last.
    """
    kept = list(_last_that_fit(headers))[::-1]
    truncated = [
        (name, describe(part))
        for name, part in ((TRUNCATED_KEY, key), (TRUNCATED_VALUE, value))
        if part is not None and len(part) > KEPT_BYTES
    ]
    if len(kept) < len(headers):
        parts = (part for name, text in headers for part in (name.encode(), text or b""))
        truncated.append((TRUNCATED_HEADERS, describe(b"".join(parts))))
    return Kept(key and key[:KEPT_BYTES], value and value[:KEPT_BYTES], kept, truncated)


def _last_that_fit(headers: Headers) -> Iterator[tuple[str, bytes | None]]:
    left = KEPT_BYTES
    for name, value in reversed(headers):
        left -= HEADER_BYTES + len(name.encode()) + len(value or b"")
        if left < 0:
            return
        yield name, value


def describe(part: bytes) -> bytes:
    """Return the length of what was truncated, and the start of its hash."""
    return f"{len(part)} bytes, SHA-256 {sha256(part).hexdigest()[:8]}".encode()
