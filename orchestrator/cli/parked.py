"""`parked`: the rows that Kafka refused for themselves, as commands."""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence

from orchestrator.cli import selected as set_aside
from orchestrator.cli.selected import headers_as_fields, key_of, payload_of
from orchestrator.cli.session import Add, on_duty
from orchestrator.cli.terminal import USAGE, readable, table
from orchestrator.operations.dead_letters.filter import Selection
from orchestrator.operations.repair.log import write_down
from outbox import Connection, retry_transaction, transaction
from outbox.admin import ParkedRow, Places, discard, read_parked, read_value, unpark

WHAT = "parked rows"


def parked(options: argparse.Namespace) -> int:
    """List, show, retry or discard rows that Kafka refused and that were set aside."""
    selection = set_aside.selection_of(options)
    if not set_aside.is_clear(options, selection):
        return USAGE
    with on_duty("parked", kafka=False) as (_, conn):
        found = (row for row in read_parked(conn) if is_meant(row, options, selection))
        if options.action == "show":
            fields = (in_full(conn, row, options.payload) for row in found)
            return set_aside.show(fields, options.payload)
        if options.action != "list":
            return change(options, selection, conn, list(found))
        return set_aside.list_them(options, WHAT, "rows", found, as_fields, as_text)


def is_meant(row: ParkedRow, options: argparse.Namespace, selection: Selection) -> bool:
    """Say whether a row is one of those that the person spoke of."""
    return (
        (selection.reason or "") in row.reason
        and selection.takes((row.lane, row.id), row.parked_at, row.key)
        and (options.handled or row.discarded_at is None)
    )


def as_text(listed: Sequence[ParkedRow]) -> Iterator[str]:
    """Yield the list for a person."""
    rows = [
        (
            f"{row.lane}:{row.id}",
            f"{row.parked_at:%Y-%m-%d %H:%M:%S}",
            row.topic,
            readable(row.key),
            row.aggregate_id,
            row.size_bytes,
            "waits" if row.discarded_at is None else "discard",
            row.reason,
        )
        for row in listed
    ]
    head = ("place", "parked (UTC)", "topic", "key", "aggregate_id", "bytes", "state", "reason")
    yield from table(head, rows)


def as_fields(row: ParkedRow, payload: bool = False) -> dict[str, object]:
    """Return a row for a script; payload: with the record's own headers."""
    return {
        "place": f"{row.lane}:{row.id}",
        "topic": row.topic,
        "key": key_of(row.key),
        "aggregate_id": row.aggregate_id,
        "bytes": row.size_bytes,
        "created_at": row.created_at,
        "parked_at": row.parked_at,
        "discarded_at": row.discarded_at,
        "reason": row.reason,
        "headers": headers_as_fields(row.headers, payload),
    }


def in_full(conn: Connection, row: ParkedRow, payload: bool) -> dict[str, object]:
    """Return a row with its content, if that was asked for."""
    fields = as_fields(row, payload)
    return fields | ({"payload": payload_of(read_value(conn, row.lane, row.id))} if payload else {})


def change(
    options: argparse.Namespace, selection: Selection, conn: Connection, rows: Sequence[ParkedRow]
) -> int:
    """Ask, then retry or discard all in one Postgres transaction."""
    counts = Counter(row.reason for row in rows)
    places = [(row.lane, row.id) for row in rows]
    code = set_aside.name_missing("parked row", selection.places.difference(places))
    if not set_aside.agreed(options, WHAT, counts):
        return code
    command = " ".join(["parked", options.action, *selection.words()])
    done = deal_with(conn, command, options.action, places)
    result = "in the outbox now, a relay sends them" if options.action == "retry" else "given up"
    set_aside.tell_result(WHAT, counts, len(done), result)
    return code


@retry_transaction
def deal_with(conn: Connection, command: str, action: str, places: Places) -> Places:
    """One Postgres transaction: `retry` or `discard` those that still wait; return them."""
    with transaction(conn):
        done = (unpark if action == "retry" else discard)(conn, places)
        if done:
            counts = {"rows": len(done)}
            write_down(conn, command, WHAT, action, {"places": done}, {}, counts)
    return done


def add_parked(add: Add) -> None:
    """Add the command."""
    parser = add("parked", parked, "orchestrator parked list")
    set_aside.add_actions(parser, "LANE:ID", "with this in Kafka's reason", "large", "parked")
