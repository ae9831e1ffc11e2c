"""What goes into the outbox and what comes out of it."""

import json
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID
from zlib import crc32

Headers = Sequence[tuple[str, bytes | None]]
StoredHeaders = Sequence[tuple[str, str | None]]  # as the JSON of outbox.headers: values in base64

MESSAGE_ID_HEADER = "message-id"  # of every record; a row's own header of this name comes before it


class Message(NamedTuple):
    """One record to be: published once the transaction that enqueued it has committed.

    topic: Kafka topic. key: decides the lane and the partition; rows of one key keep their order;
    None: no order. value: None is a tombstone. headers: (name, value) pairs, in order, repeats
    allowed. aggregate_id: whom the message is about; handed to `on_published` once it is in Kafka.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    aggregate_id: UUID | None = None


class OutboxRow(NamedTuple):
    """A claimed row.

    message_id: names the message for good; its record carries it as a header. age_s: seconds since the
    inserting transaction began, by Postgres's clock. size_bytes: of key, value and headers, as they are
    stored.
    """

    lane: int
    id: int
    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, str | None]] | None
    message_id: str
    age_s: float
    size_bytes: int


def lane_of(key: bytes, lanes: int) -> int:
    """Return the lane of a key: the same in every process and every release (never `hash`)."""
    return crc32(key) % lanes


def encode_headers(headers: Headers) -> str | None:
    """Return headers as the JSON of outbox.headers; None for none, the usual case."""
    if not headers:
        return None
    return json.dumps(
        [(name, None if value is None else b64encode(value).decode()) for name, value in headers],
        separators=(",", ":"),
    )


def decode_headers(stored: StoredHeaders) -> list[tuple[str, bytes | None]]:
    """Return the headers that `encode_headers` stored, bytes for bytes."""
    return [(name, None if value is None else b64decode(value)) for name, value in stored]
