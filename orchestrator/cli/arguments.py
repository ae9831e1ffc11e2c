"""What the command line reads its arguments as; what a function raises, argparse turns into usage."""

import argparse
import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

from confluent_kafka import OFFSET_BEGINNING

DIGITS = 18  # what fits into 64 bits, as offsets and ids do


def at_least_one(text: str) -> int:
    """Accept a whole number above zero."""
    return _whole_number(text, 1)


def number_or_all(text: str) -> int | None:
    """Accept a number from 0; None is `all`."""
    return None if text == "all" else at_least_zero(text)


def offset_or_beginning(text: str) -> int:
    """Accept an offset, or `beginning`, which is Kafka's own number for it."""
    return OFFSET_BEGINNING if text == "beginning" else at_least_zero(text)


def at_least_zero(text: str) -> int:
    """Accept a whole number from 0."""
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    """Return the number; the text is not repeated to the person: it may be a URL with a password."""
    if not text.isdecimal() or len(text) > DIGITS or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least {least}")
    return int(text)


def a_place(text: str) -> tuple[int, int]:
    """Accept two whole numbers: PARTITION:OFFSET or LANE:ID."""
    first, _, second = text.partition(":")
    try:
        return at_least_zero(first), at_least_zero(second)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            "must be two whole numbers with a colon between them"
        ) from None


UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
DURATION = re.compile(r"(\d{1,9})([smhd])")


def a_moment(text: str) -> datetime:
    """Accept a time in ISO 8601, UTC unless it says otherwise, or how long ago it was."""
    try:
        if ago := DURATION.fullmatch(text):
            return datetime.now(UTC) - timedelta(**{UNITS[ago[2]]: int(ago[1])})
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError("must be a time (ISO 8601) or a duration (90s, 2h)") from None


def a_uuid(text: str) -> UUID:
    """Accept a UUID."""
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be a UUID") from None
