"""The headers of a dead letter, or of a command that is retried: which record it was.

A record that was a dead letter before has headers of the same names: the last one of each name is ours.
"""

import shlex
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from orchestrator.contract.messages import MS_BITS
from orchestrator.contract.records import RETRY_ORIGIN, hash_parts
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
        RETRY_ORIGIN,
    }
)

Place = tuple[int, int, int]  # partition, offset and timestamp (Unix ms) of a record of the input
Header = tuple[str, str | bytes | None]


class Origin(NamedTuple):
    """The record that became a dead letter, as the headers have it. group: of the consumer."""

    topic: bytes
    partition: bytes
    offset: bytes
    timestamp: bytes
    group: bytes

    @property
    def place(self) -> Place:
        """Return partition, offset and timestamp, Unix ms."""
        return decode_number(self.partition), decode_number(self.offset), decode_number(self.timestamp)

    @property
    def name(self) -> str:
        """Return `topic:partition:offset`."""
        partition, offset, _ = self.place
        return f"{escape_bytes(self.topic)}:{partition}:{offset}"

    @property
    def input(self) -> "Input":
        """Return which input the record came from."""
        return Input(self.topic, self.group)

    @property
    def created_at(self) -> datetime:
        """Return the record's timestamp."""
        return datetime_from_ms(decode_number(self.timestamp))


class Input(NamedTuple):
    """An input that dead letters come from. group: of the consumer."""

    topic: bytes
    group: bytes

    def __str__(self) -> str:
        return f"topic {escape_bytes(self.topic)}, group {escape_bytes(self.group)}"

    @property
    def settings(self) -> str:
        """Return the settings of its installation, as a shell takes them."""
        topic, group = (shlex.quote(escape_bytes(part)) for part in self)
        return f"INPUT_TOPIC={topic} CONSUMER_GROUP={group}"


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


def added_by_us(headers: Headers) -> list[bool]:
    """Return for each header whether we added it: the last one of each of our names.

    A message id is the relay's if it follows what we enqueued last; elsewhere it is the record's own.
    """
    last = {name: number for number, (name, _) in enumerate(headers) if name in ADDED_HEADERS}
    ends = {last.get(name) for name in (REASON, RETRY_OF, RETRY_ORIGIN)}
    return [
        number - 1 in ends if name == MESSAGE_ID_HEADER else last.get(name) == number
        for number, (name, _) in enumerate(headers)
    ]


def encode_place(place: Place) -> bytes:
    """Return the header by which a consumer knows which record a retried command was."""
    partition, offset, time_ms = place
    return f"{partition}:{offset}:{max(time_ms, 0) % (1 << MS_BITS)}".encode()


def decode_number(value: bytes) -> int:
    """Return the number in a header, big-endian as Spring writes it."""
    return int.from_bytes(value, "big", signed=True)


def escape_bytes(value: bytes) -> str:
    """Escape untrusted bytes as printable ASCII without white space or terminal control characters."""
    return "".join(chr(byte) if 0x20 < byte < 0x7F else f"\\x{byte:02x}" for byte in value)
