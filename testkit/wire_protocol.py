"""The wire protocols of Postgres and Kafka, as far as a proxy needs them: whole messages, by name.

https://www.postgresql.org/docs/current/protocol-message-formats.html
https://kafka.apache.org/protocol
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Frame:
    """One message, whole.

    name: of a request, the statement that it executes or the API that it calls; of an answer, the
    command tag, or the API that it answers. version: Kafka's api_version.
    """

    data: bytes
    name: str
    is_answer: bool
    version: int = 0


class Conversation(Protocol):
    """The state of one connection that is needed to split its bytes into frames."""

    def requests(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete after `data` from the client."""

    def answers(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete after `data` from the server."""


def take(buffer: bytearray, size: int) -> bytes:
    """Take this number of bytes from the front, or none if there are fewer."""
    if not 0 < size <= len(buffer):
        return b""
    taken = bytes(buffer[:size])
    del buffer[:size]
    return taken


# ---- Kafka ----------------------------------------------------------------------------------------

APIS = {
    0: "Produce",
    1: "Fetch",
    2: "ListOffsets",
    3: "Metadata",
    8: "OffsetCommit",
    9: "OffsetFetch",
    10: "FindCoordinator",
    11: "JoinGroup",
    12: "Heartbeat",
    13: "LeaveGroup",
    14: "SyncGroup",
    18: "ApiVersions",
    22: "InitProducerId",
    24: "AddPartitionsToTxn",
    25: "AddOffsetsToTxn",
    26: "EndTxn",
    27: "WriteTxnMarkers",
    28: "TxnOffsetCommit",
    75: "DescribeTopicPartitions",
}


# What is in a transactional id that publishes nothing, and how near to the start of a request.
PURPOSES = {b"-probe": "probe", b"-barrier-": "barrier"}
NEAR = 200


class KafkaConversation:
    """Frames with a length prefix; an answer has its request's correlation id.

    The transactions of probes and barriers are not counted among those that publish: their requests
    have names of their own.
    """

    def __init__(self) -> None:
        self._sent, self._received = bytearray(), bytearray()
        self._asked: dict[int, tuple[str, int]] = {}

    def requests(self, data: bytes) -> Iterator[Frame]:
        """Yield the requests in `data`."""
        self._sent += data
        while frame := take(self._sent, kafka_size(self._sent)):
            key, version, correlation = struct.unpack_from(">hhi", frame, 4)
            name = APIS.get(key, f"API {key}")
            for mark, purpose in PURPOSES.items():
                if mark in frame[:NEAR]:
                    name = f"{name} of a {purpose}"
            self._asked[correlation] = name, version
            yield Frame(frame, name, is_answer=False, version=version)

    def answers(self, data: bytes) -> Iterator[Frame]:
        """Yield the answers in `data`."""
        self._received += data
        while frame := take(self._received, kafka_size(self._received)):
            (correlation,) = struct.unpack_from(">i", frame, 4)
            name, version = self._asked.pop(correlation)
            yield Frame(frame, name, is_answer=True, version=version)


def kafka_size(buffer: bytearray) -> int:
    """Return the size of the first frame, 0 if that is not known yet."""
    return 4 + int(struct.unpack_from(">i", buffer)[0]) if len(buffer) >= 4 else 0


def producer_and_epoch(frame: Frame) -> tuple[int, int]:
    """Return the producer's id and epoch in a transaction's request to its coordinator.

    Those of librdkafka (AddPartitionsToTxn 0, AddOffsetsToTxn 0, EndTxn 1) begin with the client's id,
    the transactional id, the producer's id and its epoch.
    """
    at = 12
    for _ in ("client id", "transactional id"):
        at += 2 + int(struct.unpack_from(">h", frame.data, at)[0])
    producer, epoch = struct.unpack_from(">qh", frame.data, at)
    return int(producer), int(epoch)


def flipped(end_txn: Frame) -> Frame:
    """Return an EndTxn that aborts where this one commits: `committed` is its last byte (v0 to v2)."""
    assert (end_txn.name, end_txn.version < 3) == ("EndTxn", True)
    return Frame(end_txn.data[:-1] + bytes([1 - end_txn.data[-1]]), "EndTxn", False, end_txn.version)


def end_txn_error(answer: bytes) -> int:
    """Return the error code in an answer to EndTxn v0 to v2: size, correlation id, throttle, code."""
    return int(struct.unpack_from(">iiih", answer)[3])


def without_brokers(metadata: Frame) -> Frame | None:
    """Return an answer to Metadata (v9 to v13, as librdkafka asks) that knows of no broker.

    None: it is about no topic. Then librdkafka asks again.
    """
    assert (metadata.name, metadata.is_answer, metadata.version >= 9) == ("Metadata", True, True)
    data, start = metadata.data, 4 + 4 + 1 + 4  # size, correlation id, no tags, throttle time
    count, at = varint(data, start)
    for _ in range(count - 1):
        length, at = varint(data, at + 4)  # node id; host
        length, at = varint(data, at + length - 1 + 4)  # port; rack
        _, at = varint(data, at + max(length - 1, 0))  # no tags
    length, after_cluster = varint(data, at)
    topics, _ = varint(data, after_cluster + max(length - 1, 0) + 4)  # after the controller's id
    if topics <= 1:
        return None
    body = data[4:start] + b"\x01" + data[at:]
    return Frame(struct.pack(">i", len(body)) + body, "Metadata", True, metadata.version)


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return an unsigned varint, and where the next field begins."""
    number = shift = 0
    while data[at] & 0x80:
        number, shift, at = number | (data[at] & 0x7F) << shift, shift + 7, at + 1
    return number | data[at] << shift, at + 1


# ---- Postgres -------------------------------------------------------------------------------------

ENCRYPTION_REQUESTS = {80877103, 80877104}  # SSLRequest, GSSENCRequest: answered by one bare byte


class PostgresConversation:
    """Typed messages, after a start without a type.

    A request of the extended protocol is all that the client sends up to Sync, so that nothing is
    left half said where it is cut.
    """

    def __init__(self) -> None:
        self._sent, self._received = bytearray(), bytearray()
        self._started = False
        self._bare_answers = 0
        self._prepared: dict[bytes, bytes] = {}
        self._portals: dict[bytes, bytes] = {}
        self._request = b""
        self._executed: list[str] = []

    def requests(self, data: bytes) -> Iterator[Frame]:
        """Yield the requests in `data`."""
        self._sent += data
        while not self._started and (message := take(self._sent, size_at(self._sent, 0))):
            encryption = struct.unpack_from(">i", message, 4)[0] in ENCRYPTION_REQUESTS
            self._bare_answers += encryption
            self._started = not encryption
            yield Frame(message, "", is_answer=False)
        while self._started and (message := take(self._sent, size_at(self._sent, 1))):
            self._request += message
            self._understand(message[:1], message[5:])
            if message[:1] not in b"PBDEC":  # the request is not complete yet
                yield Frame(self._request, "; ".join(self._executed), is_answer=False)
                self._request, self._executed = b"", []

    def _understand(self, kind: bytes, body: bytes) -> None:
        """Record the statement that a client's message executes: of Query, or of Execute by names."""
        first, _, rest = body.partition(b"\0")
        match kind:
            case b"Q":
                self._executed.append(first.decode())
            case b"P":
                self._prepared[first] = rest.partition(b"\0")[0]
            case b"B":
                self._portals[first] = self._prepared[rest.partition(b"\0")[0]]
            case b"E":
                self._executed.append(self._portals[first].decode())

    def answers(self, data: bytes) -> Iterator[Frame]:
        """Yield the messages in `data`: CommandComplete by its tag, others by their type."""
        self._received += data
        while message := take(self._received, 1 if self._bare_answers else size_at(self._received, 1)):
            if self._bare_answers:
                self._bare_answers -= 1
            is_tag = message[:1] == b"C"
            name = message[5:-1] if is_tag else message[:1]
            yield Frame(message, name.decode(), is_answer=True)


def size_at(buffer: bytearray, start: int) -> int:
    """Return the size of the first message, whose length follows `start` bytes; 0 if not known."""
    return start + int(struct.unpack_from(">i", buffer, start)[0]) if len(buffer) >= start + 4 else 0
