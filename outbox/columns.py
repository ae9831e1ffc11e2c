"""Messages as the columns of one INSERT, each field checked by its name."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from uuid import UUID
from zlib import crc32

from outbox.message import Headers, Message, encode_headers, is_topic_name

NoneType = type(None)
KINDS: dict[str, tuple[type, ...]] = {
    "topic": (str,),
    "key": (bytes, NoneType),
    "value": (bytes, NoneType),
    "headers": (list, tuple),
    "aggregate_id": (UUID, NoneType),
}
HINTS = {
    ("key", str): "encode it",
    ("value", str): "encode it",
    ("headers", dict): "give pairs, list(headers.items())",
    ("aggregate_id", str): "UUID(...) if it is one, or else uuid5 of it",
    ("aggregate_id", int): "uuid5 of it, in a namespace of yours",
}


class Columns(NamedTuple):
    """Messages by column, in the order of the statement's parameters.

    lanes: their number; None: the database knows it. hashes: by them and `lanes` the database finds the
    lane. headers: as JSON.
    """

    lanes: int | None
    hashes: list[int]
    topics: list[str]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[str | None]
    aggregate_ids: list[UUID | None]


def columns_of(messages: Message | Iterable[Message], lanes: int | None) -> Columns:
    """Return the columns of messages.

    Raises TypeError or ValueError that names the message, by its index, and the field.
    """
    rows = [messages] if isinstance(messages, Message) else list(messages)
    for kind in set(map(type, rows)) - {Message}:
        if not issubclass(kind, Message):
            raise TypeError(f"messages are Message, not {kind.__name__}")
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[], [], [], [], []]
    for name, column in zip(KINDS, columns, strict=True):
        if set(map(type, column)) - set(KINDS[name]):
            _check_kinds(name, column)
    topics, keys, values, headers, aggregate_ids = columns
    for topic in set(topics):
        if not is_topic_name(topic):
            raise ValueError(
                f"messages[{topics.index(topic)}].topic: Kafka allows no topic of the name {topic!r}"
            )
    encoded = [_encode(index, one) if one else None for index, one in enumerate(headers)]
    hashes = [hash_of_message(*content) for content in zip(keys, values, encoded, strict=True)]
    return Columns(lanes, hashes, topics, keys, values, encoded, aggregate_ids)


def _check_kinds(name: str, column: Sequence[object]) -> None:
    """Raise TypeError at the first of a column that has another type. Its value is not quoted."""
    for index, value in enumerate(column):
        if not isinstance(value, KINDS[name]):
            wanted = " or ".join(kind.__name__ for kind in KINDS[name]).replace("NoneType", "None")
            hint = HINTS.get((name, type(value)), "")
            raise TypeError(
                f"messages[{index}].{name} is {type(value).__name__}, not {wanted}"
                + (f": {hint}" if hint else "")
            )


def _encode(index: int, headers: Headers) -> str | None:
    """Return headers as JSON."""
    for header in headers:
        match header:
            case (str(), bytes() | None):
                pass
            case _:
                raise TypeError(f"messages[{index}].headers are not pairs of (str, bytes or None)")
    try:
        return encode_headers(headers)
    except UnicodeEncodeError as error:
        raise ValueError(f"messages[{index}].headers: a name is not UTF-8") from error


def hash_of_message(key: bytes | None, value: bytes | None, headers: str | None) -> int:
    """Return what decides the lane of a message; headers: as they are stored.

    Without a key only the content decides, nothing that this process remembers: a message that is
    written again after a restore must come to the lane that knows whether it was published.
    """
    return crc32((headers or "").encode() + (value or b"") if key is None else key)
