"""`explain`: the history of an order, a line for each step."""

import argparse
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from orchestrator.cli.exit_codes import CHECK_FAILED, OK
from orchestrator.cli.session import open_session
from orchestrator.cli.terminal import print_json, print_lines
from orchestrator.operations.explain import explanation
from orchestrator.operations.explain.explanation import Story
from orchestrator.operations.explain.worker_history import SHOWN, TRIES, Found, Life, Waiting
from orchestrator.operations.text import duration


def explain_id(options: argparse.Namespace) -> int:
    """Show what is known of a scenario or a worker."""
    with open_session("explain") as (settings, conn):
        story = explanation.explain(settings, conn, options.id, sys.stderr)
    if options.json:
        print_json(explanation.as_fields(story))
    else:
        print_lines(tell_story(story))
    return OK if story.known else CHECK_FAILED


SEE_STATUS = "see `orchestrator status`"
WHY_NO_RECORD = "deleted by retention, or never sent; `orchestrator audit` tells"


def tell_story(story: Story) -> Iterator[str]:
    """Yield the story for people, a line each step, with the time since the step before."""
    if story.more_lives:
        yield f"earlier workers are left out: these are the latest {SHOWN}"
    for life in story.lives:
        yield f"worker {life.worker_id} of scenario {life.scenario_uuid}"
        before: datetime | None = None
        for at, text in steps(life):
            yield f"  {_moment(at)}  {_since(before, at):>9}  {text}"
            before = at or before
    yield from _tell_failures(story)
    if story.unpublished:
        yield f"{story.unpublished:,} dead letters are not published yet, perhaps its own; {SEE_STATUS}"
    if story.unsearched:
        yield f"up to {story.unsearched:,} unread commands were not looked through; {SEE_STATUS}"
    if not story.known and story.complete:
        yield f"nothing is known of {story.id}: no worker, no dead letter, no command that waits"
    elif not story.known:
        yield f"nothing was found of {story.id}, but not all could be looked at"


def _tell_failures(story: Story) -> Iterator[str]:
    """Yield what made no worker, or not yet."""
    if story.more_letters:
        yield f"{story.more_letters:,} earlier dead letters are left out: these are the latest {SHOWN}"
    for letter in story.letters:
        done = f", dealt with: {letter.action}" if letter.action else ""
        yield f"dead letter {letter.record_id} of {letter.at:%Y-%m-%d %H:%M:%S} UTC"
        yield f"  reason {letter.reason}; it was {letter.origin or 'of unknown origin'}{done}"
        yield f"  orchestrator dlq show {letter.record_id}"
    for row in story.parked:
        yield f"a row about it, no deploy order: {_what_holds(row)}"
    for place in story.unread:
        yield f"{_where(place)}: not consumed yet; {SEE_STATUS}"
    if story.more_unread:
        yield f"and {story.more_unread:,} more that are not consumed yet"


def steps(life: Life) -> Iterator[tuple[datetime | None, str]]:
    """Yield when what happened to an order, and what it waits for."""
    yield life.commanded_at, _what_command(life)
    yield life.created_at, "accepted: worker and outbox row written"
    if life.order:
        yield life.order.at, f"published to {_where(life.order)}"
    elif life.waiting:
        yield None, _what_holds(life.waiting)
    elif life.status == "pending":
        yield None, "MISSING: neither outbox row nor record; run `orchestrator audit`"
    else:
        yield None, f"no record in the topic: {WHY_NO_RECORD}"
    for place in life.duplicates:
        yield place.at, f"PUBLISHED AGAIN to {_where(place)}; run `orchestrator audit`"
    process = "" if life.process_pid is None else f", process {life.process_pid}"
    if life.status != "pending":
        yield life.updated_at, f"{life.status}{process}"
    elif life.order and life.waiting:
        yield None, f"not acknowledged yet: batch {life.waiting.in_hand}; {SEE_STATUS}"
    elif life.order:
        yield None, "pending: acknowledged just now, perhaps; look again"
    else:
        yield None, "pending"


def _what_command(life: Life) -> str:
    if life.command:
        gone = "" if life.command.at else ", deleted since by retention"
        return f"command in {_where(life.command)}{gone}"
    if life.commanded_at is None:
        return "command unknown: the worker's id is not made of one"
    if life.untried:
        return (
            f"command not found: in each partition {TRIES:,} places were tried from its time on;"
            f" {life.untried:,} later ones were not"
        )
    return "command: its record is in no log any more, or its topic was made anew"


def _what_holds(waiting: Waiting) -> str:
    place = f"lane {waiting.lane}, row {waiting.id}"
    if waiting.table == "outbox_parked":
        command = f"orchestrator parked show {waiting.lane}:{waiting.id}"
        return f"PARKED ({place}): {waiting.reason}; `{command}`"
    if waiting.in_hand is not None:
        state = f"in batch {waiting.in_hand}, which is not in the topic yet"
    elif waiting.ahead:
        state = f"behind {waiting.ahead:,} rows of its lane"
    else:
        state = "next in its lane"
    return f"in the outbox ({place}): {state}; {SEE_STATUS}"


def _where(place: Found) -> str:
    return f"{place.topic}, partition {place.partition}, offset {place.offset}"


def _moment(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] if at else " " * 23


def _since(before: datetime | None, at: datetime | None) -> str:
    if before is None or at is None:
        return ""
    seconds = (at - before).total_seconds()
    return ("+" if seconds >= 0 else "-") + duration(abs(seconds))
