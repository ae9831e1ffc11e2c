"""What `dlq` and `parked` share: which ones are chosen, how they are printed, and asking for a change.

Contents may hold credentials: they are shown only where `show --payload` asks for them.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from orchestrator.cli.exit_codes import CHECK_FAILED, OK
from orchestrator.cli.terminal import (
    UsageError,
    ask,
    print_error,
    print_json,
    print_lines,
    require_answer,
)
from orchestrator.errors import NotRepaired
from orchestrator.observability.masking import shown_bytes
from orchestrator.operations.dead_letters.filter import Id, RecordFilter
from orchestrator.operations.dead_letters.headers import shown_header
from outbox import Headers


class HasReason(Protocol):
    """A dead letter or a parked row."""

    @property
    def reason(self) -> str:
        """Why it was not accepted, or not published."""
        ...


Found = TypeVar("Found", bound=HasReason)


def filter_of(options: argparse.Namespace) -> RecordFilter:
    """Return which ones are chosen.

    Raises UsageError if none are chosen where they must be, or if a change cannot be confirmed.
    """
    key = None if options.key is None else os.fsencode(options.key)
    reason = options.reason or None  # an empty one, as of a variable of a script, chooses nothing
    chosen = RecordFilter(frozenset(options.ids), reason, options.since, options.until, key)
    if options.action == "list":
        return chosen
    changes = options.action != "show"
    if chosen.is_empty and not options.all:
        others = "--key, or --all" if changes else "or --key"
        raise UsageError(f"say which ones: ids, --reason, --since, --until, {others}")
    if changes:
        require_answer(options)
    return chosen


# ---- reading ------------------------------------------------------------------------------------


def print_list(
    options: argparse.Namespace,
    what: str,
    name: str,
    found: Iterable[Found],
    as_fields: Callable[[Found], dict[str, object]],
    as_table: Callable[[Sequence[Found]], Iterable[str]],
) -> int:
    """Print the first --limit ones, and how many there are in all, by reason. name: their JSON key."""
    listed: list[Found] = []
    counts: Counter[str] = Counter()
    for one in found:
        counts[one.reason] += 1
        if len(listed) < options.limit:
            listed.append(one)
    if options.json:
        fields = [as_fields(one) for one in listed]
        print_json({name: fields, "by_reason": counts, "total": sum(counts.values())})
    else:
        print_lines([*as_table(listed), last_line(what, counts, len(listed))])
    return OK


def summary(what: str, counts: Counter[str]) -> str:
    """Return the counts as text."""
    by_reason = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
    return f"{sum(counts.values()):,} {what}" + (f": {by_reason}" if by_reason else "")


def last_line(what: str, counts: Counter[str], shown: int) -> str:
    """Return the last line of a list."""
    more = f"; the first {shown:,} are shown, see --limit" if shown < sum(counts.values()) else ""
    return summary(what, counts) + more


def print_each(found: Iterable[dict[str, object]], payload: bool) -> int:
    """Print each one as JSON, masked unless the payload was asked for."""
    shown = 0
    for fields in found:
        if payload:
            print(json.dumps(fields, indent=2, default=_json_text), flush=True)
        else:
            print_json(fields)
        shown += 1
    return OK if shown else print_error(CHECK_FAILED, "nothing matches")


def _json_text(value: object) -> str:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)


def headers_as_fields(headers: Headers, payload: bool) -> list[dict[str, object]]:
    """Return the headers, in their order; without the payload, only what is known to be harmless."""
    shown = [
        (name, payload_text(value)) if payload else shown_header(name, value) for name, value in headers
    ]
    return [{"name": name, "value": value} for name, value in shown]


def payload_text(value: bytes | None) -> str | None:
    """Return bytes as text; a byte that is not UTF-8 becomes \\xNN."""
    return None if value is None else value.decode("utf-8", "backslashreplace")


def shown_key(key: bytes | None) -> str | None:
    """Return a record's key if it is a UUID, else its length and a hash."""
    return None if key is None else shown_bytes(key)


# ---- changing -------------------------------------------------------------------------------------


def report_missing(one: str, missing: Collection[Id]) -> int:
    """Print the ids under which nothing waits; return the exit code."""
    if not missing:
        return OK
    ids = ", ".join(f"{first}:{second}" for first, second in sorted(missing))
    return print_error(CHECK_FAILED, f"no {one} is waiting with this id: {ids}")


def confirm(options: argparse.Namespace, what: str, counts: Counter[str], purge: str = "") -> bool:
    """Print what is about to happen, and ask; False: nothing is. Raises NotRepaired on a no.

    purge: what is deleted besides.
    """
    print_lines([f"{options.action} {summary(what, counts)}", *filter(None, [purge])])
    if options.dry_run:
        print_lines(["dry run: nothing was changed"])
        return False
    if (counts or purge) and not (options.yes or ask("Go on?")):
        raise NotRepaired("nothing was changed")
    return bool(counts or purge)


RESULTS = {"retry": "in the outbox now, a relay publishes them", "discard": "discarded"}


def print_result(action: str, what: str, counts: Counter[str], done: int) -> None:
    """Print how many were changed, and why that may be fewer than were counted."""
    lines = [f"{done:,} {what} are {RESULTS[action]}"]
    if others := sum(counts.values()) - done:
        lines.append(f"{others:,} were not: handled meanwhile, or the same command as another one")
    print_lines(lines)
