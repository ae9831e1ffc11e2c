"""The messages of the contract: a command comes in, the deploy order of its worker goes out.

Bytes are parsed here, once; what comes out is valid. An error says what is wrong without quoting the
record: a camera URL carries a password.

Invariant: a worker's id is a function of its record's position in the input, and a command that was
retried has that of the record that it was first. If positions are ever lost or moved back, or a command
is retried twice, consuming yields the same ids, and the unique constraint turns the repeat into a
counted no-op instead of a second worker.
"""

import enum
import re
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

import msgspec
from confluent_kafka import Message as Record

from orchestrator.contract.camera_urls import INVISIBLE, has_unsafe_host
from orchestrator.contract.records import (
    LATEST_MS,
    TIMESTAMP_TYPES,
    InvalidRecord,
    RefusedRow,
    headers_of,
    partition_offset,
    retry_origin,
)
from outbox import Headers, Message

# W3C Trace Context travels along, in its own form and no longer than that: who writes to the input
# decides what is in its headers.
TRACE_FORMS = {
    "traceparent": re.compile(rb"[\da-f]{2}-[\da-f]{32}-[\da-f]{16}-[\da-f]{2}"),
    "tracestate": re.compile(rb"[ -~]{1,512}"),
}


class Command(msgspec.Struct, frozen=True):
    """What the API asks for. Unknown fields are ignored."""

    scenario_uuid: UUID
    camera_url: str


class DeployOrder(msgspec.Struct, frozen=True):
    """What the Runner gets: exactly these fields, in this order."""

    worker_id: UUID
    scenario_uuid: UUID
    camera_url: str


class InvalidReason(enum.StrEnum):
    """Why a record is a dead letter; the value is the `dlq-reason` header."""

    EMPTY = "empty"
    TOO_LONG = "too_long"
    NOT_JSON = "not_json"
    WRONG_FIELDS = "wrong_fields"
    URL_CHARACTERS = "url_characters"
    URL_SCHEME = "url_scheme"
    REFUSED_BY_DATABASE = RefusedRow.REASON


REASON_TEXT = {
    InvalidReason.EMPTY: "the record has no value",
    InvalidReason.TOO_LONG: "the value is longer than MAX_MESSAGE_BYTES",
    InvalidReason.NOT_JSON: "the value is not JSON in UTF-8, or is nested too deeply",
    InvalidReason.WRONG_FIELDS: "scenario_uuid must be a UUID and camera_url a string",
    InvalidReason.URL_CHARACTERS: "camera_url holds a control or invisible character",
    InvalidReason.URL_SCHEME: "camera_url is no URL with a host and a scheme of CAMERA_URL_SCHEMES",
    InvalidReason.REFUSED_BY_DATABASE: "Postgres refuses the row of this command",
}


class InvalidCommand(InvalidRecord):
    """The record is no valid command."""

    exception_name = "orchestrator.InvalidCommand"
    reason: InvalidReason

    def __init__(self, reason: InvalidReason) -> None:
        super().__init__(reason, REASON_TEXT[reason])


class OrderBuilder:
    """Builds the deploy order that a command's record asks for.

    topic: of the orders. event_source: makes an order a CloudEvent from there.
    """

    def __init__(self, parser: "CommandParser", topic: str, event_source: str | None = None) -> None:
        self._parse = parser.parse
        self._topic = topic
        self._event_source = event_source

    def build(self, record: Record, topic_id: UUID) -> tuple[DeployOrder, Message]:
        """Return the order and its message. topic_id: of the input. Raises InvalidCommand."""
        command = self._parse(record.value())
        headers = headers_of(record)
        worker = worker_id_of(record, topic_id, headers)
        order = DeployOrder(worker, command.scenario_uuid, command.camera_url)
        return order, deploy_order(self._topic, order, record, headers, self._event_source)


