"""The three messages: what is a command, what an order and a dead letter look like, byte for byte."""

import json
import string
import struct
from typing import Any
from uuid import UUID

import msgspec
import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME, TIMESTAMP_NOT_AVAILABLE
from confluent_kafka import Message as Record
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.settings import DEFAULT_SCHEMES, parse_schemes
from orchestrator.contract.dead_letters import dead_letter
from orchestrator.contract.messages import (
    Command,
    CommandParser,
    DeployOrder,
    InvalidCommand,
    InvalidReason,
    deploy_order,
    encode_order,
    worker_id,
    worker_id_of,
)
from orchestrator.contract.records import RETRY_ORIGIN, headers_of
from outbox import Message

SCENARIO = UUID("6f1d2c3b-4a59-4687-9abc-def012345678")
WORKER = UUID("018bcfe5-6800-8abc-8def-0123456789ab")
LIMIT = 65_536
SCHEMES = DEFAULT_SCHEMES.split(",")

parse = CommandParser(LIMIT, SCHEMES).parse


def outcome(value: bytes | None) -> Command | InvalidReason:
    """Return the command, or why it is none."""
    try:
        return parse(value)
    except InvalidCommand as invalid:
        return invalid.reason


def command(
    url: bytes = b'"rtsp://camera/1"', scenario: bytes = b'"%s"' % str(SCENARIO).encode()
) -> bytes:
    """Return a command of JSON pieces."""
    return b'{"scenario_uuid":%b,"camera_url":%b}' % (scenario, url)


def url(raw: bytes) -> bytes:
    """Return a command with this camera_url, not escaped."""
    return command(b'"%b"' % raw)


def scenario(raw: str) -> bytes:
    """Return a command with this scenario_uuid, not escaped."""
    return command(scenario=f'"{raw}"'.encode())


def sized(size: int) -> bytes:
    """Return a command of so many bytes."""
    value = url(b"rtsp://camera/")
    return value.replace(b"camera/", b"camera/" + b"x" * (size - len(value)))


