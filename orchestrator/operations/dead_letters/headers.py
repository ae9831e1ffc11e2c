"""The headers of a dead letter, or of a command that is retried: which record it was.

A record that was a dead letter before has headers of the same names: the last one of each name is ours.
"""

import re
import shlex
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from orchestrator.contract.dead_letters import (
    ORIGIN_ID,
    TRUNCATED_HEADERS,
    TRUNCATED_KEY,
    TRUNCATED_VALUE,
)
from orchestrator.contract.messages import MS_BITS, REASON_TEXT, TRACE_FORMS
from orchestrator.contract.records import PLACE, RETRY_ORIGIN, hash_parts
from orchestrator.kafka.reader import datetime_from_ms
from orchestrator.observability.masking import UUID_TEXT, shown_bytes
from outbox import MESSAGE_ID_HEADER, Headers

RETRY_OF = "dlq-retry-of"  # of a retried command: topic id, partition and offset of the dead letter
REASON = "dlq-reason"
MESSAGE = "kafka_dlt-exception-message"

ORIGIN_HEADERS = (
    "kafka_dlt-original-topic",
    "kafka_dlt-original-partition",
    "kafka_dlt-original-offset",
    "kafka_dlt-original-timestamp",  # tells two topics of one name apart
    "kafka_dlt-original-consumer-group",
)
NUMBER_BYTES = {ORIGIN_HEADERS[1]: 4, ORIGIN_HEADERS[2]: 8, ORIGIN_HEADERS[3]: 8}

# What is not whole, by the header that says so; then the dead letter names its origin id.
TRUNCATED_PARTS = {
    TRUNCATED_VALUE: "value",
    TRUNCATED_KEY: "key",
    TRUNCATED_HEADERS: "headers",
}

# All that contract.dead_letter adds to a record that it keeps whole, and what a retry adds. After the
# last of them comes the message id.
ADDED_HEADERS = frozenset(
    {
        *ORIGIN_HEADERS,
        "kafka_dlt-original-timestamp-type",
        "kafka_dlt-exception-fqcn",
        MESSAGE,
        REASON,
        RETRY_OF,
        RETRY_ORIGIN,
    }
)


def one_of(texts: Iterable[str]) -> re.Pattern[bytes]:
    """Return a pattern of just these texts."""
    return re.compile("|".join(map(re.escape, texts)).encode())


IS_TOKEN = re.compile(r"[\w.-]{1,64}", re.ASCII).fullmatch
TOPIC_NAME = re.compile(rb"[\w.-]{1,249}")
GROUP_NAME = re.compile(rb"[\w.-]{1,255}")

# As contract.insert_refusals makes it: names that are words in ASCII, and nothing else.
REFUSAL_TEXT = re.compile(
    rb"Postgres (?:refuses the row \([0-9A-Z]{5}\)|skips the row, or changes its worker_id)"
    rb": table [\w$]{1,63}"
    rb"(?:, column [\w$]{1,63}(?: \([a-z ]{1,30}(?:\(\d{1,8}\))?\))?)?(?:, constraint [\w$]{1,63})?"
    rb"(?:, triggers(?: [\w$]{1,63}){1,20})?"
)
IS_REFUSAL = REFUSAL_TEXT.fullmatch

# What values of these headers look like that hold nothing but what they should.
HARMLESS_VALUES = {
    ORIGIN_HEADERS[0]: TOPIC_NAME,
    ORIGIN_HEADERS[4]: GROUP_NAME,
    "kafka_dlt-original-timestamp-type": re.compile(rb"(CREATE|LOG_APPEND)_TIME|NO_TIMESTAMP_TYPE"),
    "kafka_dlt-exception-fqcn": re.compile(rb"orchestrator\.(Invalid(Record|Command)|RefusedRow)"),
    MESSAGE: re.compile(one_of(REASON_TEXT.values()).pattern + b"|" + REFUSAL_TEXT.pattern),
    REASON: one_of(REASON_TEXT),
    RETRY_OF: re.compile(UUID_TEXT.pattern + rb":\d{1,9}:\d{1,18}"),
    RETRY_ORIGIN: PLACE,
    **dict.fromkeys(TRUNCATED_PARTS, re.compile(rb"\d{1,10} bytes, SHA-256 [\da-f]{8}")),
    "traceparent": TRACE_FORMS["traceparent"],
}

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
        return f"{shown_bytes(self.topic, TOPIC_NAME)}:{partition}:{offset}"

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
        topic, group = shown_bytes(self.topic, TOPIC_NAME), shown_bytes(self.group, GROUP_NAME)
        return f"topic {topic}, group {group}"

    @property
    def settings(self) -> str:
        """Return the settings of its installation, as a shell takes them."""
        topic = shlex.quote(shown_bytes(self.topic, TOPIC_NAME))
        group = shlex.quote(shown_bytes(self.group, GROUP_NAME))
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


def block_of(headers: Headers) -> Headers:
    """Return the headers that we added to a dead letter, and what comes after them.

    What comes before them is the record's own, whatever its name: it may be the copy of a dead letter.
    """
    starts = [number for number, (name, _) in enumerate(headers) if name == ORIGIN_HEADERS[0]]
    return headers[starts[-1] :] if starts else ()


def truncated_parts(headers: Headers) -> Mapping[str, str]:
    """Return length and hash of what a dead letter has not whole, by `value`, `key` or `headers`."""
    return {
        TRUNCATED_PARTS[name]: str(shown_header(name, value)[1])
        for name, value in block_of(headers)
        if name in TRUNCATED_PARTS
    }


def origin_id_in(headers: Headers) -> UUID | None:
    """Return the origin id that a truncated dead letter names."""
    value = dict(block_of(headers)).get(ORIGIN_ID)
    return UUID(value.decode()) if value and UUID_TEXT.fullmatch(value) else None


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


def shown_header(name: str, value: bytes | None) -> tuple[str, object]:
    """Return a header as it may be shown: any producer may have set it, so its form decides."""
    if not IS_TOKEN(name):
        name = shown_bytes(name.encode("utf-8", "backslashreplace"))
    if value is None:
        return name, None
    number = decode_number(value) if len(value) == NUMBER_BYTES.get(name) else -1
    if 0 <= number < 10 ** (2 * len(value) - 2):  # text makes a larger number
        return name, number
    return name, shown_bytes(value, HARMLESS_VALUES.get(name, UUID_TEXT))


def encode_place(place: Place) -> bytes:
    """Return the header by which a consumer knows which record a retried command was."""
    partition, offset, time_ms = place
    return f"{partition}:{offset}:{max(time_ms, 0) % (1 << MS_BITS)}".encode()


def decode_number(value: bytes) -> int:
    """Return the number in a header, big-endian as Spring writes it."""
    return int.from_bytes(value, "big", signed=True)
