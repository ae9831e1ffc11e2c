"""No text that others wrote shows a secret, whatever surrounds it, and none takes long to mask."""

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.contract import messages
from orchestrator.contract.camera_urls import has_unsafe_host
from orchestrator.observability import masking
from orchestrator.observability.masking import MAX_TEXT, mask_text, mask_value, printable, shown_bytes
from orchestrator.operations.dead_letters import headers
from orchestrator.operations.dead_letters.headers import shown_header

FRAMES = [
    "camera rtsp://user:{}@host/path?x=1 is down",
    "RTSPS://{}@host",
    "rtsp://user:it's'{}@host",
    "rtsp://user:<{}>@[::1]:554/live",
    "key cam_1_rtsp://user:{}@host/1 is taken",
    '{{"camera_url": "https://host/?x={}"}}',
    r"camera rtsp:\/\/user:{}@host",
    "rtsp%3A%2F%2Fuser:{}@host",
    "rtsp%253a%252f%252fuser%253a{}%2540host",
    r"rtsp:\u002f\u002fuser:{}@host",
    "&quot;rtsp:&#47;&#47;user:{}@host",
    "admin:{}@10.0.0.9",
    "admin: {}@10.0.0.9 is away",
    "admin%3A{}%4010.0.0.9",
    "scott/{}@db",
    "https://{}@host",
    "postgresql://user:{}@host/db",
    "host=db password={} dbname=x",
    "host=db password = '{}' dbname=x",
    "PASSWORD: {}",
    "PGPASSWORD={}",
    "sasl.password={}",
    "KAFKA_CONFIG_SASL_PASSWORD={}",
    "{{'password': '{}', 'host': 'db'}}",
    '{{"sasl.password": "{}"}}',
    r"{{\"password\": \"{}\"}}",
    r"{{\\\"password\\\": \\\"{}\\\"}}",
    "('sasl.password', '{}')",
    "[(b'password', b'{}')]",
    "?user=u&token={}&x=1",
    "x&pass={}",
    "user%3Du%26pass%3D{}",
    "api_key={}",
    "x-api-key: {}",
    "Authorization: Basic {}",
    "Authorization: Digest username=u, response={}",
    "sent Basic {}",
    'Digest username="u", response="{}"',
    "Bearer {}",
    "Proxy-Authorization: {}",
    "Cookie: session={}",
    "<Password>{}</Password>",
    "<UserToken><Password Type='x'>{}</Password>",
    "&lt;Password&gt;{}",
    "ALTER ROLE x PASSWORD '{}'",
    "CREATE USER MAPPING OPTIONS (user 'x', password '{}')",
    "IDENTIFIED BY PASSWORD '{}'",
    "password {}",
    "camera --password {} --host x",
    "camera --token {}",
    'sasl.jaas.config=x required password="{}";',
    "ssl.key.password: {}",
    "client_secret = {}",
    "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----",
    "camera_url={}",
    "camera_url: {}",
    "CAMERA_URL is DATABASE_URL={}",
    "Пароль: {}",
    "/user=admin_password={}_channel=1",
    "failed: http://camera/snapshot.jpg?user=u&pwd={}",
    "sasl_ssl://user:{}@broker:9093/bootstrap",
    "sasl_ssl://host:9093/{}",
    "sasl_ssl://host:{}",
    "rtsp://{}:9093/bootstrap: down",
    'FATAL: no pg_hba.conf entry for user "u", password: {}',
]

# Not what the frames hold themselves, so that it is looked for and not they.
secrets = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=30).map(
    lambda text: f"S3{text}CRET"
)


@pytest.mark.parametrize("frame", FRAMES)
@settings(max_examples=30)
@given(secret=secrets)
def test_no_secret_is_shown_whatever_it_holds(frame: str, secret: str) -> None:
    masked = mask_text(frame.format(secret))
    assert "S3" not in masked
    assert "CRET" not in masked


