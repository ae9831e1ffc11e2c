"""`parked`: list, show, retry and discard parked rows, those that Kafka rejected."""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence

from orchestrator.cli import actions
from orchestrator.cli.session import operator_session
from orchestrator.cli.terminal import printable_key, table
from orchestrator.operations.dead_letters.filter import RecordFilter
from orchestrator.operations.parked_rows import find_parked_rows, handle_parked_rows
from outbox import Connection
from outbox.admin import ParkedRow, read_parked_value

PARKED_ROWS = "parked rows"


def parked(options: argparse.Namespace) -> int:
    """List, show, retry or discard parked rows."""
    chosen = actions.filter_of(options)
    with operator_session("parked", kafka=False) as (_, conn):
        found = find_parked_rows(conn, chosen, options.handled)
        if options.action in {"retry", "discard"}:
            return change_rows(options, chosen, conn, list(found))
        if options.action == "show":
            fields = (row_with_value(conn, row, options.payload) for row in found)
            return actions.print_each(fields, options.payload)
        return actions.print_list(options, PARKED_ROWS, "parked_rows", found, row_fields, rows_table)


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
        "key": actions.key_text(row.key),
        "aggregate_id": row.aggregate_id,
        "bytes": row.size_bytes,
        "created_at": row.created_at,
        "parked_at": row.parked_at,
        "discarded_at": row.discarded_at,
        "reason": row.reason,
        "headers": actions.headers_as_fields(row.headers, payload),
    }


def row_with_value(conn: Connection, row: ParkedRow, payload: bool) -> dict[str, object]:
    """Return a row with its content, if that was asked for."""
    fields = row_fields(row, payload)
    if not payload:
        return fields
    return fields | (
        {"payload": actions.payload_text(read_parked_value(conn, row.row_id))} if payload else {}
    )


def change_rows(
    options: argparse.Namespace, chosen: RecordFilter, conn: Connection, rows: Sequence[ParkedRow]
) -> int:
    """Ask, then retry or discard all rows in one Postgres transaction."""
    counts = Counter(row.reason for row in rows)
    row_ids = [row.row_id for row in rows]
    code = actions.report_missing("parked row", chosen.ids.difference(row_ids))
    if not actions.confirm(options, PARKED_ROWS, counts):
        return code
    command = " ".join(["parked", options.action, *chosen.to_arguments()])
    done = handle_parked_rows(conn, row_ids, options.action, command)
    actions.print_result(options.action, PARKED_ROWS, counts, len(done))
    return code
