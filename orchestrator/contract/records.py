"""Consumed records, whatever they mean: what they hold, and why one is invalid."""

import re
import struct
from collections.abc import Sequence
from hashlib import blake2b
from operator import methodcaller
from typing import NamedTuple, cast
from uuid import UUID

from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME
from confluent_kafka import Message as Record

from outbox import Headers, Message

LATEST_MS = 253_402_300_799_000  # 9999-12-31: any producer sets timestamps, and datetime ends there
TIMESTAMP_TYPES = {TIMESTAMP_CREATE_TIME: b"CREATE_TIME", TIMESTAMP_LOG_APPEND_TIME: b"LOG_APPEND_TIME"}


# Called through C, which always sees the error that the client leaves behind. A plain call may not
# (CPython's specialised calls trust their callee), and the broken list then ends the process.
read_headers = methodcaller("headers")


def headers_of(record: Record) -> Headers:
    """Return a consumed record's headers: pairs in order, values in bytes; none if unreadable."""
    try:
        return cast("Headers", read_headers(record) or ())
    except (SystemError, UnicodeDecodeError):  # the client cannot decode a name that is not UTF-8
        record.set_headers([])  # it has kept a broken list, and would return that the next time
        return ()


def partition_offset(record: Record) -> tuple[int, int]:
    """Return partition and offset, which a consumed record always has."""
    return cast("tuple[int, int]", (record.partition(), record.offset()))


class Decided(NamedTuple):
    """What became of a record: it was accepted, with this message, or it is a dead letter, and why."""

    partition: int
    offset: int
    message: Message
    refused: "InvalidRecord | None" = None


RETRY_ORIGIN = "dlq-retry-origin"  # of a retried command: the record that it was first
PLACE = re.compile(rb"(\d{1,9}):(\d{1,18}):(\d{1,15})")


def retry_origin(headers: Headers) -> tuple[int, int, int] | None:
    """Return partition, offset and timestamp (Unix ms) of the record that a command was at first.

    None: it was not retried.
    """
    value = dict(headers).get(RETRY_ORIGIN)
    found = PLACE.fullmatch(value) if isinstance(value, bytes) else None
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def hash_parts(parts: Sequence[bytes]) -> UUID:
    """Return a hash of the parts, each with its length before it."""
    text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return UUID(bytes=blake2b(text, digest_size=16).digest())


def origin_id_of_record(record: Record) -> UUID:
    """Return the id that all dead letters of this record share, see `origin_id_of`."""
    place = [
        (record.topic() or "").encode(),
        struct.pack(">i", record.partition()),
        struct.pack(">q", record.offset()),
        struct.pack(">q", record.timestamp()[1]),
    ]
    return hash_parts([*place, record.key() or b"", record.value() or b""])


class InvalidRecord(Exception):
    """A record that no retry makes valid: it becomes a dead letter. reason: one word, a header."""

    exception_name = "orchestrator.InvalidRecord"  # what the dead letter calls it

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class RefusedRow(InvalidRecord):
    """Postgres does not take the row of this record, but others. text: nothing of the row's content."""

    exception_name = "orchestrator.RefusedRow"
    REASON = "refused_by_database"

    def __init__(self, text: str) -> None:
        super().__init__(self.REASON, text)
