"""What `dlq` and `parked` have in common: which ones are meant, asking first, showing without secrets.

Contents may hold credentials: they are shown only where `show --payload` asks for them.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from typing import Protocol, TypeVar

from orchestrator.arguments import a_moment, a_place, at_least_one
from orchestrator.operators import print_json, print_lines
from orchestrator.selection import Selection
from orchestrator.terminal import CHECK_FAILED, OK, USAGE, ask, complain, somebody_answers
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
    key = None if options.key is None else options.key.encode()
    return Selection(frozenset(options.places), options.reason, options.since, options.until, key)


# ---- looking ------------------------------------------------------------------------------------


def first_of(found: Iterable[T], limit: int) -> tuple[list[T], Counter[str]]:
    """Return the first `limit`, and how many there are in all, by reason."""
    listed: list[T] = []
    counts: Counter[str] = Counter()
    for one in found:
        counts[one.reason] += 1
        if len(listed) < limit:
            listed.append(one)
    return listed, counts


def summary(what: str, counts: Counter[str]) -> str:
    """Return the counts in words."""
    by_reason = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
    return f"{sum(counts.values()):,} {what}" + (f": {by_reason}" if by_reason else "")


def last_line(what: str, counts: Counter[str], shown: int) -> str:
    """Return the end of a list."""
    more = f"; the first {shown:,} are shown, see --limit" if shown < sum(counts.values()) else ""
    return summary(what, counts) + more


def show(found: Iterable[dict[str, object]]) -> int:
    """Print each one in full. A payload was asked for: it comes as it is."""
    shown = 0
    for fields in found:
        payload = fields.pop("payload", None)
        print_json(fields)
        if payload is not None:
            print(payload)
        shown += 1
    return OK if shown else complain(CHECK_FAILED, "there is none like that")


NUMBERS = frozenset(f"kafka_dlt-original-{what}" for what in ("partition", "offset", "timestamp"))


def headers_as_fields(headers: Headers, payload: bool) -> dict[str, object]:
    """Return the headers that we added as they are, the record's own only with the payload."""
    fields: dict[str, object] = {}
    for name, value in headers:
        if name in NUMBERS and value is not None:
            fields[name] = int.from_bytes(value, "big", signed=True)
        elif payload or name.startswith(("kafka_dlt-", "dlq-")):
            fields[name] = payload_of(value)
        else:
            fields[name] = "hidden"
    return fields


def payload_of(value: bytes | None) -> str | None:
    """Return content as text; a byte that is no UTF-8 becomes \\\\xNN."""
    return None if value is None else value.decode("utf-8", "backslashreplace")


# ---- changing -------------------------------------------------------------------------------------


def may_change(options: argparse.Namespace, selection: Selection) -> bool:
    """Say whether it is clear what is to be changed, and that somebody agrees; complain if not."""
    if selection.means_all and not options.all:
        complain(USAGE, "say which ones: places, --reason, --since, --until, --key, or --all")
        return False
    return somebody_answers(options)


def agreed(options: argparse.Namespace, what: str, counts: Counter[str]) -> bool:
    """Say what is about to happen, and ask; False if nothing is to happen."""
    print_lines([f"{options.action} {summary(what, counts)}"])
    if options.dry_run:
        print_lines(["dry run: nothing was changed"])
    elif counts and not (options.yes or ask("Go on?")):
        print_lines(["nothing was changed"])
    else:
        return bool(counts)
    return False


# ---- arguments --------------------------------------------------------------------------------------


def add_actions(parser: argparse.ArgumentParser, place: str, reason: str, example: str) -> None:
    """Add list, show, retry and discard. place: what names one; reason: an example of one."""
    choice = argparse.ArgumentParser(add_help=False)
    choice.add_argument("places", nargs="*", type=a_place, metavar=place, help="these alone")
    choice.add_argument("--reason", metavar="TEXT", help=f"of this reason, such as {reason}")
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
    showing = add("show", "all about one, as JSON", "0:17 --payload")
    showing.add_argument("--payload", action="store_true", help="its content too: may hold passwords")
    for looking in (listing, showing):
        looking.add_argument("--handled", action="store_true", help="those that are done with, too")
    for name, text in (("retry", "send them again"), ("discard", "be done with them, unsent")):
        changing = add(name, text, f"--reason {reason} --dry-run")
        changing.add_argument("--all", action="store_true", help="all that wait")
        changing.add_argument("--yes", action="store_true", help="do not ask")
        changing.add_argument("--dry-run", action="store_true", help="only count them")
        changing.set_defaults(handled=False)
