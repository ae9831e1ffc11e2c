"""`waiting`: list the rows that wait in the outbox, by topic, key and age; park some by hand."""

import argparse
import os
from collections.abc import Iterator, Sequence

from orchestrator.cli import actions
from orchestrator.cli.exit_codes import CHECK_FAILED, OK
from orchestrator.cli.parked import shown_topic
from orchestrator.cli.session import operator_session
from orchestrator.cli.terminal import ask, print_error, print_json, print_lines, require_answer, table
from orchestrator.errors import NotRepaired
from orchestrator.operations.text import duration
from orchestrator.operations.waiting_rows import park_rows
from orchestrator.program import PROGRAM
from outbox import Connection
from outbox.admin import ListedRow, RowFilter, RowId, TopicBacklog, count_by_topic, list_rows


def list_waiting(options: argparse.Namespace) -> int:
    """Print the rows that wait: how many for each topic, and the first ones."""
    key = None if options.key is None else os.fsencode(options.key)
    chosen = RowFilter(topic=options.topic, key=key)
    with operator_session("waiting", kafka=False) as (_, conn):
        topics, rows = count_by_topic(conn, chosen), list_rows(conn, chosen, options.limit)
    if options.json:
        print_json(
            {
                "topics": [one._asdict() | {"topic": shown_topic(one.topic)} for one in topics],
                "rows": [row_fields(row) for row in rows],
            }
        )
    else:
        print_lines(render_waiting(topics, rows))
    return OK


def render_waiting(topics: Sequence[TopicBacklog], rows: Sequence[ListedRow]) -> Iterator[str]:
    """Yield a line for each topic, and for each of the first rows."""
    waiting = sum(one.rows for one in topics)
    yield from table(
        ("topic", "rows", "oldest"),
        [(shown_topic(one.topic), one.rows, duration(one.oldest_s)) for one in topics],
    )
    yield from table(
        ("row id", "age", "topic", "key", "in flight"),
        [
            (
                f"{row.lane}:{row.id}",
                duration(row.age_s),
                shown_topic(row.topic),
                actions.shown_key(row.key),
                row.batch_number and f"batch {row.batch_number}",
            )
            for row in rows
        ],
    )
    more = f"; the first {len(rows):,} are shown, see --limit" if len(rows) < waiting else ""
    yield f"{waiting:,} rows wait{more}"


def row_fields(row: ListedRow) -> dict[str, object]:
    """Return a row for a script."""
    return {
        "row_id": f"{row.lane}:{row.id}",
        "topic": shown_topic(row.topic),
        "key": actions.shown_key(row.key),
        "aggregate_id": row.aggregate_id,
        "age_s": row.age_s,
        "batch_number": row.batch_number,
    }


def park(options: argparse.Namespace) -> int:
    """Ask, then park rows: they are not sent until `parked retry` sends them."""
    require_answer(options)
    row_ids = sorted({RowId(*one) for one in options.ids})
    with operator_session("waiting", kafka=False) as (_, conn):
        found = list_rows(conn, RowFilter(row_ids), len(row_ids))
        code = report_others(row_ids, found)
        free = [row.row_id for row in found if row.batch_number is None]
        print_lines([f"park {len(free):,} rows: later rows of their keys will be sent before them"])
        if options.dry_run:
            print_lines(["dry run: nothing was changed"])
            return code
        if not free:
            return code
        if not (options.yes or ask("Go on?")):
            raise NotRepaired("nothing was changed")
        return max(code, park_and_report(conn, free, options.reason))


def report_others(row_ids: Sequence[RowId], found: Sequence[ListedRow]) -> int:
    """Print which rows cannot be parked, and why; return the exit code."""
    code = actions.report_missing("row", set(row_ids).difference(row.row_id for row in found))
    if ids := ", ".join(f"{row.lane}:{row.id}" for row in found if row.batch_number is not None):
        code = print_error(CHECK_FAILED, f"in flight, perhaps in Kafka already, and not parked: {ids}")
    return code


def park_and_report(conn: Connection, row_ids: Sequence[RowId], reason: str) -> int:
    """Park rows; say how many were, and where they are now."""
    command = " ".join(["waiting", "park", *(f"{lane}:{number}" for lane, number in row_ids)])
    done = park_rows(conn, row_ids, reason, command)
    print_lines([f"{len(done):,} rows are parked: `{PROGRAM} parked retry` sends them later"])
    if others := len(row_ids) - len(done):
        why = "claimed or gone meanwhile, or of a lane that does not exist"
        return print_error(CHECK_FAILED, f"{others:,} were not: {why}")
    return OK
