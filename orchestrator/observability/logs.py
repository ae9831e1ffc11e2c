"""Logs: one line per event, on stderr, masked.

Nothing logs a camera URL or a connection string on purpose; the mask is for one in the text of a
library's or a server's error.
"""

import json
import logging
import math
import re
import sys
import time
from datetime import UTC, datetime
from traceback import format_exception_only, format_tb

from orchestrator.observability.advice import AdviceFilter
from orchestrator.observability.masking import mask_text, mask_value, printable

CLIENT = re.compile(r"\[(?:rdkafka#|thrd:)[^\]]*\]:? ")  # of librdkafka, and its thread
REPEAT_WINDOW_S = 60.0  # librdkafka repeats itself up to 20 times a second while a broker is down

# Attributes that every LogRecord has: the others are the event's own fields.
STANDARD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class RepeatFilter(logging.Filter):
    """Lets the same text pass once in REPEAT_WINDOW_S, whichever client it is of.

    Times and counts at its end may differ.
    """

    def __init__(self) -> None:
        super().__init__()
        self._logged: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the record is no repetition."""
        text = CLIENT.sub("", record.getMessage().partition(" (after ")[0])
        now = time.monotonic()
        if now - self._logged.get(text, -math.inf) < REPEAT_WINDOW_S:
            return False
        self._logged = {logged: at for logged, at in self._logged.items() if now - at < REPEAT_WINDOW_S}
        self._logged[text] = now
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, event, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the masked line."""
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **fields_of(record),
        }
        masked = {key: mask_value(value, key) for key, value in event.items()}
        lines = traceback_of(record)
        traceback = {"traceback": "\n".join(lines)} if lines else {}
        line = json.dumps({**masked, **traceback}, ensure_ascii=False)  # a server may speak Russian
        return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


class TextFormatter(logging.Formatter):
    """One line to read: time, level, event, field=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the masked line."""
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        fields = [f"{key}={mask_value(value, key)}" for key, value in fields_of(record).items()]
        said = printable(" ".join([mask_text(record.getMessage()), *fields]))
        return "\n".join(
            [f"{time} {record.levelname:<7} {said}", *map(printable, traceback_of(record))]
        )


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields that the caller gave as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in STANDARD_ATTRIBUTES}


def traceback_of(record: logging.LogRecord) -> list[str]:
    """Return the lines of a traceback, each line of code and each exception masked by itself."""
    lines: list[str] = []
    error = record.exc_info[1] if record.exc_info else None
    while error is not None:
        said = mask_text("".join(format_exception_only(error)).strip())
        frames = "".join(format_tb(error.__traceback__))
        lines[:0] = [*map(mask_text, frames.splitlines()), said]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return lines


def configure_logging(level: str, form: str | None, client_level: str = "ERROR") -> None:
    """Send all logs to stderr. form: `json` or `text`; None: text on a terminal, else json.

    client_level: from which on librdkafka is heard; with DEBUG, all that it says.
    """
    handler = logging.StreamHandler(sys.stderr)
    form = form or ("text" if sys.stderr.isatty() else "json")
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(AdviceFilter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    librdkafka = logging.getLogger("librdkafka")
    librdkafka.setLevel(level if level == "DEBUG" else client_level)
    librdkafka.filters = [RepeatFilter()]
