"""What `dlq` and `parked` have in common: which ones are meant, asking first, showing without secrets.

Contents may hold credentials: they are shown only where `show --payload` asks for them.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from orchestrator.cli.arguments import a_moment, a_place, at_least_one
from orchestrator.cli.session import print_json, print_lines
from orchestrator.cli.terminal import CHECK_FAILED, OK, USAGE, ask, complain, somebody_answers
from orchestrator.errors import NotRepaired
from orchestrator.observability.logs import without_url
from orchestrator.operations.dead_letters.filter import Place, Selection
from orchestrator.operations.dead_letters.headers import NUMBERS, number_in, which_are_ours
from outbox import Headers

SHOWN = 50  # of a list, unless --limit says otherwise


class HasReason(Protocol):
    """A dead letter or a parked row."""

    @property
    def reason(self) -> str:
        """Why it was set aside."""
        ...


T = TypeVar("T", bound=HasReason)


def selection_of(options: argparse.Namespace) -> Selection:
    """Return which ones are meant."""
    key = None if options.key is None else os.fsencode(options.key)
    reason = options.reason or None  # an empty one, as of a variable of a script, says nothing
    return Selection(frozenset(options.places), reason, options.since, options.until, key)


def is_clear(options: argparse.Namespace, selection: Selection) -> bool:
    """Say whether it is said what is meant, and who agrees to a change; complain if not."""
    if options.action == "list":
        return True
    changes = options.action != "show"
    if selection.means_all and not options.all:
        others = "--key, or --all" if changes else "or --key"
        complain(USAGE, f"say which ones: places, --reason, --since, --until, {others}")
        return False
    return not changes or somebody_answers(options)


# ---- looking ------------------------------------------------------------------------------------


def list_them(
    options: argparse.Namespace,
    what: str,
    name: str,
    found: Iterable[T],
    as_fields: Callable[[T], dict[str, object]],
    as_text: Callable[[Sequence[T]], Iterable[str]],
) -> int:
    """Print the first ones, and how many there are in all, by reason. name: theirs in JSON."""
    listed: list[T] = []
    counts: Counter[str] = Counter()
    for one in found:
        counts[one.reason] += 1
        if len(listed) < options.limit:
            listed.append(one)
    if options.json:
        fields = [as_fields(one) for one in listed]
        print_json({name: fields, "by_reason": counts, "total": sum(counts.values())})
    else:
        print_lines([*as_text(listed), last_line(what, counts, len(listed))])
    return OK


def summary(what: str, counts: Counter[str]) -> str:
    """Return the counts in words."""
    by_reason = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
    return f"{sum(counts.values()):,} {what}" + (f": {by_reason}" if by_reason else "")


def last_line(what: str, counts: Counter[str], shown: int) -> str:
    """Return the end of a list."""
    more = f"; the first {shown:,} are shown, see --limit" if shown < sum(counts.values()) else ""
    return summary(what, counts) + more


def show(found: Iterable[dict[str, object]], payload: bool) -> int:
    """Print each one in full, as JSON; if the payload was asked for, as it is."""
    shown = 0
    for fields in found:
        if payload:
            print(json.dumps(fields, indent=2, default=_as_text), flush=True)
        else:
            print_json(fields)
        shown += 1
    return OK if shown else complain(CHECK_FAILED, "there is none like that")


def _as_text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def headers_as_fields(headers: Headers, payload: bool) -> list[dict[str, object]]:
    """Return the headers, in their order; the record's own as they are only with the payload."""
    return [
        {"name": name, "value": _value_of(name, value, is_ours) if payload or is_ours else "hidden"}
        for (name, value), is_ours in zip(headers, which_are_ours(headers), strict=True)
    ]


def _value_of(name: str, value: bytes | None, is_ours: bool) -> object:
    if is_ours and value is not None and len(value) == NUMBERS.get(name):
        return number_in(value)
    return payload_of(value)


def payload_of(value: bytes | None) -> str | None:
    """Return content as text; a byte that is no UTF-8 becomes \\xNN."""
    return None if value is None else value.decode("utf-8", "backslashreplace")


def key_of(key: bytes | None) -> str | None:
    """Return a record's key for a script: whole, but for a URL and all that follows it."""
    text = payload_of(key)
    return text and without_url(text)


# ---- changing -------------------------------------------------------------------------------------


def name_missing(one: str, missing: Collection[Place]) -> int:
    """Say which places hold nothing that waits; return the exit code."""
    if not missing:
        return OK
    places = ", ".join(f"{first}:{second}" for first, second in sorted(missing))
    return complain(CHECK_FAILED, f"no such {one} waits at {places}")


def agreed(options: argparse.Namespace, what: str, counts: Counter[str]) -> bool:
    """Say what is about to happen, and ask; False: nothing is. Raises NotRepaired on a no."""
    print_lines([f"{options.action} {summary(what, counts)}"])
    if options.dry_run:
        print_lines(["dry run: nothing was changed"])
        return False
    if counts and not (options.yes or ask("Go on?")):
        raise NotRepaired("nothing was changed")
    return bool(counts)


def tell_result(what: str, counts: Counter[str], done: int, result: str) -> None:
    """Say what was done, and why to fewer than were counted."""
    lines = [f"{done:,} {what} are {result}"]
    if others := sum(counts.values()) - done:
        lines.append(f"{others:,} were not: dealt with meanwhile, or the same command as another")
    print_lines(lines)


# ---- arguments --------------------------------------------------------------------------------------


def add_actions(
    parser: argparse.ArgumentParser, place: str, which: str, reason: str, example: str
) -> None:
    """Add list, show, retry and discard. place: what names one; which, reason: of --reason in words."""
    choice = argparse.ArgumentParser(add_help=False)
    choice.add_argument("places", nargs="*", type=a_place, metavar=place, help="these alone")
    choice.add_argument("--reason", metavar="TEXT", help=f"{which}, such as {reason}")
    choice.add_argument(
        "--since", type=a_moment, metavar="TIMESTAMP|DURATION", help="not older than this"
    )
    choice.add_argument("--until", type=a_moment, metavar="TIMESTAMP|DURATION", help="older than this")
    choice.add_argument("--key", help="with this key")
    actions = parser.add_subparsers(required=True, dest="action", metavar="list|show|retry|discard")

    def add(name: str, text: str, end: str) -> argparse.ArgumentParser:
        epilog = f"example: orchestrator {example} {name} {end}"
        return actions.add_parser(name, parents=[choice], help=text, description=text, epilog=epilog)

    listing = add("list", "name each one: where, when, why", "--since 2h")
    listing.add_argument("--limit", type=at_least_one, default=SHOWN, help=f"how many ({SHOWN})")
    listing.add_argument("--json", action="store_true", help="print the result as JSON")
    listing.add_argument("--handled", action="store_true", help="those that are done with, too")
    showing = add("show", "all about each one, as JSON", "0:17 --payload")
    showing.add_argument("--payload", action="store_true", help="its content too: may hold passwords")
    showing.add_argument("--json", action="store_true", help="nothing else: it is JSON anyway")
    showing.set_defaults(handled=True, all=False)
    for name, text in (("retry", "send them again"), ("discard", "be done with them, unsent")):
        changing = add(name, text, f"--reason {reason} --dry-run")
        changing.add_argument("--all", action="store_true", help="all that wait")
        changing.add_argument("--yes", action="store_true", help="do not ask")
        changing.add_argument("--dry-run", action="store_true", help="only count them")
        changing.set_defaults(handled=False)
