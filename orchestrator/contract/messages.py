"""The three messages: the API's command, the deploy order, the dead letter.

Bytes are parsed here, once; what comes out is valid, what is not valid says why without quoting
itself: a camera URL carries a password.
"""

import enum
import re
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from operator import methodcaller
from typing import cast
from uuid import UUID

import msgspec
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME
from confluent_kafka import Message as Record

from outbox import Headers, Message

TRACE_HEADERS = frozenset({"traceparent", "tracestate"})  # W3C Trace Context: travels along


class Command(msgspec.Struct, frozen=True):
    """What the API asks for. Unknown fields are ignored."""

    scenario_uuid: UUID
    camera_url: str


class DeployOrder(msgspec.Struct, frozen=True):
    """What the Runner gets: exactly these fields, in this order."""

    worker_id: UUID
    scenario_uuid: UUID
    camera_url: str


class Reason(enum.Enum):
    """Why a record is a dead letter; the value is the `dlq-reason` header."""

    EMPTY = "empty"
    TOO_LONG = "too_long"
    NOT_JSON = "not_json"
    WRONG_FIELDS = "wrong_fields"
    URL_CHARACTERS = "url_characters"
    URL_SCHEME = "url_scheme"


EXPLANATION = {
    Reason.EMPTY: "the record has no value",
    Reason.TOO_LONG: "the value is longer than MAX_MESSAGE_BYTES",
    Reason.NOT_JSON: "the value is not JSON in UTF-8, or is nested too deeply",
    Reason.WRONG_FIELDS: "scenario_uuid must be a UUID and camera_url a string",
    Reason.URL_CHARACTERS: "camera_url holds white space or a control character",
    Reason.URL_SCHEME: "camera_url is no URL with a host and a scheme of CAMERA_URL_SCHEMES",
}


class Rejected(Exception):
    """The record is no valid command."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(EXPLANATION[reason])
        self.reason = reason


class CommandParser:
    """Checks commands. max_bytes: of the record's value; schemes: lower case."""

    def __init__(self, max_bytes: int, schemes: Sequence[str]) -> None:
        self._max_bytes = max_bytes
        self._decode = msgspec.json.Decoder(Command).decode
        names = "|".join(re.escape(scheme) for scheme in schemes)
        self._is_url = re.compile(
            rf"(?a:{names})://[^/?#{FORBIDDEN}][^{FORBIDDEN}]*", re.IGNORECASE
        ).fullmatch

    def parse(self, value: bytes | None) -> Command:
        """Return the command in a record's value. Raises Rejected, and nothing else."""
        if not value:
            raise Rejected(Reason.EMPTY)
        if len(value) > self._max_bytes:  # before anything reads it
            raise Rejected(Reason.TOO_LONG)
        try:
            command = self._decode(value)
        except msgspec.ValidationError:
            raise Rejected(Reason.WRONG_FIELDS) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Rejected(Reason.NOT_JSON) from None
        if not self._is_url(command.camera_url):
            is_bad = HAS_FORBIDDEN(command.camera_url)
            raise Rejected(Reason.URL_CHARACTERS if is_bad else Reason.URL_SCHEME)
        return command


# White space (RFC 3986 has none, and masks in logs end there), C0, DEL and C1 controls (NUL among them:
# Postgres's text has none), and surrogates, which UTF-8 lacks.
FORBIDDEN = "\\s\x00-\x1f\x7f-\x9f\ud800-\udfff"
HAS_FORBIDDEN = re.compile(f"[{FORBIDDEN}]").search

encode = msgspec.json.Encoder().encode
encode_order: Callable[[DeployOrder], bytes] = encode


def as_text(name: UUID) -> bytes:
    """Return a UUID as people write it; three times as fast as str()."""
    return encode(name)[1:-1]  # without JSON's quotes


def deploy_order(
    topic: str, order: DeployOrder, record: Record, event_source: str | None = None
) -> Message:
    """Return the outbox message of an order: keyed by scenario, about the worker.

    event_source: makes it a CloudEvent from there.
    """
    own = headers_of(record)
    headers = [header for header in own if header[0] in TRACE_HEADERS] if own else []
    if event_source:
        headers += cloud_event(order, record, event_source)
    return Message(
        topic,
        as_text(order.scenario_uuid),
        encode_order(order),
        headers,
        order.worker_id,
    )


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
        ("ce_id", as_text(order.worker_id)),
        ("ce_subject", as_text(order.scenario_uuid)),
    ]
    kind, time_ms = record.timestamp()
    if kind in TIMESTAMP_TYPES and 0 <= time_ms <= LATEST_MS:
        at = datetime.fromtimestamp(time_ms / 1000, UTC)
        headers.append(("ce_time", f"{at:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03}Z".encode()))
    return headers


# Called by way of C, which always sees the error that the client leaves behind. A plain call may not
# (CPython's specialised calls trust their callee), and the broken list then ends the process.
read_headers = methodcaller("headers")


def headers_of(record: Record) -> Headers:
    """Return a consumed record's headers: pairs in order, values in bytes; none if unreadable.

    To be called once a record: after a failure the client returns a broken list.
    """
    try:
        return cast("Headers", read_headers(record) or ())
    except (SystemError, UnicodeDecodeError):  # the client cannot decode a name that is not UTF-8
        return ()


LATEST_MS = 253_402_300_799_000  # 9999-12-31: timestamps come from strangers, datetime ends there
TIMESTAMP_TYPES = {TIMESTAMP_CREATE_TIME: b"CREATE_TIME", TIMESTAMP_LOG_APPEND_TIME: b"LOG_APPEND_TIME"}


def dead_letter(topic: str, group: str, record: Record, rejected: Rejected) -> Message:
    """Return the record as it came, byte for byte, with Spring's dead-letter headers added.

    Numbers are big-endian as Spring Kafka's DeadLetterPublishingRecoverer writes them.
    """
    kind, timestamp = record.timestamp()
    origin: list[tuple[str, bytes | None]] = [
        ("kafka_dlt-original-topic", (record.topic() or "").encode()),
        ("kafka_dlt-original-partition", struct.pack(">i", record.partition())),
        ("kafka_dlt-original-offset", struct.pack(">q", record.offset())),
        ("kafka_dlt-original-timestamp", struct.pack(">q", timestamp)),
        ("kafka_dlt-original-timestamp-type", TIMESTAMP_TYPES.get(kind, b"NO_TIMESTAMP_TYPE")),
        ("kafka_dlt-original-consumer-group", group.encode()),
        ("kafka_dlt-exception-fqcn", b"orchestrator.InvalidCommand"),
        ("kafka_dlt-exception-message", str(rejected).encode()),
        ("dlq-reason", rejected.reason.value.encode()),
    ]
    return Message(topic, record.key(), record.value(), [*headers_of(record), *origin])
