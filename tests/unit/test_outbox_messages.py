"""Messages of the outbox: what Kafka allows, and headers there and back."""

from typing import cast

import pytest

from outbox import Connection, Headers, Message, enqueue
from outbox.message import decode_headers, encode_headers, is_topic_name

POSSIBLE = ["a", "to_deploy", "a.b", "...", "-", "0", "a" * 249, "A-z_0.9"]
IMPOSSIBLE = ["", ".", "..", "a" * 250, "a b", "a/b", "a\n", "\n", "größe", "a\0", "a:b", "a,b"]


@pytest.mark.parametrize("name", POSSIBLE)
def test_a_topic_may_have_this_name(name: str) -> None:
    assert is_topic_name(name)


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_message_for_a_topic_that_cannot_exist_is_refused(name: str) -> None:
    assert not is_topic_name(name)
    none = cast("Connection", None)  # it is refused before anything is written
    with pytest.raises(ValueError, match="Kafka allows no topic of the name") as raised:
        enqueue(none, [Message("good", None, None), Message(name, b"k", b"v")], 4)
    assert repr(name) in str(raised.value)


@pytest.mark.parametrize(
    "headers",
    [(), [("a", b"1")], [("a", None), ("a", b""), ("", b"\0\xff")], [("größe\n", b"x" * 1000)]],
)
def test_headers_come_back_as_they_were(headers: Headers) -> None:
    assert list(decode_headers(encode_headers(headers))) == list(headers)


def test_a_header_name_with_half_a_character_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        encode_headers([("\ud800", b"1")])