class CommandParser:
    """Checks commands. max_bytes: of the record's value; schemes: lower case, or ANY_SCHEME."""

    def __init__(self, max_bytes: int, schemes: Sequence[str]) -> None:
        self._max_bytes = max_bytes
        self._decode = msgspec.json.Decoder(Command).decode
        self._is_url = camera_url_pattern(schemes).match

    def parse(self, value: bytes | None) -> Command:
        """Return the command in a record's value. Raises InvalidCommand, and nothing else."""
        if not value:
            raise InvalidCommand(InvalidReason.EMPTY)
        if len(value) > self._max_bytes:  # before anything reads it
            raise InvalidCommand(InvalidReason.TOO_LONG)
        try:
            command = self._decode(value)
        except msgspec.ValidationError:
            raise InvalidCommand(InvalidReason.WRONG_FIELDS) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise InvalidCommand(InvalidReason.NOT_JSON) from None
        if HAS_FORBIDDEN(command.camera_url):
            raise InvalidCommand(InvalidReason.URL_CHARACTERS)
        if not self._is_url(command.camera_url) or has_unsafe_host(command.camera_url):
            raise InvalidCommand(InvalidReason.URL_SCHEME)
        return command


# C0, DEL and C1 controls (NUL among them: Postgres's text has none), white space but the space,
# surrogates, which UTF-8 lacks, and what cannot be seen.
FORBIDDEN = (
    "\x00-\x1f\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ud800-\udfff" + INVISIBLE
)
HAS_FORBIDDEN = re.compile(f"[{FORBIDDEN}]").search

# What follows "://": a host, behind user and password if there are any. A password may hold "@" or "/".
# A space may stand anywhere but in a host and at the end. Nothing here reads on behind a host: it would
# for each "@" that may end a password, and take minutes over a long text.
HOST = r"(?!\[\])[^ /?#:@]+"  # up to a colon; "[]" is no address
HOST_URL = rf"(?:[^/?#]*@)?{HOST}(?::[^/?#@]*)?(?:[/?#]|$)|[^/?#]+/[^?#]*@{HOST}(?:[/?#:]|$)"
# A file or a device of the Runner's machine needs no host, and no scheme.
LOCAL_SCHEMES = ("file", "v4l2")
LOCAL_PATH = r"/[^/]"
# Where the Runner waits for the camera's stream there is no host either: srt://:9000, udp://@:1234
LISTENING_SCHEMES = ("srt", "rist", "udp", "rtp")
LISTENING_PORT = r"@?:[0-9]+(?:[/?#]|$)"
ANY_SCHEME = "*"  # any text at all, as in the platform's table


def camera_url_pattern(schemes: Sequence[str]) -> re.Pattern[str]:
    """Return how a camera URL without FORBIDDEN begins. schemes: lower case, or ANY_SCHEME."""
    forms = [rf"(?a:{'|'.join(map(re.escape, schemes))})://(?:{HOST_URL})"]
    if local := [scheme for scheme in LOCAL_SCHEMES if scheme in schemes]:
        forms.append(rf"(?:(?a:{'|'.join(local)})://)?{LOCAL_PATH}")
    if listening := [scheme for scheme in LISTENING_SCHEMES if scheme in schemes]:
        forms.append(rf"(?a:{'|'.join(listening)})://{LISTENING_PORT}")
    if ANY_SCHEME in schemes:
        forms.append("[^ ]")
    return re.compile(rf"(?!.* $)(?:{'|'.join(forms)})", re.IGNORECASE)


RECORD_POSITION = struct.Struct(">16siq")  # topic id, partition, offset
MS_BITS, HASH_BITS, LOW_BITS = 48, 74, 62

# As MessagePack, since that makes a UUID five times as fast as UUID() does.
SIXTEEN_BYTES = b"\xc4\x10"
decode_uuid = msgspec.msgpack.Decoder(UUID).decode


