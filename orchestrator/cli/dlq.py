"""`dlq`: the dead letters, as commands."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from orchestrator.cli import selected as set_aside
from orchestrator.cli.selected import headers_as_fields, key_of, payload_of
from orchestrator.cli.session import Add, on_duty
from orchestrator.cli.terminal import USAGE, readable, table
from orchestrator.operations.dead_letters.filter import Selection
from orchestrator.operations.dead_letters.letters import Letter, find_letters, handle, read_letters

WHAT = "dead letters"


def dlq(options: argparse.Namespace) -> int:
    """List, show, retry or discard dead letters."""
    selection = set_aside.selection_of(options)
    if not set_aside.is_clear(options, selection):
        return USAGE
    if options.action in {"retry", "discard"}:
        return change(options, selection)
    with on_duty("dlq") as (settings, conn):
        chunks = read_letters(conn, find_letters(settings, selection), selection, sys.stderr)
        found = (one for chunk in chunks for one in chunk if options.handled or one.action is None)
        if options.action == "show":
            fields = (as_fields(one, options.payload) for one in found)
            return set_aside.show(fields, options.payload)
        return set_aside.list_them(options, WHAT, "letters", found, as_fields, as_text)


def as_text(listed: Sequence[Letter]) -> Iterator[str]:
    """Yield the list for a person."""
    rows = [
        (
            f"{one.partition}:{one.offset}",
            f"{one.at:%Y-%m-%d %H:%M:%S}",
            one.reason,
            one.origin,
            readable(one.key),
            len(one.value or b""),
            one.action or "waits",
        )
        for one in listed
    ]
    yield from table(("place", "time (UTC)", "reason", "origin", "key", "bytes", "state"), rows)


def as_fields(letter: Letter, payload: bool = False) -> dict[str, object]:
    """Return a letter for a script; payload: with its content."""
    fields: dict[str, object] = {
        "place": f"{letter.partition}:{letter.offset}",
        "at": letter.at,
        "reason": letter.reason,
        "origin": letter.origin,
        "key": key_of(letter.key),
        "bytes": len(letter.value or b""),
        "action": letter.action,
        "headers": headers_as_fields(letter.headers, payload),
    }
    return fields | ({"payload": payload_of(letter.value)} if payload else {})


def change(options: argparse.Namespace, selection: Selection) -> int:
    """Count, ask, then retry or discard, each chunk in a transaction of its own."""
    with on_duty("dlq") as (settings, conn):
        letters = find_letters(settings, selection)  # what comes later is not meant

        def waiting() -> Iterable[list[Letter]]:
            for chunk in read_letters(conn, letters, selection, sys.stderr):
                yield [letter for letter in chunk if letter.action is None]

        counts: Counter[str] = Counter()
        missing = set(selection.places)
        for chunk in waiting():
            counts.update(letter.reason for letter in chunk)
            missing.difference_update(letter.place for letter in chunk)
        code = set_aside.name_missing("dead letter", missing)
        if not set_aside.agreed(options, WHAT, counts):
            return code
        command = " ".join(["dlq", options.action, *selection.words()])
        chunks = filter(None, waiting())
        done = sum(handle(conn, letters, chunk, options.action, command) for chunk in chunks)
    result = "in the outbox now, a relay sends them" if options.action == "retry" else "done with"
    set_aside.tell_result(WHAT, counts, done, result)
    return code


def add_dlq(add: Add) -> None:
    """Add the command."""
    parser = add("dlq", dlq, "orchestrator dlq list")
    set_aside.add_actions(parser, "PARTITION:OFFSET", "of this reason", "not_json", "dlq")
