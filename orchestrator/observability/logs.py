"""Logs: one line an event, on stderr, with every URL masked.

Nothing logs a camera URL or a connection string on purpose; the mask is for what slips through in
the text of somebody else's error.
"""

import json
import logging
import math
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime

# All that follows a scheme, up to white space: a password may hold '@', '/' and quotes.
URL = re.compile(r"(://)\S+")
SECRET = re.compile(
    r"[\w.-]*(?:password|passwd|pwd|secret|token|api[_-]?key|authorization)[\w.-]*", re.IGNORECASE
)
# NAME=value and NAME: value; libpq and Python put quotes around a value with spaces.
ASSIGNED = re.compile(
    rf"({SECRET.pattern}[\"']?\s*[=:]\s*)(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s&,;]+)",
    re.IGNORECASE,
)

SAME_AGAIN_S = 60.0  # librdkafka repeats itself up to 20 times a second while a broker is away

# Attributes that every LogRecord has: what is left over is the event's own fields.
ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def mask(text: str) -> str:
    """Return the text without what may be a credential."""
    return ASSIGNED.sub(r"\1***", URL.sub(r"\1***", text))


def without_url(text: str) -> str:
    """Return the text up to its first URL: one with white space in it could end anywhere."""
    before, scheme, _ = text.partition("://")
    return f"{before}{scheme}***" if scheme else text


def masked(value: object, name: str = "") -> object:
    """Return a value as JSON knows it, with every text in it masked. name: the key it stands under."""
    if SECRET.fullmatch(name):
        return "***"
    match value:
        case bool() | int() | float() | None:
            return value
        case datetime():
            return value.isoformat()
        case Mapping():
            return {str(key): masked(inner, str(key)) for key, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [masked(inner) for inner in value]
        case _:
            return mask(str(value))


class Seldom(logging.Filter):
    """Lets the same text pass once in SAME_AGAIN_S, whatever the times and counts behind it."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the record is news."""
        text, now = record.getMessage().partition(" (after ")[0], time.monotonic()
        if now - self._said.get(text, -math.inf) < SAME_AGAIN_S:
            return False
        self._said = {said: at for said, at in self._said.items() if now - at < SAME_AGAIN_S}
        self._said[text] = now
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, event, and the event's fields."""

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
        return json.dumps(masked(line))


class TextFormatter(logging.Formatter):
    """One line for people: time, level, event, field=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the masked line."""
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        fields = "".join(f" {key}={masked(value, key)}" for key, value in fields_of(record).items())
        line = f"{time} {record.levelname:<7} {record.getMessage()}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return mask(line)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return what the caller gave as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in ORDINARY}


def set_up(level: str, form: str) -> None:
    """Send all logs to stderr. form: `json` or `text`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    librdkafka = logging.getLogger("librdkafka")
    librdkafka.setLevel(max(logging.getLevelName(level), logging.ERROR))
    librdkafka.filters = [Seldom()]