BAD_JSON = {
    "text": b"start camera 1",
    "truncated": command()[:-1],
    "truncated in a string": command()[:30],
    "trailing text": command() + b"x",
    "two values": command() + command(),
    "white space": b" \n",
    "single quotes": b"{'scenario_uuid': 1}",
    "comma at the end": b'{"camera_url":"rtsp://c/",}',
    "NaN": b'{"x":NaN,' + command()[1:],
    "Infinity": b'{"x":-Infinity,' + command()[1:],
    "NUL alone": b"\0",
    "NUL, raw": url(b"rtsp://c/\0"),
    "line feed, raw": url(b"rtsp://c/\n"),
    "no UTF-8": url(b"rtsp://c/\xff"),
    "cut UTF-8": url(b"rtsp://c/\xc3"),
    "overlong UTF-8": url(b"rtsp://c/\xc0\xaf"),
    "CESU-8 surrogate": url(b"rtsp://c/\xed\xa0\x80"),
    "UTF-16": command().decode().encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + command(),
    "deep arrays": b'{"x":' + b"[" * 30_000 + b"]" * 30_000 + b"," + command()[1:],
    "deep objects": b'{"x":' * 13_000,
    "deep, never closed": b'{"x":' + b"[" * 60_000,
}
WRONG_FIELDS = {
    "empty object": b"{}",
    "empty array": b"[]",
    "array of a command": b"[" + command() + b"]",
    "string": b'"start"',
    "number": b"1",
    "true": b"true",
    "null": b"null",
    "no scenario": b'{"camera_url":"rtsp://camera/1"}',
    "no camera": b'{"scenario_uuid":"%b"}' % str(SCENARIO).encode(),
    "another case": command().replace(b"camera_url", b"Camera_URL"),
    "scenario null": command(scenario=b"null"),
    "scenario number": command(scenario=b"1"),
    "scenario bool": command(scenario=b"true"),
    "scenario array": command(scenario=b'["%b"]' % str(SCENARIO).encode()),
    "scenario object": command(scenario=b"{}"),
    "url null": command(b"null"),
    "url number": command(b"1.5"),
    "url bool": command(b"false"),
    "url array": command(b'["rtsp://c/"]'),
    "url object": command(b'{"rtsp":1}'),
    "scenario empty": scenario(""),
    "scenario of 31 digits": scenario("0" * 31),
    "scenario no hex": scenario("g" + str(SCENARIO)[1:]),
    "scenario too long": scenario(str(SCENARIO) + "0"),
    "scenario in braces": scenario(f"{{{SCENARIO}}}"),
    "scenario as urn": scenario(f"urn:uuid:{SCENARIO}"),
    "scenario with spaces": scenario(f" {SCENARIO} "),
    "scenario with NUL": scenario(f"{SCENARIO}\\u0000"),
    "scenario in other digits": scenario("\u0661" * 32),
    "the last of two scenarios counts": b'{"scenario_uuid":"%b",' % str(SCENARIO).encode()
    + command(scenario=b"1")[1:],
}
BAD_URL_CHARACTERS = {
    f"escaped U+{code:04X}": url(b"rtsp://c/" + f"\\u{code:04x}".encode())
    for code in [*range(0x20), *range(0x7F, 0xA0), 0x2028]
} | {
    "DEL, raw": url(b"rtsp://c/\x7f"),
    "C1, raw": url("rtsp://c/\x85".encode()),
    "line feed at the end": url(b"rtsp://c/\\n"),
    **{
        f"invisible U+{ord(one):04X}": url(f"rtsp://ca{one}mera/1".encode())
        for one in "\u00ad\u034f\u061c\u200b\u200f\u202e\u2060\u2066\u2800\u3164\ufe0f\ufeff\U000e0041"
    },
    "invisible in a password": url("rtsp://u:p\u200bw@camera/1".encode()),
    "invisible in a path": url("rtsp://camera/\u202e1".encode()),
}
# msgspec refuses an escaped half of a surrogate pair as JSON.
LONE_SURROGATES = {
    "high": url(b"rtsp://c/\\ud800"),
    "low": url(b"rtsp://c/\\udc00"),
    "wrong order": url(b"rtsp://c/\\udc00\\ud800"),
    "in a field that is ignored": b'{"x":"\\ud800",' + command()[1:],
}
BAD_URL = {
    "empty": url(b""),
    "no scheme": url(b"camera/1"),
    "no slashes": url(b"rtsp:camera"),
    "one slash": url(b"rtsp:/camera"),
    "scheme not allowed": url(b"ftp://camera/1"),
    "a space before the scheme": url(b" rtsp://c/"),
    "a space at the end": url(b"rtsp://c/ "),
    "a space in a host": url(b"rtsp://ca mera/1"),
    "a space in a host behind a password": url(b"rtsp://u:p@ca mera/1"),
    "a space alone": url(b" "),
    "the root": url(b"/"),
    "two slashes": url(b"//camera/1"),
    "a file without a path": url(b"file://"),
    "a longer scheme of files": url(b"xfile:///etc/passwd"),
    "a relative path": url(b"dev/video0"),
    "longer scheme": url(b"rtspx://camera/1"),
    "scheme only": url(b"rtsp"),
    "no host": url(b"rtsp://"),
    "no host but a path": url(b"rtsp:///1"),
    "no host but a query": url(b"rtsp://?a"),
    "no host but a fragment": url(b"rtsp://#a"),
    "no host but a port": url(b"rtsp://:554/"),
    "no host but a colon": url(b"rtsp://:"),
    "a port to listen on that is none": url(b"srt://:"),
    "a port to listen on behind a password": url(b"udp://user:pw@:1234"),
    "no host behind a password": url(b"rtsp://user:pw@/stream"),
    "no host behind a password, no path": url(b"rtsp://user:pw@"),
    "no host behind a password, a query": url(b"rtsp://user:pw@?a@b"),
    "no host behind a password, a fragment": url(b"rtsp://user:pw@#a@b"),
    "no host behind a password, a port": url(b"rtsp://user:pw@:554/stream"),
    "no host behind two at signs": url(b"rtsp://user@pw@/stream"),
    "no host behind an at sign": url(b"rtsp://@/"),
    "no host between at signs": url(b"rtsp://@@:1/"),
    "empty address": url(b"rtsp://[]:554/"),
    "empty address behind a password": url(b"rtsp://user:pw@[]/"),
    "hyphen": url(b"rtsp://-camera/1"),
    "hyphen behind a password": url(b"rtsp://u:p@-camera:554"),
    "hyphen behind a password with a slash": url(b"rtsp://u:p@/ss@-camera/1"),
    "percent sign in a host": url(b"rtsp://cam%E2%80%8Bera/1"),
    "percent sign in a host behind a password": url(b"rtsp://u:p@camera%00"),
    "percent sign in a zone": url(b"http://[fe80::1%25e%00]/"),
    "scheme inside": url(b"xrtsp://camera"),
    "a letter that only folds to s": url("rt\u017fp://camera".encode()),
}
FIXED_LIST = [
    (None, InvalidReason.EMPTY),
    (b"", InvalidReason.EMPTY),
    (sized(LIMIT + 1), InvalidReason.TOO_LONG),
    (b"[" * 100_000 + b"]" * 100_000, InvalidReason.TOO_LONG),  # the size first, then the parser
    *[(value, InvalidReason.NOT_JSON) for value in BAD_JSON.values()],
    *[(value, InvalidReason.NOT_JSON) for value in LONE_SURROGATES.values()],
    *[(value, InvalidReason.WRONG_FIELDS) for value in WRONG_FIELDS.values()],
    *[(value, InvalidReason.URL_CHARACTERS) for value in BAD_URL_CHARACTERS.values()],
    *[(value, InvalidReason.URL_SCHEME) for value in BAD_URL.values()],
]
NAMES = [
    *["null value", "empty", "one byte too long", "deep and too long"],
    *BAD_JSON,
    *(f"lone surrogate: {name}" for name in LONE_SURROGATES),
    *WRONG_FIELDS,
    *BAD_URL_CHARACTERS,
    *BAD_URL,
]


