"""`explain`: what is known of a worker or a scenario, a line for each step."""

import argparse
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from orchestrator.cli.dlq import describe_state
from orchestrator.cli.exit_codes import CHECK_FAILED, OK
from orchestrator.cli.session import operator_session
from orchestrator.cli.terminal import print_json, print_lines
from orchestrator.operations.explain.explanation import Explanation, explain, explanation_fields
from orchestrator.operations.explain.worker_history import MAX_SHOWN, FoundRecord, WorkerHistory
from orchestrator.operations.explain.worker_records import MAX_TRIED_OFFSETS
from orchestrator.operations.text import duration, utc_text
from orchestrator.program import PROGRAM
from outbox.admin import RowStatus


def explain_id(options: argparse.Namespace) -> int:
    """Show what is known of a scenario or a worker."""
    with operator_session("explain") as (settings, conn):
        found = explain(settings, conn, options.id, sys.stderr)
    if options.json:
        print_json(explanation_fields(found))
    else:
        print_lines(render_explanation(found))
    return OK if found.known else CHECK_FAILED


SEE_STATUS = f"see `{PROGRAM} status`"
WHY_NO_RECORD = f"deleted by retention, or never published; `{PROGRAM} audit` tells"


def render_explanation(found: Explanation) -> Iterator[str]:
    """Yield a line for each step of each worker, with the time since the step before."""
    if found.more_workers:
        yield f"earlier workers are left out: these are the latest {MAX_SHOWN}"
    for history in found.workers:
        yield f"worker {history.worker.worker_id} of scenario {history.worker.scenario_uuid}"
        before: datetime | None = None
        for at, text in timeline(history):
            yield f"  {_moment(at)}  {_since(before, at):>9}  {text}"
            before = at or before
    yield from _render_failures(found)
    if found.unpublished:
        yield f"{found.unpublished:,} dead letters are not published yet, perhaps its own; {SEE_STATUS}"
    if found.unsearched:
        yield f"up to {found.unsearched:,} unconsumed commands were not searched; {SEE_STATUS}"
    if not found.known and found.complete:
        yield f"{found.id} is unknown: no worker, no dead letter, no unconsumed command"
    elif not found.known:
        yield f"{found.id} was not found, but not everything could be searched"


def _render_failures(found: Explanation) -> Iterator[str]:
    """Yield what mentions the id and has no worker, or not yet."""
    if found.more_letters:
        left_out = f"{found.more_letters:,} earlier dead letters are left out"
        yield f"{left_out}: these are the latest {MAX_SHOWN}"
    for letter in found.letters:
        origin = letter.origin.name if letter.origin else "of unknown origin"
        yield f"dead letter {letter.record_id} of {utc_text(letter.at)} UTC"
        yield f"  reason {letter.reason}; it was {origin}; {describe_state(letter)}"
        yield f"  {PROGRAM} dlq show {letter.record_id}"
    for row in found.parked:
        yield f"a row that mentions it, no deploy order: {_render_row(row)}"
    for record in found.unread:
        yield f"{_where(record)}: not consumed yet; {SEE_STATUS}"
    if found.more_unread:
        yield f"and {found.more_unread:,} more that are not consumed yet"


def timeline(history: WorkerHistory) -> Iterator[tuple[datetime | None, str]]:
    """Yield the time and the text of each step of a worker, and what it waits for."""
    worker, row, order = history.worker, history.row, history.order
    yield history.command_time, _render_command(history)
    is_ours = history.command_time is not None
    yield worker.created_at, "accepted: worker and outbox row written" if is_ours else "inserted"
    if order:
        yield order.at, f"published to {_where(order)}"
    elif row:
        yield None, _render_row(row)
    else:
        yield None, _render_no_order(history)
    for duplicate in history.duplicates:
        yield duplicate.at, f"PUBLISHED TWICE: also to {_where(duplicate)}; run `{PROGRAM} audit`"
    process = "" if worker.process_pid is None else f", process {worker.process_pid}"
    if worker.status != "pending":
        yield worker.updated_at, f"{worker.status}{process}"
    elif history.deferred:
        yield None, f"pending, DEFERRED: {history.deferred}; a relay sets it to deployed later"
    elif order and row:
        yield None, f"not acknowledged yet: batch {row.batch_number}; {SEE_STATUS}"
    elif order:
        yield None, "pending: just being acknowledged, perhaps; run it again"
    else:
        yield None, "pending"


def _render_no_order(history: WorkerHistory) -> str:
    if history.command_time is None:
        return "no order, and none is expected"
    if history.worker.status == "pending" and not history.deferred:
        return f"MISSING: neither outbox row nor record; run `{PROGRAM} audit`"
    return f"no record in the topic: {WHY_NO_RECORD}"


def _render_command(history: WorkerHistory) -> str:
    if history.command:
        deleted = "" if history.command.at else ", deleted since by retention"
        return f"command in {_where(history.command)}{deleted}"
    if history.command_time is None:
        return "not made by us: its id is of no command, so the platform inserted it itself"
    if history.unsearched_offsets:
        return (
            f"command not found: in each partition {MAX_TRIED_OFFSETS:,} offsets were tried from its"
            f" time on; {history.unsearched_offsets:,} later ones were not"
        )
    return "command: its record is in no partition any more, or its topic was recreated"


def _render_row(row: RowStatus) -> str:
    name = f"lane {row.lane}, row {row.id}"
    if row.reason is not None:
        discarded = ", discarded by an operator" if row.discarded else ""
        command = f"{PROGRAM} parked show {row.lane}:{row.id}"
        return f"PARKED ({name}): {row.reason}{discarded}; `{command}`"
    if row.batch_number is not None:
        state = f"in batch {row.batch_number}, which is not in the topic yet"
    elif row.rows_ahead:
        state = f"behind {row.rows_ahead:,} rows of its lane"
    else:
        state = "next in its lane"
    return f"in the outbox ({name}): {state}; {SEE_STATUS}"


def _where(record: FoundRecord) -> str:
    return f"{record.topic}, partition {record.partition}, offset {record.offset}"


def _moment(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] if at else " " * 23


def _since(before: datetime | None, at: datetime | None) -> str:
    if before is None or at is None:
        return ""
    seconds = (at - before).total_seconds()
    return ("+" if seconds >= 0 else "-") + duration(abs(seconds))
