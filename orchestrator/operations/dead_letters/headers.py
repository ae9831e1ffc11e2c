"""The headers that a dead letter, or a command sent again, has beside its record's own: what it was.

A record that was a dead letter before brings headers of the same names: of each name the last is ours.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

from orchestrator.kafka.reader import datetime_from_ms
from outbox import Headers

RETRY_OF = "dlq-retry-of"  # of a command that was sent again: topic id, partition, offset of the letter
REASON = "dlq-reason"

PLACE = (
    "kafka_dlt-original-topic",
    "kafka_dlt-original-partition",
    "kafka_dlt-original-offset",
    "kafka_dlt-original-timestamp",  # tells two topics of one name apart
    "kafka_dlt-original-consumer-group",
)
NUMBERS = {PLACE[1]: 4, PLACE[2]: 8, PLACE[3]: 8}  # bytes of each

# All that messages.dead_letter adds, and what a retry adds.
ADDED = frozenset(
    {
        *PLACE,
        "kafka_dlt-original-timestamp-type",
        "kafka_dlt-exception-fqcn",
        "kafka_dlt-exception-message",
        REASON,
        RETRY_OF,
    }
)

Header = tuple[str, str | bytes | None]


class Origin(NamedTuple):
    """The record that a dead letter was, as its headers have it. group: whose consumer refused it."""

    topic: bytes
    partition: bytes
    offset: bytes
    timestamp: bytes
    group: bytes

    @property
    def place(self) -> str:
        """Return `topic:partition:offset`."""
        return f"{printable(self.topic)}:{number_in(self.partition)}:{number_in(self.offset)}"

    @property
    def made_at(self) -> datetime:
        """Return the time of the record."""
        return datetime_from_ms(number_in(self.timestamp))


def origin_of(headers: Iterable[Header]) -> Origin | None:
    """Return what a dead letter was; None if its headers do not say."""
    last = dict(headers)
    parts = [part for name in PLACE if isinstance(part := last.get(name), bytes)]
    if len(parts) < len(PLACE):
        return None
    origin = Origin._make(parts)
    sizes = [len(part) for part in origin[1:4]]
    return origin if sizes == list(NUMBERS.values()) else None


def identity_of(origin: Origin, key: bytes | None, value: bytes | None) -> UUID:
    """Return what is the same for all dead letters of one record, and for no other.

    Not the group: each group that reads the record refuses it. But the content: in a topic made anew
    another record may have its place, and even its time. It is stored: made in another way, it would
    not know again what was sent already.
    """
    return name_made_of([*origin[:4], key or b"", value or b""])


def name_made_of(parts: Sequence[bytes]) -> UUID:
    """Return a hash of the parts, each with its length before it."""
    text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return UUID(bytes=blake2b(text, digest_size=16).digest())


def which_are_ours(headers: Headers) -> list[bool]:
    """Say of each header whether we added it: the last of each of our names."""
    last = {name: number for number, (name, _) in enumerate(headers) if name in ADDED}
    return [last.get(name) == number for number, (name, _) in enumerate(headers)]


def number_in(value: bytes) -> int:
    """Return the number in a header, big-endian as Spring writes it."""
    return int.from_bytes(value, "big", signed=True)


def printable(value: bytes) -> str:
    """Return a stranger's word as ASCII of which a terminal obeys nothing, and without white space."""
    return "".join(chr(byte) if 0x20 < byte < 0x7F else f"\\x{byte:02x}" for byte in value)
