"""Logs hold no secret, and say the same thing once."""

import json
import logging
import re
import sys

import pytest

from orchestrator.observability.logs import (
    JsonFormatter,
    RepeatFilter,
    TextFormatter,
    configure_logging,
)

FORMATTERS = pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])


def record(event: str, *values: object, **fields: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "test", "levelname": "INFO", "msg": event, "args": values})
    vars(made).update(fields)
    return made


SECRETS = [
    "camera rtsp://user:S3CRET@host/path?token=S3CRET is down",
    "RTSPS://S3CRET@host",
    "rtsp://user:a@S3CRET/b@host",
    "rtsp://user:it's'S3CRET@host",
    'rtsp://user:"S3CRET"@host',
    "rtsp://user:<S3CRET>@host",
    '{"camera_url": "https://host/?key=S3CRET"}',
    "postgresql://user:S3CRET@host/db",
    "host=db password=S3CRET dbname=x",
    "host=db password = 'very S3CRET' dbname=x",
    r"host=db password='it\'s S3CRET' dbname=x",
    "PASSWORD: S3CRET",
    "sasl.password=S3CRET",
    "KAFKA_CONFIG_SASL_PASSWORD=S3CRET",
    "{'password': 'S3CRET', 'host': 'db'}",
    '{"sasl.password": "S3CRET"}',
    "?user=u&token=S3CRET&x=1",
    "api_key=S3CRET",
    "rtsp://user:S3CRET@[::1]:554/live?auth=S3CRET#S3CRET",
    "failed: http://camera/snapshot.jpg?user=u&pwd=S3CRET",
    'sasl.jaas.config=org.apache.kafka...ScramLoginModule required password="S3CRET";',
    "ssl.key.password: S3CRET",
    "client_secret = S3CRET",
    "Authorization token=S3CRET",
    "passwd=S3CRET;database=x",
]


@pytest.mark.parametrize("lines", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_lines_hold_none_of_25_secrets(lines: int) -> None:
    """Each secret is another one, in every place that a line has."""
    formatters, written = (JsonFormatter(), TextFormatter()), 0
    for number in range(lines // 200):
        for form, template in enumerate(SECRETS):
            secret = f"hush{form}x{number}hush"
            text = template.replace("S3CRET", secret)
            failed = record("failed")
            failed.exc_info = (ValueError, ValueError(text), None)
            for line in (record(text), record("said %s", text), record("x", error=text), failed):
                for formatter in formatters:
                    assert secret not in formatter.format(line)
                    written += 1
    assert (len(SECRETS), written) == (25, lines)


@FORMATTERS
def test_arguments_and_fields_are_masked_however_deep(formatter: logging.Formatter) -> None:
    line = formatter.format(
        record(
            "said %s",
            "rtsp://u:S3CRET@h",
            url="rtsp://u:S3CRET@h",
            password="S3CRET",
            nested={"inner": ["rtsp://u:S3CRET@h", {"sasl.password": "S3CRET"}]},
            error=ValueError("password=S3CRET"),
        )
    )
    assert "S3CRET" not in line
    assert line.count("***") == 6


@FORMATTERS
def test_tracebacks_are_masked(formatter: logging.Formatter) -> None:
    broken = record("broken")
    try:
        int("postgresql://u:S3CRET@h/db")
    except ValueError:
        broken.exc_info = sys.exc_info()
    line = formatter.format(broken)
    assert "test_tracebacks_are_masked" in line
    assert "ValueError" in line
    assert "S3CRET" not in line


def test_json_is_one_object_a_line_with_numbers_as_numbers() -> None:
    line = JsonFormatter().format(record("two\nlines", lane=3, took_s=0.5, offsets={0: 7}, none=None))
    assert "\n" not in line
    read = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", read.pop("time"))
    assert read == {
        "level": "INFO",
        "logger": "test",
        "event": "two\nlines",
        "lane": 3,
        "took_s": 0.5,
        "offsets": {"0": 7},
        "none": None,
    }


def test_json_shows_letters_of_any_language_and_escapes_what_is_no_sign() -> None:
    said = "ВАЖНО: größe \x1b[2J \x9b \u202e \u2028 \udc80 \n"
    line = JsonFormatter().format(record("waiting", error=said))
    assert "ВАЖНО: größe" in line
    assert line.isprintable()
    assert json.loads(line)["error"].startswith("ВАЖНО: größe")


def test_text_format_is_one_line_with_fields() -> None:
    line = TextFormatter().format(record("lane active", lane=3, state="working"))
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} INFO    lane active lane=3 state=working", line)


def test_a_repeated_line_of_librdkafka_is_logged_once() -> None:
    news = RepeatFilter()
    texts = [f"Connect to h:9092 failed (after {ms}ms in state CONNECT)" for ms in range(100)]
    assert [news.filter(record(text)) for text in texts] == [True] + 99 * [False]
    assert news.filter(record("Connect to h:9093 failed"))


@pytest.mark.parametrize("form", ["json", "text"])
def test_logs_go_to_stderr_at_the_chosen_level(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.root.handlers[:], logging.root.level
    try:
        configure_logging("WARNING", form)
        logging.getLogger("test").info("unheard")
        logging.getLogger("test").warning("heard", extra={"lane": 3})
    finally:
        logging.root.handlers[:], logging.root.level = before
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert "heard" in line
    assert ('"lane": 3' in line) == (form == "json")
