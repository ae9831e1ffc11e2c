"""The terminal: its size, colours, and a screen of its own that leaves what was there before.

Imports nothing but the standard library: a SIGTERM leaves the screen, whatever else is being done.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

RED, GREEN, YELLOW, GREY = 31, 32, 33, 90

# The first word of a line says how serious it is.
COLOURS = {
    "PROBLEM": RED,
    "UNKNOWN": YELLOW,
    "NOTE": GREY,
    "unreachable": RED,
    "failed": RED,
    "warning": YELLOW,
    "skipped": GREY,
    "ok": GREEN,
}
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, END_OF_LINE, END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"

_entered = False


def is_terminal() -> bool:
    """Return whether stdout is a terminal that understands more than text."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def width() -> int:
    """Return how many columns there are; 80 if that is not known."""
    return max(shutil.get_terminal_size().columns, 20)


def laid_out(line: str) -> str:
    """Return a line as it is shown: on a terminal wrapped, and coloured unless NO_COLOR is set.

    Only lines that begin with a state are: those of a table are as wide as they are.
    """
    state = line.split(" ", 1)[0]
    if state not in COLOURS or not is_terminal():
        return line
    indent = " " * (len(line) - len(line[len(state) :].lstrip()))
    wrapped = textwrap.fill(line, width(), subsequent_indent=indent, break_on_hyphens=False)
    if os.environ.get("NO_COLOR"):
        return wrapped
    return f"\x1b[{COLOURS[state]}m{state}\x1b[0m{wrapped[len(state) :]}"


@contextmanager
def own_screen() -> Iterator[None]:
    """Have a screen of its own while the block runs; afterwards the terminal is as it was."""
    global _entered  # there is one terminal
    if is_terminal():
        _entered = True
        print(ENTER, end="", flush=True)
    try:
        yield
    finally:
        leave()


def leave() -> None:
    """Give the terminal back. Another thread may call it: it waits for no lock of stdout."""
    global _entered
    if _entered:
        _entered = False
        os.write(1, LEAVE.encode())


def draw(lines: Sequence[str], more: str) -> None:
    """Show lines in place of the ones before. more: what to say if they do not fit."""
    rows = [row for line in "\n".join(lines).splitlines() for row in _broken(line)]
    height = shutil.get_terminal_size().lines
    if len(rows) > height:
        rows = [*rows[: height - 1], f"... {len(rows) - height + 1} more lines: {more}"]
    elif len(rows) < height:
        rows.append(END_OF_SCREEN)
    # Behind a row that is as wide as the terminal it would erase the last character.
    print(HOME + "\n".join(END_OF_LINE + row for row in rows), end="", flush=True)


def _broken(line: str) -> list[str]:
    """Return a line as the terminal breaks it; one with a colour is wrapped already."""
    if line.startswith("\x1b"):
        return [line]
    return [line[start : start + width()] for start in range(0, len(line), width())] or [""]