@pytest.mark.parametrize("frame", FRAMES)
def test_no_secret_is_shown_in_the_middle_of_other_text(frame: str) -> None:
    text = frame.format("very S3CRET")
    assert "S3CRET" not in mask_text(f"lane 3: failed: {text} and more\nof {text}")


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("before", range(-60, 10, 7))
def test_no_secret_is_shown_where_a_text_is_cut(frame: str, before: int) -> None:
    text = "x " * ((MAX_TEXT + before) // 2) + frame.format("S3CRET" * 40)
    assert "S3CR" not in mask_text(text)


HARMLESS = [
    "topic outbox-markers is missing: create it or run `orchestrator setup`",
    'connection to server at "127.0.0.1", port 5432 failed: Connection refused',
    'connection to server at "::1", port 5432 failed: FATAL:  password authentication failed',
    'FATAL: password authentication failed for user "orchestrator@tenant" (28P01)',
    "fe_sendauth: no password supplied",
    "tokens are no passwords",
    "sasl_ssl://broker-1.example.org:9093/bootstrap: Connect to ipv4#10.0.0.1:9093 failed: refused",
    "sasl_ssl://broker-1.kafka:9093/bootstrap: Connect to ipv4#10.0.0.1:9093 failed",
    "ssl://[::1]:9093/2: SSL handshake failed: certificate verify failed",
    "SASL authentication error: Authentication failed during authentication due to invalid credentials",
    "Broker: Topic authorization failed (TOPIC_AUTHORIZATION_FAILED)",
    "Transactional Id authorization failed (TRANSACTIONAL_ID_AUTHORIZATION_FAILED): grant Write on it",
    'duplicate key value violates unique constraint "workers_pkey" (23505)',
    "KAFKA_SASL_PASSWORD and KAFKA_SASL_PASSWORD_FILE are both set: keep one of them",
    "DATABASE_URL is required and not set",
    "camera_url holds white space or a control character",
    "20 checks passed, 2 warnings",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_a_text_without_secrets_stays_as_it_is(text: str) -> None:
    assert mask_text(text) == text


def test_text_before_a_secret_stays() -> None:
    assert mask_text("lane 3: rtsp://host/live gone") == "lane 3: rtsp://***"
    assert mask_text("lane 3: rtsp://u:p@h gone") == "lane 3:***"


def test_a_long_text_is_cut_and_says_how_long_it_was() -> None:
    assert mask_text("x" * MAX_TEXT) == "x" * MAX_TEXT
    assert mask_text("x " * MAX_TEXT).endswith("***")


def test_values_are_masked_by_their_names_and_by_their_texts() -> None:
    value = {
        "camera_url": "anything",
        "nested": [{"DATABASE_URL": "x", "sasl.password": 7}, "token=S3CRET", ("u:S3CRET@h",)],
        "passed": 3,
        "u:S3CRET@h": None,
    }
    masked = mask_value(value)
    assert "S3CRET" not in str(masked)
    assert masked == {
        "camera_url": "***",
        "nested": [{"DATABASE_URL": "***", "sasl.password": "***"}, "token=***", ["***"]],
        "passed": 3,
        "***": None,
    }


def test_values_that_json_lacks_become_text() -> None:
    assert mask_value({"of": {1}, "error": ValueError("x"), "yes": True}) == {
        "of": [1],
        "error": "x",
        "yes": True,
    }


@given(st.text())
def test_what_is_printed_is_printable_and_plain_text_stays(text: str) -> None:
    assert printable(text).isprintable()
    assert not text.isprintable() or printable(text) == text


def test_escape_sequences_and_newlines_are_shown_as_text() -> None:
    assert printable("a\x1b[2Jb\nc\u202e\x9b") == r"a\x1b[2Jb\nc\u202e\x9b"


# ---- keys and headers ------------------------------------------------------------------------------


def test_bytes_are_shown_only_in_a_harmless_form() -> None:
    assert (
        shown_bytes(b"f47ac10b-58cc-4372-a567-0e02b2c3d479") == "f47ac10b-58cc-4372-a567-0e02b2c3d479"
    )
    assert re.fullmatch("6 bytes, SHA-256 [0-9a-f]{8}", shown_bytes(b"S3CRET"))
    assert "S3CRET" not in shown_bytes(b"f47ac10b-58cc-4372-a567-0e02b2c3d479S3CRET\n")


@pytest.mark.parametrize("name", [*headers.HARMLESS_VALUES, *headers.NUMBER_BYTES, "message-id", "x"])
@settings(max_examples=30)
@given(value=st.one_of(st.binary(), st.sampled_from([b"S3CRETS!", b"S3CR"])))
def test_a_forged_header_shows_nothing(name: str, value: bytes) -> None:
    shown_name, shown = shown_header(name, value)
    assert shown_name == name
    if isinstance(shown, str) and "SHA-256" not in shown:
        assert headers.HARMLESS_VALUES[name].fullmatch(value)
    assert shown != int.from_bytes(b"S3CRETS!")
    assert shown != int.from_bytes(b"S3CR")


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("dlq-reason", b"not_json", "not_json"),
        ("dlq-retry-origin", b"1:2:3", "1:2:3"),
        ("kafka_dlt-original-topic", b"init_scenario", "init_scenario"),
        ("kafka_dlt-original-offset", (7).to_bytes(8), 7),
        ("kafka_dlt-exception-message", b"the record has no value", "the record has no value"),
        ("x", None, None),
    ],
)
def test_a_header_of_a_known_form_is_shown(name: str, value: bytes | None, shown: object) -> None:
    assert shown_header(name, value) == (name, shown)


