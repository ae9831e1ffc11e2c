"""`dlq`: list, show, retry and discard dead letters."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from orchestrator.cli import actions
from orchestrator.cli.session import operator_session
from orchestrator.cli.terminal import printable_key, table
from orchestrator.config.settings import Settings
from orchestrator.operations.dead_letters.filter import RecordFilter
from orchestrator.operations.dead_letters.letters import (
    DeadLetter,
    find_dead_letters,
    handle_dead_letters,
    read_dead_letters,
)
from outbox import Connection

DEAD_LETTERS = "dead letters"
STATES = {None: "waiting", "retry": "retried", "discard": "discarded"}


def dlq(options: argparse.Namespace) -> int:
    """List, show, retry or discard dead letters."""
    chosen = actions.filter_of(options)
    with operator_session("dlq") as (settings, conn):
        if options.action in {"retry", "discard"}:
            return change_letters(options, chosen, settings, conn)
        chunks = read_dead_letters(conn, find_dead_letters(settings, chosen), chosen, sys.stderr)
        found = (one for chunk in chunks for one in chunk if options.handled or one.action is None)
        if options.action == "show":
            fields = (letter_fields(one, options.payload) for one in found)
            return actions.print_each(fields, options.payload)
        return actions.print_list(
            options, DEAD_LETTERS, "dead_letters", found, letter_fields, letters_table
        )


def letters_table(listed: Sequence[DeadLetter]) -> Iterator[str]:
    """Yield a line for each dead letter."""
    rows = [
        (
            str(one.record_id),
            f"{one.at:%Y-%m-%d %H:%M:%S}",
            one.reason,
            one.origin,
            printable_key(one.key),
            len(one.value or b""),
            STATES[one.action],
        )
        for one in listed
    ]
    yield from table(("record id", "time (UTC)", "reason", "origin", "key", "bytes", "state"), rows)


def letter_fields(letter: DeadLetter, payload: bool = False) -> dict[str, object]:
    """Return a dead letter for a script; payload: with its content."""
    fields: dict[str, object] = {
        "record_id": str(letter.record_id),
        "at": letter.at,
        "reason": letter.reason,
        "origin": letter.origin,
        "key": actions.key_text(letter.key),
        "bytes": len(letter.value or b""),
        "action": letter.action,
        "headers": actions.headers_as_fields(letter.headers, payload),
    }
    return fields | ({"payload": actions.payload_text(letter.value)} if payload else {})


def change_letters(
    options: argparse.Namespace, chosen: RecordFilter, settings: Settings, conn: Connection
) -> int:
    """Count, ask, then retry or discard, each chunk in a transaction of its own."""
    topic = find_dead_letters(settings, chosen)  # dead letters that come later are not meant

    def waiting() -> Iterable[list[DeadLetter]]:
        for chunk in read_dead_letters(conn, topic, chosen, sys.stderr):
            yield [letter for letter in chunk if letter.action is None]

    counts: Counter[str] = Counter()
    missing = set(chosen.ids)
    for chunk in waiting():
        counts.update(letter.reason for letter in chunk)
        missing.difference_update(letter.record_id for letter in chunk)
    code = actions.report_missing("dead letter", missing)
    if not actions.confirm(options, DEAD_LETTERS, counts):
        return code
    command = " ".join(["dlq", options.action, *chosen.to_arguments()])
    chunks = filter(None, waiting())
    done = sum(handle_dead_letters(conn, topic, chunk, options.action, command) for chunk in chunks)
    actions.print_result(options.action, DEAD_LETTERS, counts, done)
    return code
