"""The operators' commands on the whole: what they take, print and end with.

Reading is safe at any time. What changes anything says what it will do, asks (`--yes`, `--dry-run`),
and leaves a line in the table `repairs`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Protocol
from uuid import UUID

from confluent_kafka import OFFSET_BEGINNING

from orchestrator import audit, doctor, explain, screens, status
from orchestrator.arguments import a_moment, number_or_all, offset_or_beginning
from orchestrator.logs import mask
from orchestrator.migrations import check_current
from orchestrator.repair import Repair, repair_lanes
from orchestrator.repair_partitions import repair_partitions
from orchestrator.settings import Settings
from orchestrator.terminal import (
    CHECK_FAILED,
    OK,
    USAGE,
    ask,
    complain,
    settings_for_a_person,
    somebody_answers,
)
from orchestrator.topics import check_access
from outbox import Connection, connect


class Add(Protocol):
    """Adds a command to the command line and returns its parser, to be given arguments."""

    def __call__(
        self, name: str, command: Callable[[argparse.Namespace], int], example: str
    ) -> argparse.ArgumentParser:
        """Add it; example: how a person would call it."""
        ...


@contextmanager
def on_duty(name: str) -> Iterator[tuple[Settings, Connection]]:
    """Give the settings and a session on a database that is as this release needs it."""
    settings = settings_for_a_person()
    with closing(connect(settings.database_url, f"orchestrator {name}")) as conn:
        check_current(conn)
        check_access(settings.kafka)
        yield settings, conn


def print_json(fields: object) -> None:
    """Print for a script: one JSON value, masked."""
    print(mask(json.dumps(fields, indent=2, default=str)), flush=True)


def print_lines(lines: Iterable[str]) -> None:
    """Print for a person, masked."""
    print(mask("\n".join(lines)), flush=True)


# ---- the commands, as in --help -----------------------------------------------------------------

WATCH_S = 2.0
CLEAR = "\x1b[H\x1b[2J"


def show_status(options: argparse.Namespace) -> int:
    """Show on one screen how everything stands; what is refused comes with its repair command."""
    with on_duty("status") as (settings, conn), suppress(KeyboardInterrupt):
        while True:
            found = status.read_status(settings, conn)
            if options.watch and sys.stdout.isatty():
                print(CLEAR, end="")
            if options.json:
                print_json(status.as_fields(found))
            else:
                print_lines(screens.show_status(found))
            if not options.watch:
                break
            time.sleep(WATCH_S)
    return OK


def examine(options: argparse.Namespace) -> int:
    """Check settings, Postgres, Kafka and what they hold; say of each fault what to do."""
    findings = []
    for finding in doctor.examine(settings_for_a_person()):
        findings.append(finding)
        if not options.json:
            print(mask(doctor.as_text(finding)), flush=True)
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
            undecided={"send": "unsent", "settle": "published"}.get(options.undecided),
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
    if options.undecided is not None:
        words += ["--undecided", options.undecided]
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
    explain_parser.add_argument("id", type=UUID, metavar="SCENARIO_UUID|WORKER_ID")
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
    parser.set_defaults(undecided=None, start=None)
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
        "--undecided",
        choices=("send", "settle"),
        help="what to do with rows that only a record deleted by retention could tell of",
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
