"""The operators' commands on the whole: what they take, print and end with.

Reading is safe at any time. What changes anything says what it will do, asks (`--yes`, `--dry-run`),
and leaves a line in the table `repairs`.
"""

import argparse
import sys
import time
from contextlib import suppress

import psycopg
from confluent_kafka import OFFSET_BEGINNING, KafkaException

from orchestrator.cli import views as screens
from orchestrator.cli.arguments import a_moment, a_uuid, number_or_all, offset_or_beginning
from orchestrator.cli.session import Add, on_duty, print_json, print_lines
from orchestrator.cli.terminal import (
    CHECK_FAILED,
    OK,
    UNREACHABLE,
    USAGE,
    ask,
    complain,
    settings_for_a_person,
    somebody_answers,
)
from orchestrator.operations import audit, status
from orchestrator.operations.doctor import runner as doctor
from orchestrator.operations.explain import explanation as explain
from orchestrator.operations.repair.lane import Repair, repair_lanes
from orchestrator.operations.repair.partition import repair_partitions
from outbox import DatabaseNotReady, error_text

# ---- the commands, as in --help -----------------------------------------------------------------

WATCH_S = 2.0
REST = 4  # times as long as a look took: watching costs a fifth of what it can
CLEAR = "\x1b[H\x1b[2J"


def show_status(options: argparse.Namespace) -> int:
    """Show on one screen how everything stands; what is refused comes with its repair command."""
    if not options.watch:
        return look_once(options)
    with suppress(KeyboardInterrupt):
        while True:
            began = time.monotonic()
            try:
                look_once(options)
            except (psycopg.Error, DatabaseNotReady) as error:  # watched since something is wrong
                complain(UNREACHABLE, error_text(error))
            time.sleep(max(WATCH_S, REST * (time.monotonic() - began)))
    return OK


def look_once(options: argparse.Namespace) -> int:
    """Show the status as it is now; return the exit code."""
    with on_duty("status", kafka=False) as (settings, conn):
        found = status.read_status(settings, conn)
    if options.json:
        print_json(status.as_fields(found))
    else:
        if options.watch and sys.stdout.isatty():
            print(CLEAR, end="")
        print_lines(screens.show_status(found))
    if any(isinstance(error, KafkaException) for error in found.unknown.values()):
        return UNREACHABLE
    return CHECK_FAILED if found.unknown else OK


def examine(options: argparse.Namespace) -> int:
    """Check settings, Postgres, Kafka and what they hold; say of each fault what to do."""
    findings = []
    for finding in doctor.examine(settings_for_a_person()):
        findings.append(finding)
        if not options.json:
            print_lines([doctor.as_text(finding)])
    if options.json:
        print_json([finding._asdict() for finding in findings])
    return doctor.exit_code(findings)


def tell_life(options: argparse.Namespace) -> int:
    """Tell the whole life of an order: command, worker, outbox, deploy order; or what is missing."""
    with on_duty("explain") as (settings, conn):
        story = explain.explain(settings, conn, options.id, sys.stderr)
    if options.json:
        print_json(explain.as_fields(story))
    else:
        print_lines(screens.tell_story(story))
    return OK if story.known else CHECK_FAILED


def audit_topic(options: argparse.Namespace) -> int:
    """Compare the output topic with the workers; all processes may run."""
    with on_duty("audit") as (settings, conn):
        found = audit.audit(conn, settings.kafka, settings.output_topic, options.since, sys.stderr)
    print(audit.as_json(found) if options.json else "\n".join(audit.as_text(found)))
    return OK if found.clean else CHECK_FAILED


def repair(options: argparse.Namespace) -> int:
    """Let a refused lane or a paused partition go on."""
    if not somebody_answers(options):
        return USAGE
    if options.number is None and options.start not in {None, OFFSET_BEGINNING}:
        return complain(USAGE, "--from OFFSET goes with one partition")
    with on_duty("repair") as (settings, conn):
        run = Repair(
            settings,
            conn,
            in_words(options),
            options.dry_run,
            say=print,
            agrees=lambda: options.yes or ask("Go on?"),
            undecided={"publish": "unsent", "skip": "published"}.get(options.unknown_rows),
            talk=sys.stderr,
        )
        if options.what == "lane":
            repair_lanes(run, options.number)
        else:
            repair_partitions(run, options.number, options.start)
    return OK


def in_words(options: argparse.Namespace) -> str:
    """Return the repair as it was asked for."""
    words = ["repair", options.what, "all" if options.number is None else str(options.number)]
    if options.unknown_rows is not None:
        words += ["--unknown-rows", options.unknown_rows]
    if options.start is not None:
        words += ["--from", "beginning" if options.start == OFFSET_BEGINNING else str(options.start)]
    return " ".join(words)


# ---- their arguments --------------------------------------------------------------------------------


def add_operators(add: Add) -> None:
    """Add the commands."""
    status_parser = add("status", show_status, "orchestrator status --watch")
    status_parser.add_argument("--watch", action="store_true", help=f"again every {WATCH_S:.0f} s")
    doctor_parser = add("doctor", examine, "orchestrator doctor")
    explain_parser = add(
        "explain", tell_life, "orchestrator explain 6f1c1b2e-9d57-4d0c-8f5a-1c2d3e4f5a6b"
    )
    explain_parser.add_argument("id", type=a_uuid, metavar="SCENARIO_UUID|WORKER_ID")
    audit_parser = add("audit", audit_topic, "orchestrator audit --since 2h")
    audit_parser.add_argument(
        "--since",
        type=a_moment,
        metavar="TIMESTAMP|DURATION",
        help="leave out what is older: 2026-01-31T12:00:00Z (UTC unless it says), or 90s, 15m, 2h, 7d",
    )
    for parser in (status_parser, doctor_parser, explain_parser, audit_parser):
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_repair(add("repair", repair, "orchestrator repair lane 2 --dry-run"))


def add_repair(parser: argparse.ArgumentParser) -> None:
    """Add what `repair` can repair, and how."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--yes", action="store_true", help="do not ask")
    shared.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.set_defaults(unknown_rows=None, start=None)
    kinds = parser.add_subparsers(required=True, dest="what", metavar="lane|partition")
    lane = kinds.add_parser(
        "lane",
        parents=[shared],
        help="a lane with the marker ahead, behind or missing",
        description="Find out which of a refused lane's outbox rows are in Kafka, and start its count"
        " anew. All input must be consumed; relays may run.",
        epilog="example: orchestrator repair lane all",
    )
    lane.add_argument("number", type=number_or_all, metavar="N|all")
    lane.add_argument(
        "--unknown-rows",
        choices=("publish", "skip"),
        help="rows that only a record deleted by retention could tell of: send them, perhaps a second"
        " time, or acknowledge them, perhaps never sent",
    )
    partition = kinds.add_parser(
        "partition",
        parents=[shared],
        help="a partition whose topic was made again, or whose next offset is not in the log",
        description="Say where a paused partition of the input goes on. Consumers may run.",
        epilog="example: orchestrator repair partition 0 --from beginning",
    )
    partition.add_argument("number", type=number_or_all, metavar="N|all")
    partition.add_argument(
        "--from",
        dest="start",
        type=offset_or_beginning,
        metavar="beginning|OFFSET",
        help="the next offset (beginning: the first one that the log still has)",
    )
