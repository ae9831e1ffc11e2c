"""The headers of a dead letter, or of a command that is retried: which record it was.

A record that was a dead letter before has headers of the same names: the last one of each name is ours.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

from orchestrator.kafka.reader import datetime_from_ms
from outbox import MESSAGE_ID_HEADER, Headers

RETRY_OF = "dlq-retry-of"  # of a retried command: topic id, partition and offset of the dead letter
REASON = "dlq-reason"

ORIGIN_HEADERS = (
    "kafka_dlt-original-topic",
    "kafka_dlt-original-partition",
    "kafka_dlt-original-offset",
    "kafka_dlt-original-timestamp",  # tells two topics of one name apart
    "kafka_dlt-original-consumer-group",
)
NUMBER_BYTES = {ORIGIN_HEADERS[1]: 4, ORIGIN_HEADERS[2]: 8, ORIGIN_HEADERS[3]: 8}

# All that records.dead_letter adds, and what a retry adds. After the last of them comes the message id.
ADDED_HEADERS = frozenset(
    {
        *ORIGIN_HEADERS,
        "kafka_dlt-original-timestamp-type",
        "kafka_dlt-exception-fqcn",
        "kafka_dlt-exception-message",
        REASON,
        RETRY_OF,
    }
)

Header = tuple[str, str | bytes | None]


class Origin(NamedTuple):
    """The record that became a dead letter, as the headers have it. group: of the consumer."""

    topic: bytes
    partition: bytes
    offset: bytes
    timestamp: bytes
    group: bytes

    @property
    def name(self) -> str:
        """Return `topic:partition:offset`."""
        partition, offset = decode_number(self.partition), decode_number(self.offset)
        return f"{escape_bytes(self.topic)}:{partition}:{offset}"

    @property
    def created_at(self) -> datetime:
        """Return the record's timestamp."""
        return datetime_from_ms(decode_number(self.timestamp))


def origin_of(headers: Iterable[Header]) -> Origin | None:
    """Return which record a dead letter was; None if its headers do not say."""
    last = dict(headers)
    parts = [part for name in ORIGIN_HEADERS if isinstance(part := last.get(name), bytes)]
    if len(parts) < len(ORIGIN_HEADERS):
        return None
    origin = Origin._make(parts)
    sizes = [len(part) for part in origin[1:4]]
    return origin if sizes == list(NUMBER_BYTES.values()) else None


def origin_id_of(origin: Origin, key: bytes | None, value: bytes | None) -> UUID:
    """Return an id that all dead letters of one record share, and no other dead letter has.

    Without the group: each group that reads the record makes a dead letter of it. With the content: in
    a recreated topic another record may have the same offset, and even the same time. The id is stored:
    if it were made in another way, commands that were retried already would not be recognised.
    """
    return hash_parts([*origin[:4], key or b"", value or b""])


def hash_parts(parts: Sequence[bytes]) -> UUID:
    """Return a hash of the parts, each with its length before it."""
    text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return UUID(bytes=blake2b(text, digest_size=16).digest())


def added_by_us(headers: Headers) -> list[bool]:
    """Return for each header whether we added it: the last one of each of our names.

    A message id is the relay's if it follows what we enqueued last; elsewhere it is the record's own.
    """
    last = {name: number for number, (name, _) in enumerate(headers) if name in ADDED_HEADERS}
    ends = {last.get(REASON), last.get(RETRY_OF)}
    return [
        number - 1 in ends if name == MESSAGE_ID_HEADER else last.get(name) == number
        for number, (name, _) in enumerate(headers)
    ]


def decode_number(value: bytes) -> int:
    """Return the number in a header, big-endian as Spring writes it."""
    return int.from_bytes(value, "big", signed=True)


def escape_bytes(value: bytes) -> str:
    """Escape untrusted bytes as printable ASCII without white space or terminal control characters."""
    return "".join(chr(byte) if 0x20 < byte < 0x7F else f"\\x{byte:02x}" for byte in value)
