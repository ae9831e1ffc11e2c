"""`status`: one screen, once or repeated."""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import psycopg

from orchestrator.cli.exit_codes import CHECK_FAILED, OK, UNREACHABLE
from orchestrator.cli.known_errors import is_unreachable
from orchestrator.cli.operator_arguments import WATCH_S
from orchestrator.cli.session import operator_session
from orchestrator.cli.terminal import print_error, print_json, print_lines, table
from orchestrator.operations.status.input import DeadLetterCount, PartitionReport
from orchestrator.operations.status.lanes import MAX_COUNTED, LaneReport
from orchestrator.operations.status.problems import OLD_S, describe_deferred
from orchestrator.operations.status.statements import TIMEOUT_S
from orchestrator.operations.status.status import Status, read_status, status_fields
from orchestrator.operations.text import duration
from outbox import DatabaseNotReady, error_text

PAUSE_FACTOR = 4  # times as long as the reading took: --watch costs at most a fifth of the time
CLEAR = "\x1b[H\x1b[2J"


def show_status(options: argparse.Namespace) -> int:
    """Show the status, once or until Ctrl-C."""
    if not options.watch:
        return show_once(options)
    with suppress(KeyboardInterrupt):
        while True:
            began = time.monotonic()
            try:
                show_once(options)
            except (psycopg.Error, DatabaseNotReady) as error:  # just then it is watched: go on
                print_error(UNREACHABLE, error_text(error))
            time.sleep(max(WATCH_S, PAUSE_FACTOR * (time.monotonic() - began)))
    return OK


def show_once(options: argparse.Namespace) -> int:
    """Read the status and show it; return the exit code."""
    with operator_session("status", kafka=False, statement_timeout_s=TIMEOUT_S) as (settings, conn):
        found = read_status(settings, conn)
    if options.json:
        print_json(status_fields(found))
    else:
        if options.watch and sys.stdout.isatty():
            print(CLEAR, end="")
        print_lines(render_status(found))
    if any(map(is_unreachable, found.unknown.values())):
        return UNREACHABLE
    return CHECK_FAILED if found.unknown or found.problems else OK


def render_status(status: Status) -> Iterator[str]:
    """Yield the lines of the screen."""
    versions = ", ".join(f"{name} {version}" for name, version in status.versions.items())
    yield f"{status.at:%Y-%m-%d %H:%M:%S} UTC   {versions}"
    yield f"processes: {status.consumers} consumer(s), {status.relays} relay(s) in Postgres"
    accepted, deployed = (_rate(rate) for rate in status.rates)
    yield f"commands of the last minute: {accepted} accepted, {deployed} deployed"
    yield ""
    lanes = [
        (
            lane.lane,
            lane.state,
            lane.owner,
            lane.epoch,
            lane.batch_number,
            lane.inflight,
            _pending(lane),
            _age(lane),
        )
        for lane in status.lanes
    ]
    yield from table(
        ("lane", "state", "owner", "epoch", "batch", "inflight", "pending", "oldest"), lanes
    )
    yield ""
    partitions = [
        (one.partition, _state(one), one.position, one.high_watermark, one.lag)
        for one in status.partitions or ()
    ]
    yield from table(("partition", "state", "position", "high watermark", "lag"), partitions)
    yield ""
    yield f"dead letters: {_letters(status.dead_letters)}"
    parked = ", ".join(f"{rows} {reason}" for reason, rows in status.parked.items())
    yield f"parked rows:  {parked or 'none'}" + ("   orchestrator parked list" if parked else "")
    for problem in status.problems:
        yield f"PROBLEM  {problem}"
    for what, error in status.unknown.items():
        yield f"UNKNOWN  {what}: {error_text(error)}"
    for note in notes(status):
        yield f"NOTE     {note}"


def notes(status: Status) -> Iterator[str]:
    """Yield what an operator may want to know and that is no problem."""
    for one in status.deferred:
        if one.oldest_s <= OLD_S:
            yield describe_deferred(one)
    if status.relays and any(lane.owner is None for lane in status.lanes):
        yield "lanes without an owner: a relay takes them within seconds"


def _state(partition: PartitionReport) -> str:
    return "refused" if partition.refusal else "unread" if partition.unread else "ok"


def _rate(rate: float | None) -> str:
    return "not counted" if rate is None else f"{rate:,.1f}/s"


def _pending(lane: LaneReport) -> int | str:
    if lane.pending is None:
        return "unknown"
    return lane.pending if lane.pending < MAX_COUNTED else f"{MAX_COUNTED} or more"


def _letters(letters: DeadLetterCount | None) -> str:
    if letters is None:
        return "unknown"
    bound = " at most" if letters.is_upper_bound else ""
    return f"{letters.letters}{bound}" + ("   orchestrator dlq list" if letters.letters else "")


def _age(lane: LaneReport) -> str | None:
    return None if lane.oldest_s is None else duration(lane.oldest_s)