@pytest.mark.parametrize(("value", "reason"), FIXED_LIST, ids=NAMES)
def test_an_invalid_command_has_its_reason(value: bytes | None, reason: InvalidReason) -> None:
    assert outcome(value) is reason


def test_deep_nesting_within_a_large_limit_is_no_json() -> None:
    with pytest.raises(InvalidCommand) as invalid:
        CommandParser(2**20, SCHEMES).parse(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    assert invalid.value.reason is InvalidReason.NOT_JSON


def test_an_invalid_command_quotes_nothing_of_the_record() -> None:
    for value, _ in FIXED_LIST:
        with pytest.raises(InvalidCommand) as invalid:
            parse(value)
        assert str(invalid.value) in TEXTS
        assert invalid.value.__suppress_context__ or invalid.value.__context__ is None


TEXTS = {str(InvalidCommand(reason)) for reason in InvalidReason}

GOOD_URLS = {
    "rtsp": "rtsp://user:p%40ss@camera.example:554/stream?a=1#b",
    "rtsps": "rtsps://camera",
    "http": "http://10.0.0.1/",
    "https": "https://[2001:db8::1]:443/",
    "upper-case scheme": "RTSP://camera/1",
    "mixed-case scheme": "HttpS://camera/1",
    "non-ASCII": "rtsp://\u043a\u0430\u043c\u0435\u0440\u0430/\u00e9/\U0001f600",
    "at and slash in a password": "rtsp://u:p@/ss@camera/1",
    "at in a password": "rtsp://u:p@ss@camera/1",
    "slash in a password": "rtsp://u:p/ss@camera/1",
    "no user": "rtsp://:pw@camera/1",
    "neither user nor password": "rtsp://@camera",
    "port without a number": "rtsp://camera:",
    "at in a path": "rtsp://camera:554/@1",
    "hyphen within a host": "rtsp://camera-1/-a",
    "hyphen in a user": "rtsp://-u:-p@camera/1",
    "percent signs elsewhere": "rtsp://u%00:p%E2%80%8B@camera/%20?a=%00#%00",
    "address with a zone": "http://[fe80::1%25eth0]/",
    "at at the end": "rtsp://camera/@",
    "colon in a path": "rtsp://camera/:1",
    "address with a password": "rtsp://u:p@[::1]:554/",
    "space in a password": "rtsp://u:p w@camera/1",
    "space and more in a password": "rtsp://u:p w#?/@x@camera/1",
    "space in a user": "rtsp://the user:pw@camera/1",
    "space in a path": "rtsp://camera/a b",
    "Cyrillic password": "rtsp://u:\u043f \u043f@\u043a\u0430\u043c.\u0440\u0444:554/1",
    "RTMP": "rtmp://camera/live/stream",
    "SRT": "srt://camera:9000?mode=caller&passphrase=a b",
    "RTSP over TCP": "rtspt://camera/1",
    "multicast": "udp://@239.0.0.1:1234",
    "RTP": "rtp://[ff02::1]:5004",
    "a port to listen on": "srt://:9000?mode=listener",
    "a port to listen on, as VLC has it": "UDP://@:1234",
    "ONVIF": "onvif://u:p@camera/onvif/device_service",
    "device": "/dev/video0",
    "device by its name": "/dev/v4l/by-id/usb-046d_HD-video-index0",
    "device as URL": "v4l2:///dev/video0",
    "file": "file:///data/the recording.mp4",
    "file of a host": "file://server/recording.mp4",
    "path of a file": "/data/\u0437\u0430\u043f\u0438\u0441\u044c.mp4",
}


@pytest.mark.parametrize("text", GOOD_URLS.values(), ids=GOOD_URLS)
def test_a_camera_url_is_taken_as_it_is(text: str) -> None:
    assert outcome(command(json.dumps(text).encode())) == Command(SCENARIO, text)
    assert outcome(command(json.dumps(text, ensure_ascii=False).encode())) == Command(SCENARIO, text)


@pytest.mark.parametrize(
    "form", [str(SCENARIO), str(SCENARIO).upper(), SCENARIO.hex, "0" * 32, "f" * 32], ids=str
)
def test_a_uuid_with_or_without_hyphens_in_either_case_is_taken(form: str) -> None:
    assert outcome(scenario(form)) == Command(UUID(form), "rtsp://camera/1")


TOLERATED = {
    "fields before": b'{"x":1,' + command()[1:],
    "fields after": command()[:-1] + b',"x":null}',
    "nested": command()[:-1] + b',"x":{"y":[{"camera_url":1},[[]],"\\u0000"]}}',
    "big numbers": command()[:-1] + b',"x":[' + b"9" * 5000 + b",1e999,-0.0]}",
    "other order": b'{"camera_url":"rtsp://camera/1","scenario_uuid":"%b"}' % str(SCENARIO).encode(),
    "white space": b" \r\n\t" + command().replace(b":", b" : ", 1) + b"\n ",
    "the last of two fields counts": b'{"camera_url":"ftp://old",' + command()[1:],
    "escaped names": command().replace(b"camera_url", b"\\u0063amera_url"),
}


@pytest.mark.parametrize("value", TOLERATED.values(), ids=TOLERATED)
def test_unknown_fields_are_ignored(value: bytes) -> None:
    assert outcome(value) == Command(SCENARIO, "rtsp://camera/1")


def test_a_command_of_exactly_the_limit_is_taken() -> None:
    assert len(sized(LIMIT)) == LIMIT
    assert isinstance(outcome(sized(LIMIT)), Command)


@pytest.mark.parametrize(
    "text", ["0", "video0", "admin:p w@camera", "udp://@:1234", "gst: rtspsrc ! x", *GOOD_URLS.values()]
)
def test_any_text_is_taken_where_the_setting_says_so(text: str) -> None:
    parser = CommandParser(LIMIT, parse_schemes("*"))
    assert parser.parse(command(json.dumps(text).encode())).camera_url == text


@pytest.mark.parametrize("value", [*BAD_URL_CHARACTERS.values(), url(b""), url(b" a"), url(b"a ")])
def test_any_text_still_has_no_control_character_and_no_space_at_an_end(value: bytes) -> None:
    with pytest.raises(InvalidCommand):
        CommandParser(LIMIT, parse_schemes("*")).parse(value)


def test_only_the_schemes_of_the_settings_are_allowed() -> None:
    parser = CommandParser(LIMIT, ["a.b+c"])
    assert parser.parse(url(b"a.b+c://host"))
    for other in (
        b"aXb+c://host",
        b"rtsp://host",
        b"srt://:9000",
        b"a.bbc://host",
        b"/dev/video0",
        b"file:///a",
    ):
        with pytest.raises(InvalidCommand):
            parser.parse(url(other))


# ---- for any bytes --------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
objects = st.fixed_dictionaries(
    {
        "scenario_uuid": st.uuids().map(str) | json_values,
        "camera_url": st.text().map(lambda text: f"rtsp://c/{text}") | json_values,
    }
)
near_misses = objects.map(lambda made: json.dumps(made).encode(errors="surrogatepass"))


@given(st.binary() | near_misses | st.text().map(lambda text: url(text.encode(errors="replace"))))
def test_the_parser_returns_a_command_or_raises_invalid_command(value: bytes) -> None:
    assert isinstance(outcome(value), Command | InvalidReason)


@given(st.uuids(), st.text(st.characters(codec="utf-8")))
def test_the_order_of_an_accepted_command_holds_the_same_url(one: UUID, text: str) -> None:
    value = json.dumps({"scenario_uuid": str(one), "camera_url": f"rtsp://c/{text}"}).encode()
    taken = outcome(value)
    if isinstance(taken, Command):
        order = json.loads(encode_order(DeployOrder(WORKER, taken.scenario_uuid, taken.camera_url)))
        assert order["camera_url"] == f"rtsp://c/{text}"
        taken.camera_url.encode()  # Postgres takes it
        assert "\0" not in taken.camera_url


@given(st.text(string.printable.strip() + "\u00e9\u4e16\U0001f600"))
def test_every_url_without_white_space_and_control_characters_is_accepted(text: str) -> None:
    made = f"rtsp://camera/{text}".replace(" ", "").replace("\t", "").replace("\n", "")
    made = "".join(made.split())
    assert outcome(command(json.dumps(made).encode())) == Command(SCENARIO, made)


# ---- what goes out --------------------------------------------------------------------------------


def consumed(
    *headers: tuple[str, bytes | None],
    key: bytes | None = b"key",
    value: bytes | None = b"value",
    timestamp: tuple[int, int] = (TIMESTAMP_CREATE_TIME, 1_700_000_000_123),
) -> Record:
    """Return a record as the client gives it."""
    place = {"topic": "init_scenario", "partition": 258, "offset": 2**40 + 3}
    fields: dict[str, Any] = {"key": key, "value": value, "timestamp": timestamp, **place}
    return Record(**fields, headers=[*headers] or None)


def order_message(order: DeployOrder, record: Record, event_source: str | None = None) -> Message:
    """Return the message of an order, as the consumer makes it."""
    return deploy_order("to_deploy", order, record, headers_of(record), event_source)


def test_an_order_is_compact_json_of_exactly_three_fields_in_order() -> None:
    message = order_message(DeployOrder(WORKER, SCENARIO, "rtsp://\u00e9/"), consumed())
    assert message.topic == "to_deploy"
    assert message.value == (
        b'{"worker_id":"018bcfe5-6800-8abc-8def-0123456789ab",'
        b'"scenario_uuid":"6f1d2c3b-4a59-4687-9abc-def012345678","camera_url":"rtsp://\xc3\xa9/"}'
    )
    assert message.aggregate_id == WORKER
    assert not message.headers


def test_an_order_is_keyed_by_its_scenario_in_lower_case() -> None:
    taken = parse(scenario(str(SCENARIO).upper()))
    order = DeployOrder(WORKER, taken.scenario_uuid, taken.camera_url)
    assert order_message(order, consumed()).key == str(SCENARIO).encode()


PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = PARENT.replace(b"0af7", b"1af7")
TRACES: dict[str, tuple[list[tuple[str, bytes | None]], list[tuple[str, bytes]]]] = {
    "both, in their order": (
        [("cookie", b"x"), ("tracestate", b"a=b"), ("TraceParent", b"x"), ("traceparent", PARENT)],
        [("tracestate", b"a=b"), ("traceparent", PARENT)],
    ),
    "the last of each": (
        [("traceparent", PARENT), ("tracestate", b"a=b"), ("traceparent", OTHER), ("tracestate", b"c")],
        [("traceparent", OTHER), ("tracestate", b"c")],
    ),
    "the last is none": ([("traceparent", PARENT), ("traceparent", None), ("tracestate", b"")], []),
    "a long one": ([("traceparent", PARENT * 10_000), ("tracestate", b"a" * 513)], []),
    "the longest": ([("tracestate", b"a" * 512)], [("tracestate", b"a" * 512)]),
    "many": ([("traceparent", PARENT)] * 1000, [("traceparent", PARENT)]),
    "of another form": (
        [("traceparent", PARENT.upper()), ("tracestate", b"a=\xff"), ("traceparent", b"00-1")],
        [],
    ),
    "with a line break": ([("traceparent", PARENT + b"\n"), ("tracestate", b"a\n")], []),
}


@pytest.mark.parametrize(("own", "forwarded"), TRACES.values(), ids=TRACES)
def test_of_each_trace_header_one_of_its_form_travels_along(
    own: list[tuple[str, bytes | None]], forwarded: list[tuple[str, bytes]]
) -> None:
    message = order_message(DeployOrder(WORKER, SCENARIO, "rtsp://c"), consumed(*own))
    assert message.headers == forwarded


def test_an_order_is_a_cloud_event_if_that_is_wanted() -> None:
    order = DeployOrder(WORKER, SCENARIO, "rtsp://c")
    message = order_message(order, consumed(("traceparent", PARENT)), "/orchestrator/in")
    event = [
        ("traceparent", PARENT),
        ("content-type", b"application/json"),
        ("ce_specversion", b"1.0"),
        ("ce_type", b"vap.worker.deploy"),
        ("ce_source", b"/orchestrator/in"),
        ("ce_id", str(WORKER).encode()),
        ("ce_subject", str(SCENARIO).encode()),
    ]
    assert message.headers == [*event, ("ce_time", b"2023-11-14T22:13:20.123Z")]
    for no_time in ((TIMESTAMP_NOT_AVAILABLE, -1), (TIMESTAMP_CREATE_TIME, 2**60)):
        assert order_message(order, consumed(timestamp=no_time), "/s").headers == [
            (name, b"/s" if name == "ce_source" else value) for name, value in event[1:]
        ]


def test_a_dead_letter_is_the_record_with_springs_headers_behind_its_own() -> None:
    own = [("kafka_dlt-original-topic", b"older"), ("b", None), ("", b""), ("b", b"\xff\0")]
    letter = dead_letter("dlq", "group", consumed(*own), InvalidCommand(InvalidReason.NOT_JSON))
    assert (letter.topic, letter.key, letter.value, letter.aggregate_id) == (
        "dlq",
        b"key",
        b"value",
        None,
    )
    assert letter.headers == [
        *own,
        ("kafka_dlt-original-topic", b"init_scenario"),
        ("kafka_dlt-original-partition", b"\x00\x00\x01\x02"),
        ("kafka_dlt-original-offset", b"\x00\x00\x01\x00\x00\x00\x00\x03"),
        ("kafka_dlt-original-timestamp", struct.pack(">q", 1_700_000_000_123)),
        ("kafka_dlt-original-timestamp-type", b"CREATE_TIME"),
        ("kafka_dlt-original-consumer-group", b"group"),
        ("kafka_dlt-exception-fqcn", b"orchestrator.InvalidCommand"),
        ("kafka_dlt-exception-message", b"the value is not JSON in UTF-8, or is nested too deeply"),
        ("dlq-reason", b"not_json"),
    ]


@pytest.mark.parametrize("key", [None, b"", b"\0"])
@pytest.mark.parametrize("value", [None, b"", b"\0"])
def test_a_dead_letter_keeps_null_apart_from_empty(key: bytes | None, value: bytes | None) -> None:
    letter = dead_letter(
        "dlq", "g", consumed(key=key, value=value), InvalidCommand(InvalidReason.EMPTY)
    )
    assert (letter.key, letter.value) == (key, value)


@pytest.mark.parametrize(
    ("timestamp", "number", "name"),
    [
        ((TIMESTAMP_LOG_APPEND_TIME, 1), 1, b"LOG_APPEND_TIME"),
        ((TIMESTAMP_NOT_AVAILABLE, -1), -1, b"NO_TIMESTAMP_TYPE"),
    ],
)
def test_a_dead_letter_names_the_kind_of_timestamp(
    timestamp: tuple[int, int], number: int, name: bytes
) -> None:
    letter = dead_letter("dlq", "g", consumed(timestamp=timestamp), InvalidCommand(InvalidReason.EMPTY))
    headers = dict(letter.headers)
    assert headers["kafka_dlt-original-timestamp"] == struct.pack(">q", number)
    assert headers["kafka_dlt-original-timestamp-type"] == name


def test_the_dead_letters_reasons_are_a_contract() -> None:
    assert [reason.value for reason in InvalidReason] == [
        "empty",
        "too_long",
        "not_json",
        "wrong_fields",
        "url_characters",
        "url_scheme",
        "refused_by_database",
    ]


def test_an_order_decodes_to_itself() -> None:
    order = DeployOrder(WORKER, SCENARIO, GOOD_URLS["non-ASCII"])
    assert msgspec.json.decode(encode_order(order), type=DeployOrder) == order


# ---- a retried command ----------------------------------------------------------------------------


TOPIC_ID = UUID("0190163d-8694-739b-aea5-966c26f8ad90")
NO_PLACES = [
    b"",
    b"1:2",
    b"1:2:3:4",
    b"-1:2:3",
    b"1:2:x",
    b"1:" + b"9" * 30 + b":3",
    None,
    "\u0661:2:3".encode(),
]


def test_a_retried_command_has_the_worker_id_of_the_record_that_it_was() -> None:
    headers = [(RETRY_ORIGIN, b"3:17:1700000000123")]
    assert worker_id_of(consumed(), TOPIC_ID, headers) == worker_id(TOPIC_ID, 3, 17, 1700000000123)
    assert worker_id_of(consumed(), TOPIC_ID, ()) != worker_id(TOPIC_ID, 3, 17, 1700000000123)


@pytest.mark.parametrize("value", NO_PLACES)
def test_a_header_that_names_no_record_changes_no_worker_id(value: bytes | None) -> None:
    plain = worker_id_of(consumed(), TOPIC_ID, ())
    assert worker_id_of(consumed(), TOPIC_ID, [(RETRY_ORIGIN, value)]) == plain
