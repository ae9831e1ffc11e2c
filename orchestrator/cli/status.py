"""`status`: one screen, once or repeated."""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import psycopg
from confluent_kafka import KafkaException

from orchestrator.cli.exit_codes import CHECK_FAILED, OK, UNREACHABLE
from orchestrator.cli.operator_arguments import WATCH_S
from orchestrator.cli.session import operator_session
from orchestrator.cli.terminal import print_error, print_json, print_lines, table
from orchestrator.operations.status.input import DeadLetterCount
from orchestrator.operations.status.lanes import BEHIND_S, MAX_COUNTED, LaneCondition, LaneReport
from orchestrator.operations.status.status import Status, read_status, status_fields
from orchestrator.operations.text import duration
from outbox import DatabaseNotReady, error_text
from outbox.admin import DeferredReason

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
    with operator_session("status", kafka=False) as (settings, conn):
        found = read_status(settings, conn)
    if options.json:
        print_json(status_fields(found))
    else:
        if options.watch and sys.stdout.isatty():
            print(CLEAR, end="")
        print_lines(render_status(found))
    if any(isinstance(error, KafkaException) for error in found.unknown.values()):
        return UNREACHABLE
    return CHECK_FAILED if found.unknown else OK


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
        (one.partition, "refused" if one.refusal else "ok", one.position, one.high_watermark, one.lag)
        for one in status.partitions or ()
    ]
    yield from table(("partition", "state", "position", "high watermark", "lag"), partitions)
    yield ""
    yield f"dead letters: {_letters(status.dead_letters)}"
    parked = ", ".join(f"{rows} {reason}" for reason, rows in status.parked.items())
    yield f"parked rows:  {parked or 'none'}" + ("   orchestrator parked list" if parked else "")
    for one in status.deferred:
        yield f"DEFERRED {describe_deferred(one)}"
    for what, command in status.refusals.items():
        yield f"REFUSED  {what}: {command}"
    for what, error in status.unknown.items():
        yield f"UNKNOWN  {what}: {error_text(error)}"
    for warning in warnings(status):
        yield f"NOTE     {warning}"


def warnings(status: Status) -> Iterator[str]:
    """Yield what an operator should know and that is not refused."""
    if not status.relays:
        yield "no relay is connected: nothing is published until one runs"
    for relay in status.relays_without_kafka:
        yield (
            f"{relay}: Kafka does not answer this relay, and relays that it answers take its lanes;"
            " its /readyz says why: check its Kafka address, password, network and ACLs"
        )
    if not status.consumers:
        yield "no consumer is connected: nothing is accepted until one runs"
    if status.deferred:
        yield (
            "deferred workers are published; a relay sets them to deployed as soon as their rows are no"
            " longer locked and the update is not refused"
        )
    if status.relays and any(lane.owner is None for lane in status.lanes):
        yield "lanes without an owner: a relay takes them within seconds"
    if any(lane.state is LaneCondition.BEHIND for lane in status.lanes):
        yield (
            f"lanes behind: their oldest rows wait longer than {BEHIND_S:.0f} s; if the batch number"
            " does not grow from one status to the next, the relay's /readyz says why"
        )


def describe_deferred(one: DeferredReason) -> str:
    """Return which workers are published and not yet deployed, for how long, and why."""
    ids = ", ".join(map(str, one.aggregate_ids)) + ", ..." * (one.rows > len(one.aggregate_ids))
    return f"{one.rows:,} workers, the oldest for {duration(one.oldest_s)}: {one.reason}: {ids}"


def _rate(rate: float | None) -> str:
    return "too many to count" if rate is None else f"{rate:,.1f}/s"


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
