"""Logs: one line an event, on stderr, with every URL masked.

Nothing logs a camera URL or a connection string on purpose; the mask is for what slips through in
the text of somebody else's error.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime

# All that follows a scheme, up to white space or a quote: a password may hold '@' and '/'.
URL = re.compile(r"\b([a-z][a-z0-9+.-]*://)[^\s\"'<>]+", re.IGNORECASE)
PASSWORD = re.compile(r"\b(password|passwd|pwd|secret|token)(\s*[=:]\s*)[^\s&,;]+", re.IGNORECASE)

# Attributes that every LogRecord has: what is left over is the event's own fields.
ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def mask(text: str) -> str:
    """Return the text without what may be a credential."""
    return PASSWORD.sub(r"\1\2***", URL.sub(r"\1***", text))


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
        return json.dumps({key: _masked(value) for key, value in line.items()}, default=str)


class TextFormatter(logging.Formatter):
    """One line for people: time, level, event, field=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the masked line."""
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        fields = "".join(f" {key}={value}" for key, value in fields_of(record).items())
        line = f"{time} {record.levelname:<7} {record.getMessage()}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return mask(line)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return what the caller gave as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in ORDINARY}


def _masked(value: object) -> object:
    return value if isinstance(value, int | float | dict) else mask(str(value))


def set_up(level: str, form: str) -> None:
    """Send all logs to stderr. form: `json` or `text`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("librdkafka").setLevel(max(logging.getLevelName(level), logging.ERROR))
