"""`parked`: list, show, retry and discard parked rows, those that Kafka rejected."""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence

from orchestrator.cli.actions import (
    confirm,
    filter_of,
    headers_as_fields,
    key_text,
    payload_text,
    print_each,
    print_list,
    print_result,
    report_missing,
)
from orchestrator.cli.session import open_session
from orchestrator.cli.terminal import printable_key, table
from orchestrator.operations.dead_letters.filter import Selection
from orchestrator.operations.repair.log import write_down
from outbox import Connection, retry_transaction, transaction
from outbox.admin import (
    ParkedRow,
    RowId,
    discard_parked,
    read_parked,
    read_parked_value,
    retry_parked,
)

PARKED_ROWS = "parked rows"


def parked(options: argparse.Namespace) -> int:
    """List, show, retry or discard parked rows."""
    chosen = filter_of(options)
    with open_session("parked", kafka=False) as (_, conn):
        found = (row for row in read_parked(conn) if is_chosen(row, options, chosen))
        if options.action in {"retry", "discard"}:
            return change_rows(options, chosen, conn, list(found))
        if options.action == "show":
            fields = (row_with_value(conn, row, options.payload) for row in found)
            return print_each(fields, options.payload)
        return print_list(options, PARKED_ROWS, "parked_rows", found, row_fields, rows_table)


def is_chosen(row: ParkedRow, options: argparse.Namespace, chosen: Selection) -> bool:
    """Return whether the options choose a row."""
    return (
        (chosen.reason or "") in row.reason
        and chosen.takes(row.row_id, row.parked_at, row.key)
        and (options.handled or row.discarded_at is None)
    )


def rows_table(listed: Sequence[ParkedRow]) -> Iterator[str]:
    """Yield a line for each row."""
    rows = [
        (
            f"{row.lane}:{row.id}",
            f"{row.parked_at:%Y-%m-%d %H:%M:%S}",
            row.topic,
            printable_key(row.key),
            row.aggregate_id,
            row.size_bytes,
            "waiting" if row.discarded_at is None else "discarded",
            row.reason,
        )
        for row in listed
    ]
    head = ("row id", "parked (UTC)", "topic", "key", "aggregate id", "bytes", "state", "reason")
    yield from table(head, rows)


def row_fields(row: ParkedRow, payload: bool = False) -> dict[str, object]:
    """Return a row for a script; payload: with the record's own headers."""
    return {
        "row_id": f"{row.lane}:{row.id}",
        "topic": row.topic,
        "key": key_text(row.key),
        "aggregate_id": row.aggregate_id,
        "bytes": row.size_bytes,
        "created_at": row.created_at,
        "parked_at": row.parked_at,
        "discarded_at": row.discarded_at,
        "reason": row.reason,
        "headers": headers_as_fields(row.headers, payload),
    }


def row_with_value(conn: Connection, row: ParkedRow, payload: bool) -> dict[str, object]:
    """Return a row with its content, if that was asked for."""
    fields = row_fields(row, payload)
    return fields | ({"payload": payload_text(read_parked_value(conn, row.row_id))} if payload else {})


def change_rows(
    options: argparse.Namespace, chosen: Selection, conn: Connection, rows: Sequence[ParkedRow]
) -> int:
    """Ask, then retry or discard all rows in one Postgres transaction."""
    counts = Counter(row.reason for row in rows)
    places = [row.row_id for row in rows]
    code = report_missing("parked row", chosen.places.difference(places))
    if not confirm(options, PARKED_ROWS, counts):
        return code
    command = " ".join(["parked", options.action, *chosen.words()])
    done = deal_with(conn, command, options.action, places)
    print_result(options.action, PARKED_ROWS, counts, len(done))
    return code


@retry_transaction
def deal_with(conn: Connection, command: str, action: str, places: Sequence[RowId]) -> Sequence[RowId]:
    """One Postgres transaction: `retry` or `discard` those that still wait; return them."""
    with transaction(conn):
        done = (retry_parked if action == "retry" else discard_parked)(conn, places)
        if done:
            counts = {"rows": len(done)}
            write_down(conn, command, PARKED_ROWS, action, {"places": done}, {}, counts)
    return done
