"""What the commands share when they talk to a person: exit codes, questions, tables, masked text."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

from orchestrator.config.settings import Settings, read_settings
from orchestrator.observability import logs

OK, CHECK_FAILED, USAGE, UNREACHABLE = 0, 1, 2, 3
EXIT_CODES = "exit code: 0 ok, 1 a check failed, 2 usage or settings, 3 a server is unreachable"


def settings_from_environment() -> Settings:
    """Read the settings and set up the logs as they say."""
    settings = read_settings(os.environ)
    logs.set_up(settings.log_level, settings.log_format)
    return settings


def settings_for_a_person() -> Settings:
    """Read the settings; of the logs show warnings alone, in the form that a person reads."""
    settings = read_settings(os.environ)
    logs.set_up("WARNING", "text" if sys.stderr.isatty() else settings.log_format)
    return settings


def complain(code: int, text: str) -> int:
    """Say to a person what is wrong; return the code."""
    print(logs.mask(f"orchestrator: {text}"), file=sys.stderr)
    return code


def ask(question: str) -> bool:
    """Ask the person at the terminal; only `yes` is a yes."""
    print(f"{question} [yes/no] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def somebody_answers(options: argparse.Namespace) -> bool:
    """Say whether there is anybody to ask, or nothing to be asked; complain if not."""
    if options.dry_run or options.yes or sys.stdin.isatty():
        return True
    complain(USAGE, "no terminal to ask on: say --yes, or look first with --dry-run")
    return False


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yield lines of aligned columns; numbers stand to the right. Nothing if there are no rows."""
    if not rows:
        return
    texts = [list(head), *([text_of(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in texts) for column in range(len(head))]
    right = [all(isinstance(row[column], int | float) for row in rows) for column in range(len(head))]
    for line in texts:
        cells = zip(line, widths, right, strict=True)
        yield "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in cells).rstrip()


def text_of(cell: object) -> str:
    """Return a cell of a table: `-` for nothing. No commas: an offset may be copied into a command."""
    match cell:
        case None:
            return "-"
        case float():
            return f"{cell:,.1f}"
        case _:
            return str(cell)


KEY_WIDTH = 40


def readable(key: bytes | None) -> str | None:
    """Return a record's key for a person: masked, and without what a terminal would obey.

    Of a URL only the scheme is left: with white space in it, the mask would not know where it ends.
    """
    if key is None:
        return None
    text = logs.mask(logs.without_url(key.decode("utf-8", "backslashreplace")))
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= KEY_WIDTH else text[: KEY_WIDTH - 1] + "…"
