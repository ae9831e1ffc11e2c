"""What the arguments of several commands share: their types, whose errors argparse prints as usage."""

import argparse
import re
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol
from uuid import UUID

DIGITS = 18  # what fits into 64 bits, as offsets and ids do


def at_least_one(text: str) -> int:
    """Accept a whole number above zero."""
    return _whole_number(text, 1)


def at_least_zero(text: str) -> int:
    """Accept a whole number from 0."""
    return _whole_number(text, 0)


def number_or_all(text: str) -> int | None:
    """Accept a number from 0, or `all`, which is None."""
    return None if text == "all" else at_least_zero(text)


def offset_or_beginning(text: str) -> int | Literal["beginning"]:
    """Accept an offset, or `beginning`."""
    return "beginning" if text == "beginning" else at_least_zero(text)


def _whole_number(text: str, least: int) -> int:
    """Return the number. The error does not repeat the text: it may be a URL with a password."""
    if not text.isdecimal() or len(text) > DIGITS or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least {least}")
    return int(text)


def two_numbers(text: str) -> tuple[int, int]:
    """Accept the id of a dead letter, PARTITION:OFFSET, or of a parked row, LANE:ID."""
    first, _, second = text.partition(":")
    try:
        return at_least_zero(first), at_least_zero(second)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            "must be two whole numbers with a colon between them"
        ) from None


UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
AGE = re.compile(r"(\d{1,9})([smhd])")


def time_or_age(text: str) -> datetime:
    """Accept a time in ISO 8601, in UTC unless it names a zone, or an age, such as 2h."""
    try:
        if age := AGE.fullmatch(text):
            return datetime.now(UTC) - timedelta(**{UNITS[age[2]]: int(age[1])})
        time = datetime.fromisoformat(text)
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError("must be a time (ISO 8601) or a duration (90s, 2h)") from None


def uuid(text: str) -> UUID:
    """Accept a UUID."""
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be a UUID") from None


# ---- adding them ----------------------------------------------------------------------------------


class Add(Protocol):
    """Adds a command to the command line and returns its parser, to be given arguments."""

    def __call__(self, name: str, function: str, text: str, example: str) -> argparse.ArgumentParser:
        """Add it. function: as `module:function` below this package; it takes the parsed options."""
        ...


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
