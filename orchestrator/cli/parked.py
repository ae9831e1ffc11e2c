"""`parked`: list, show, retry and discard parked rows, those that Kafka rejected."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from orchestrator.cli import actions
from orchestrator.cli.exit_codes import CHECK_FAILED
from orchestrator.cli.session import operator_session
from orchestrator.cli.terminal import print_error, print_lines, table
from orchestrator.config.settings import Settings
from orchestrator.errors import NotRepaired
from orchestrator.observability.masking import shown_bytes
from orchestrator.operations.dead_letters.filter import RecordFilter
from orchestrator.operations.dead_letters.headers import TOPIC_NAME
from orchestrator.operations.parked_rows import discard_rows, find_parked_rows, look_up, retry_rows
from orchestrator.operations.repair.published_rows import FoundRow
from orchestrator.operations.text import utc_text
from outbox import Connection
from outbox.admin import ParkedRow, RowId, read_parked_value

PARKED_ROWS = "parked rows"
LISTED = 10  # rows that are named one by one


def parked(options: argparse.Namespace) -> int:
    """List, show, retry or discard parked rows."""
    chosen = actions.filter_of(options)
    with operator_session("parked", kafka=options.action == "retry") as (settings, conn):
        found = find_parked_rows(conn, settings, chosen, options.handled or options.purge)
        if options.action == "retry":
            return retry(options, chosen, settings, conn, list(found))
        if options.action == "discard":
            return discard(options, chosen, conn, list(found))
        if options.action == "show":
            fields = (row_with_value(conn, row, options.payload) for row in found)
            return actions.print_each(fields, options.payload)
        return actions.print_list(options, PARKED_ROWS, "parked_rows", found, row_fields, rows_table)


def rows_table(listed: Sequence[ParkedRow]) -> Iterator[str]:
    """Yield a line for each row."""
    rows = [
        (
            f"{row.lane}:{row.id}",
            utc_text(row.parked_at),
            shown_topic(row.topic),
            actions.shown_key(row.key),
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
        "topic": shown_topic(row.topic),
        "key": actions.shown_key(row.key),
        "aggregate_id": row.aggregate_id,
        "message_id": row.message_id,
        "bytes": row.size_bytes,
        "created_at": row.created_at,
        "parked_at": row.parked_at,
        "discarded_at": row.discarded_at,
        "reason": row.reason,
        "headers": actions.headers_as_fields(row.headers, payload),
    }


def shown_topic(topic: str) -> str:
    """Return the name of a topic, if it can be one: any program may have written the row."""
    return shown_bytes(topic.encode(), TOPIC_NAME)


def row_with_value(conn: Connection, row: ParkedRow, payload: bool) -> dict[str, object]:
    """Return a row with its content, if that was asked for."""
    fields = row_fields(row, payload)
    if not payload:
        return fields
    return fields | (
        {"payload": actions.payload_text(read_parked_value(conn, row.row_id))} if payload else {}
    )


def discard(
    options: argparse.Namespace, chosen: RecordFilter, conn: Connection, rows: Sequence[ParkedRow]
) -> int:
    """Ask, then discard all rows in one Postgres transaction; --purge: delete what they hold, too."""
    counts = Counter(row.reason for row in rows if row.discarded_at is None)
    row_ids = [row.row_id for row in rows]
    code = actions.report_missing("parked row", chosen.ids.difference(row_ids))
    purge = f"purge the content of these, and of discarded ones: {len(rows):,}" if options.purge else ""
    if actions.confirm(options, PARKED_ROWS, counts, purge):
        done = discard_rows(conn, row_ids, typed_command(options, chosen), options.purge)
        actions.print_result(options.action, PARKED_ROWS, counts, done.discarded)
        if options.purge:
            print_lines([f"the content of {done.purged:,} {PARKED_ROWS} is deleted"])
    return code


def retry(
    options: argparse.Namespace,
    chosen: RecordFilter,
    settings: Settings,
    conn: Connection,
    rows: Sequence[ParkedRow],
) -> int:
    """Look the rows up in their topics, ask, then retry the others in one Postgres transaction."""
    code = actions.report_missing("parked row", chosen.ids.difference(row.row_id for row in rows))
    if faulty := [row for row in rows if row.fault]:
        code = print_error(CHECK_FAILED, describe_faulty(faulty))
        rows = [row for row in rows if not row.fault]
    found = look_up(conn, settings, rows, sys.stderr)
    if found.sent:
        print_lines(describe_sent(found.sent))
    if found.unknown:
        accept_unknown(options, found.unknown)
    if not actions.confirm(options, PARKED_ROWS, Counter(row.reason for row in rows)):
        return code
    sent = frozenset(one.row_id for one in found.sent)
    done = retry_rows(conn, rows, sent, typed_command(options, chosen))
    if done.acknowledged:
        print_lines([f"{done.acknowledged:,} were sent before: acknowledged, and not sent again"])
    others = Counter(row.reason for row in rows if row.row_id not in sent)
    actions.print_result(options.action, PARKED_ROWS, others, done.retried)
    return code


def describe_faulty(rows: Sequence[ParkedRow]) -> str:
    """Say which rows cannot be retried as they are, and what to do about them."""
    named = "; ".join(f"row {row.lane}:{row.id}: {row.fault}" for row in rows[:LISTED])
    more = f"; and {len(rows) - LISTED:,} others" if len(rows) > LISTED else ""
    advice = "correct the row in outbox_parked, name its topic in RELAY_TOPICS, or discard it"
    return f"not retried: {named}{more}: {advice}"


def describe_sent(sent: Sequence[FoundRow]) -> Iterator[str]:
    """Yield where the records are of rows that were sent before."""
    for row in sent[:LISTED]:
        place = f"{shown_topic(row.topic)}[{row.partition}] {row.offset}"
        yield f"row {row.lane}:{row.id} was sent before: its record is at {place}"
    if len(sent) > LISTED:
        yield f"{len(sent) - LISTED:,} others were sent before, too"


def accept_unknown(options: argparse.Namespace, unknown: Sequence[RowId]) -> None:
    """Report rows of which it is not known; raise NotRepaired if the operator has not chosen."""
    names = ", ".join(f"{lane}:{number}" for lane, number in unknown[:LISTED])
    text = (
        f"of {len(unknown):,} rows ({names}) it is not known whether they were sent before: retention"
        " has deleted younger records of their topics. They were not, unless the database was restored"
    )
    if not options.dry_run and options.unknown_rows is None:
        raise NotRepaired(
            f"{text}. Choose --unknown-rows publish (a reader may see them twice), or discard them"
        )
    print_lines([text])


def typed_command(options: argparse.Namespace, chosen: RecordFilter) -> str:
    """Return the command as it was typed, for the table `repairs`."""
    unknown_rows = getattr(options, "unknown_rows", None)
    more = ["--unknown-rows", unknown_rows] if unknown_rows else []
    more += ["--purge"] * options.purge
    return " ".join(["parked", options.action, *chosen.to_arguments(), *more])
