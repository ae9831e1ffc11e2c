"""Messages of the outbox: what Kafka allows, and headers there and back."""

from typing import Any
from uuid import uuid4

import pytest

from outbox import Headers, Message
from outbox.columns import columns_of
from outbox.message import decode_headers, encode_headers, is_topic_name

POSSIBLE = ["a", "to_deploy", "a.b", "...", "-", "0", "a" * 249, "A-z_0.9"]
IMPOSSIBLE = ["", ".", "..", "a" * 250, "a b", "a/b", "a\n", "\n", "größe", "a\0", "a:b", "a,b"]


@pytest.mark.parametrize("name", POSSIBLE)
def test_a_topic_may_have_this_name(name: str) -> None:
    assert is_topic_name(name)


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_message_for_a_topic_that_cannot_exist_is_refused(name: str) -> None:
    assert not is_topic_name(name)
    with pytest.raises(
        ValueError, match=r"messages\[1\].topic: Kafka allows no topic of the name"
    ) as raised:
        columns_of([Message("good", None, None), Message(name, b"k", b"v")], 4)
    assert repr(name) in str(raised.value)


WRONG = {
    "topic": (b"t", None, 1),
    "key": ("k", 1, bytearray(b"k"), memoryview(b"k")),
    "value": ("v", {"paid": True}, 1.5),
    "headers": (None, {"a": b"1"}, "a", {("a", b"1")}, [("a", "1")], [(b"a", b"1")], ["ab"], [("a",)]),
    "aggregate_id": ("4711", 4711, b"4711"),
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values]
)
def test_a_field_of_another_type_is_refused_by_its_name(field: str, value: Any) -> None:
    good = Message("topic", b"k", b"v", [("a", b"1")], uuid4())
    with pytest.raises(TypeError, match=rf"^messages\[2\]\.{field} (is|are) ") as raised:
        columns_of([good, good, good._replace(**{field: value}), good], None)
    assert "4711" not in str(raised.value)


def test_what_inherits_from_a_type_is_taken() -> None:
    class Text(str):
        __slots__ = ()

    class Bytes(bytes):
        __slots__ = ()

    class Paid(Message):
        """A message of a service."""

    row = Paid(Text("topic"), Bytes(b"k"), Bytes(b"v"), [(Text("a"), Bytes(b"1"))])
    assert columns_of(iter([row]), None)[1:] == columns_of([Message(*row)], None)[1:]


@pytest.mark.parametrize("messages", ["text", [b"bytes"], [("topic", b"k", b"v", (), None)], [None]])
def test_what_is_no_message_is_refused(messages: Any) -> None:
    with pytest.raises(TypeError, match="messages are Message, not "):
        columns_of(messages, None)


def test_a_message_alone_is_taken() -> None:
    message = Message("topic", b"k", None)
    assert columns_of(message, None) == columns_of([message], None)


@pytest.mark.parametrize(
    "headers",
    [(), [("a", b"1")], [("a", None), ("a", b""), ("", b"\0\xff")], [("größe\n", b"x" * 1000)]],
)
def test_headers_come_back_as_they_were(headers: Headers) -> None:
    assert list(decode_headers(encode_headers(headers))) == list(headers)


def test_a_header_name_with_half_a_character_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        encode_headers([("\ud800", b"1")])
