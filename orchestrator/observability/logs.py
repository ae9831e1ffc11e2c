"""Logs: one line per event, on stderr, with every URL masked.

Nothing logs a camera URL or a connection string on purpose; the mask is for one in the text of a
library's or a server's error.
"""

import json
import logging
import math
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime

# librdkafka's name of a broker: an address, which is no secret, and never has a user.
BROKER = r"\b(?:sasl_)?(?:ssl|plaintext)://[\w.:\[\]-]+/(?:bootstrap|\d+)(?=:?\s|$)"
# Everything after a scheme, up to white space: a password may contain '@', '/' and quotes.
URL = re.compile(rf"({BROKER})|(://)\S+")
SECRET = re.compile(
    r"[\w.-]*(?:password|passwd|pwd|secret|token|api[_-]?key|authorization)[\w.-]*", re.IGNORECASE
)
# NAME=value and NAME: value; libpq and Python put quotes around a value with spaces.
ASSIGNED = re.compile(
    rf"({SECRET.pattern}[\"']?\s*[=:]\s*)(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s&,;]+)",
    re.IGNORECASE,
)

REPEAT_WINDOW_S = 60.0  # librdkafka repeats itself up to 20 times a second while a broker is down

# Attributes that every LogRecord has: the others are the event's own fields.
STANDARD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def mask_text(text: str) -> str:
    """Return the text with everything masked that may be a credential."""
    return ASSIGNED.sub(r"\1***", URL.sub(lambda url: url[1] or f"{url[2]}***", text))


def without_url(text: str) -> str:
    """Return the text up to its first URL, which may contain white space and end anywhere."""
    before, scheme, _ = text.partition("://")
    return f"{before}{scheme}***" if scheme else text


def mask_value(value: object, name: str = "") -> object:
    """Return a value as JSON can hold it, with every text in it masked. name: its key."""
    if SECRET.fullmatch(name):
        return "***"
    match value:
        case bool() | int() | float() | None:
            return value
        case datetime():
            return value.isoformat()
        case Mapping():
            return {str(key): mask_value(inner, str(key)) for key, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [mask_value(inner) for inner in value]
        case _:
            return mask_text(str(value))


class RepeatFilter(logging.Filter):
    """Lets the same text pass once in REPEAT_WINDOW_S; times and counts at its end may differ."""

    def __init__(self) -> None:
        super().__init__()
        self._logged: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the record is no repetition."""
        text, now = record.getMessage().partition(" (after ")[0], time.monotonic()
        if now - self._logged.get(text, -math.inf) < REPEAT_WINDOW_S:
            return False
        self._logged = {logged: at for logged, at in self._logged.items() if now - at < REPEAT_WINDOW_S}
        self._logged[text] = now
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, event, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the masked line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(mask_value(line))


class TextFormatter(logging.Formatter):
    """One line to read: time, level, event, field=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the masked line."""
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        fields = "".join(f" {key}={mask_value(value, key)}" for key, value in fields_of(record).items())
        line = f"{time} {record.levelname:<7} {record.getMessage()}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return mask_text(line)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields that the caller gave as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in STANDARD_ATTRIBUTES}


def configure_logging(level: str, form: str) -> None:
    """Send all logs to stderr. form: `json` or `text`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    librdkafka = logging.getLogger("librdkafka")
    librdkafka.setLevel(max(logging.getLevelName(level), logging.ERROR))
    librdkafka.filters = [RepeatFilter()]