def test_the_name_of_a_header_is_shown_only_if_it_is_a_word() -> None:
    assert "S3CRET" not in shown_header("a: S3CRET", b"")[0]


# ---- time ------------------------------------------------------------------------------------------

MEGABYTE = 1_000_000
LONG = [
    "x" * MEGABYTE,
    "password" * (MEGABYTE // 8),
    "password " * (MEGABYTE // 9),
    "a:" * (MEGABYTE // 2),
    "a:b@" * (MEGABYTE // 4),
    "%25" * (MEGABYTE // 3),
    "\\" * MEGABYTE,
    " " * MEGABYTE,
    "ssl://" * (MEGABYTE // 6),
    'user "' * (MEGABYTE // 6),
    "-" * MEGABYTE,
    "0" * MEGABYTE,
    "\x1b" * MEGABYTE,
]
PATTERNS = [
    *(masking.FIND_SIGNS, masking.FIND_ATS, masking.FIND_USER_ENDS, masking.FIND_HARMLESS),
    masking.IS_SECRET_NAME,
    masking.UUID_TEXT.fullmatch,
    *(pattern.fullmatch for pattern in headers.HARMLESS_VALUES.values()),
    headers.IS_TOKEN,
    headers.GROUP_NAME.fullmatch,
]


def seconds(call: Callable[[], object]) -> float:
    """Return the CPU time of a call, the least of three: a busy machine only adds to it."""

    def once() -> float:
        began = time.thread_time()
        call()
        return time.thread_time() - began

    return min(once() for _ in range(3))


@pytest.mark.parametrize("text", LONG, ids=lambda text: text[:9])
def test_a_megabyte_is_masked_within_a_tenth_of_a_second(text: str) -> None:
    assert seconds(lambda: mask_text(text)) < 0.1
    assert seconds(lambda: mask_value({text: [text]})) < 0.2
    assert seconds(lambda: printable(text)) < 1.0
    assert seconds(lambda: shown_bytes(text.encode())) < 0.1


@pytest.mark.parametrize("text", LONG, ids=lambda text: text[:9])
@pytest.mark.parametrize("match", PATTERNS)
def test_no_pattern_takes_long_over_a_foreign_text(match: Callable[[Any], Any], text: str) -> None:
    pattern: re.Pattern[Any] = match.__self__  # type: ignore[attr-defined]
    foreign = text[:MAX_TEXT] if isinstance(pattern.pattern, str) else text.encode()
    assert seconds(lambda: [match(foreign)]) < 0.1
    if match.__name__ == "finditer":
        assert seconds(lambda: list(match(foreign))) < 0.1


LONG_HOSTS = [
    "/@a" * (MEGABYTE // 3),
    "@:a" * (MEGABYTE // 3),
    "a/" + "@b/" * (MEGABYTE // 3) + " ",
    "%" * MEGABYTE + "@a",
]


@pytest.mark.parametrize(
    "url", [f"rtsp://{text}" for text in LONG + LONG_HOSTS], ids=lambda text: text[7:16]
)
def test_a_long_camera_url_is_checked_in_time(url: str) -> None:
    parser = messages.CommandParser(2 * MEGABYTE, ["rtsp"])
    assert seconds(lambda: parser._is_url(url)) < 0.3  # alone .04; beside a busy hyper-thread .1
    assert seconds(lambda: has_unsafe_host(url)) < 0.3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: refused",
            "Connect to  failed: refused",
        ),
        (
            "kafka-1.example:9092/bootstrap: Failed to resolve 'kafka-1.example:9092': no",
            "Failed to resolve : no",
        ),
        ("sasl_ssl://kafka:9092/1: SSL handshake failed (_SSL)", "SSL handshake failed (_SSL)"),
        ("[::1]:9092/2: Disconnected", "Disconnected"),
        ("lane 2: 12/34 rows: waiting", "lane 2: 12/34 rows: waiting"),
    ],
)
def test_an_error_of_a_broker_is_told_without_its_address(text: str, shown: str) -> None:
    assert masking.without_addresses(text) == shown
