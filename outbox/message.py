"""What goes into the outbox and what comes out of it."""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID
from zlib import crc32

Headers = Sequence[tuple[str, bytes | None]]

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
    stored. headers: None if they cannot be read.
    """

    lane: int
    id: int
    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers | None
    message_id: str
    age_s: float
    size_bytes: int


def lane_of(key: bytes, lanes: int) -> int:
    """Return the lane of a key: the same in every process and every release (never `hash`)."""
    return crc32(key) % lanes


TOPIC_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")


@lru_cache(1000)
def is_topic_name(name: str) -> bool:
    """Say whether Kafka allows a topic of this name (its class Topic)."""
    return TOPIC_NAME.fullmatch(name) is not None


def encode_headers(headers: Headers) -> str | None:
    """Return headers as the JSON of outbox.headers; None for none, the usual case.

    Raises ValueError if a name is not UTF-8.
    """
    if not headers:
        return None
    return json.dumps(
        [(utf8(name), None if value is None else b64encode(value).decode()) for name, value in headers],
        separators=(",", ":"),
    )


def decode_headers(stored: str | None) -> Headers:
    """Return the headers that `encode_headers` stored, bytes for bytes.

    Raises ValueError, without quoting them, if another writer stored something else. Line breaks in the
    base64 are what Postgres's encode() makes.
    """
    try:
        return [_decode_header(header) for header in json.loads(stored or "[]") or ()]
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ValueError("headers cannot be read") from None


def readable_headers(stored: str | None) -> Headers | None:
    """Return headers that were stored; None if they cannot be read."""
    try:
        return decode_headers(stored)
    except ValueError:
        return None


def fault_of(topic: str, headers: Headers | None, topics: Collection[str] | None) -> str | None:
    """Return why a row can never be sent; None if it may be.

    headers: None if they cannot be read. topics: those that a relay may send to; None: any.
    """
    if headers is None:
        return "its headers are not [[name, base64 or null], ...]"
    if not is_topic_name(topic):
        return "Kafka allows no topic of this name"
    return None if topics is None or topic in topics else "its topic is none that relays may send to"


def _decode_header(header: list[Any]) -> tuple[str, bytes | None]:
    if not isinstance(header, list):
        raise TypeError
    name, value = header
    decoded = None if value is None else b64decode(value.replace("\n", ""), validate=True)
    return utf8(name), decoded


def utf8(text: str) -> str:
    """Return a text that has a form in UTF-8: JSON may hold half a character. Raises ValueError."""
    text.encode()
    return text
