"""The hosts that no camera URL may have, in whatever way its reader finds the host."""

import sys
import unicodedata

import pytest

from orchestrator.contract.camera_urls import has_unsafe_host
from orchestrator.contract.messages import HAS_FORBIDDEN

UNSAFE = [
    "rtsp://-oProxyCommand=x/1",
    "rtsp://-",
    "rtsp://user@-h",
    "rtsp://user:p@ss@-h:554/1?a#b",
    "rtsp://u:p@/ss@-h/1",
    "rtsp://:p/ss@-h",
    "rtsp://u:p/ss@-h/1",
    "rtsp://u:p/ss@h%00/1",
    "rtsp://u@example.org:p/ss@-h:554",
    "srt://-h?x=@camera",
    "rtsp://h%00/1",
    "rtsp://u:p@%2dh",
    "rtsp://u:p@/ss@h%2Fx/1",
    "rtsp://h%",
    "rtsp://[fe80::1%25eth0%00]/",
    "rtsp://[fe80::1%eth0]/",
]
SAFE = [
    "rtsp://camera/1",
    "rtsp://my-camera-/-/@-x",
    "rtsp://-u:-p%00@camera/%00@-?@-h#@-h",
    "rtsp://u:p%40/%00ss@camera/1",
    "rtsp://u:p/%ss@camera:554/1",
    "rtsp://camera:554/1@-x",
    "rtsp://[fe80::1]/1@-x",
    "rtsp://u:p@[fe80::1%25eth0]:554/1@-x",
    "rtsp://[fe80::1%25eth-0.1]:554/%20",
    "rtsp://camera?-@-h%",
    "/dev/video0",
    "-i",
    "",
]


@pytest.mark.parametrize("url", UNSAFE)
def test_an_unsafe_host_is_found(url: str) -> None:
    assert has_unsafe_host(url)


@pytest.mark.parametrize("url", SAFE)
def test_other_parts_of_a_url_are_free(url: str) -> None:
    assert not has_unsafe_host(url)


VISIBLE_FORMATS = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
HIEROGLYPHS = range(0x13430, 0x13456)  # how they are joined
SHORTHAND = range(0x1BCA0, 0x1BCA4)


def test_what_unicode_calls_a_format_is_invisible_but_for_what_is_drawn() -> None:
    drawn = {*VISIBLE_FORMATS, *HIEROGLYPHS}
    formats = {c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) == "Cf"} - drawn
    assert len(formats) > 100
    assert [hex(c) for c in formats if not HAS_FORBIDDEN(chr(c))] == []