def worker_id(topic_id: UUID, partition: int, offset: int, timestamp_ms: int) -> UUID:
    """Return the UUIDv8 (RFC 9562) of a record: 48 bits of its time in ms, 74 bits of hash.

    Ordered by time, so that the unique index grows at its end. A record without a timestamp counts
    as time 0.
    """
    position = RECORD_POSITION.pack(topic_id.bytes, partition, offset)
    digest = int.from_bytes(blake2b(position, digest_size=10).digest(), "big") >> (80 - HASH_BITS)
    time_ms = max(timestamp_ms, 0) & ((1 << MS_BITS) - 1)
    high, low = digest >> LOW_BITS, digest & ((1 << LOW_BITS) - 1)
    made = time_ms << 80 | 8 << 76 | high << 64 | 0b10 << 62 | low
    return decode_uuid(SIXTEEN_BYTES + made.to_bytes(16, "big"))


def worker_id_of(record: Record, topic_id: UUID, headers: Headers) -> UUID:
    """Return the id of the worker that a record of the input becomes. headers: the record's.

    A command that was retried is the one that the dead letter was, and gets the same id.
    """
    place = retry_origin(headers) if headers else None
    return worker_id(topic_id, *(place or (*partition_offset(record), record.timestamp()[1])))


def record_time_ms(worker: UUID) -> int:
    """Return the time of the record that a worker's id was made of, Unix ms; 0 if it had none."""
    return worker.int >> 80  # of 128 bits, the first 48


def deploy_order(
    topic: str, order: DeployOrder, record: Record, own: Headers, event_source: str | None = None
) -> Message:
    """Return the outbox message of an order: keyed by scenario, about the worker.

    own: the record's headers. event_source: makes it a CloudEvent from there.
    """
    headers = trace_headers(own) if own else []
    if event_source:
        headers += cloud_event(order, record, event_source)
    return Message(
        topic,
        encode_uuid(order.scenario_uuid),
        encode_order(order),
        headers,
        order.worker_id,
    )


def trace_headers(own: Headers) -> list[tuple[str, bytes | None]]:
    """Return the trace headers among a record's: the last one of each name, if it has its form."""
    last = {name: value for name, value in own if name in TRACE_FORMS}
    return [
        (name, value)
        for name, value in last.items()
        if value is not None and TRACE_FORMS[name].fullmatch(value)
    ]


encode = msgspec.json.Encoder().encode
encode_order: Callable[[DeployOrder], bytes] = encode


class OrderIds(NamedTuple):
    """The ids in a record of the output topic; None if it is no valid deploy order."""

    worker_id: UUID | None
    scenario_uuid: UUID | None


decode_order = msgspec.json.Decoder(DeployOrder).decode


def order_ids(record: Record) -> OrderIds:
    """Return the ids in a record of the output topic."""
    return order_ids_in(record.value())


def order_ids_in(value: bytes | None) -> OrderIds:
    """Return the ids in the value of an order."""
    try:
        order = decode_order(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return OrderIds(None, None)
    return OrderIds(order.worker_id, order.scenario_uuid)


def encode_uuid(uuid: UUID) -> bytes:
    """Return a UUID's text in ASCII; three times as fast as str()."""
    return encode(uuid)[1:-1]  # without JSON's quotes


CLOUD_EVENT = [
    ("content-type", b"application/json"),
    ("ce_specversion", b"1.0"),
    ("ce_type", b"vap.worker.deploy"),
]


def cloud_event(order: DeployOrder, record: Record, source: str) -> list[tuple[str, bytes]]:
    """Return the headers of a CloudEvent 1.0 in Kafka's binary content mode."""
    headers = [
        *CLOUD_EVENT,
        ("ce_source", source.encode()),
        ("ce_id", encode_uuid(order.worker_id)),
        ("ce_subject", encode_uuid(order.scenario_uuid)),
    ]
    kind, time_ms = record.timestamp()
    if kind in TIMESTAMP_TYPES and 0 <= time_ms <= LATEST_MS:
        at = datetime.fromtimestamp(time_ms / 1000, UTC)
        headers.append(("ce_time", f"{at:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03}Z".encode()))
    return headers
