"""The parser: every command with its arguments, help and example.

A command is named as `module:function` and imported only once it is chosen. So this file, and what
stands under it, imports no client of Postgres or Kafka: --help and completion need neither.
"""

import argparse
from typing import NoReturn, Protocol

from orchestrator.cli.arguments import (
    at_least_one,
    at_least_zero,
    number_or_all,
    offset_or_beginning,
    time_or_age,
    two_numbers,
    uuid,
)
from orchestrator.cli.exit_codes import EXIT_CODES
from orchestrator.observability import logs

DESCRIPTION = (
    "Scenario commands from Kafka, by way of Postgres, to deploy orders in Kafka: exactly once."
)
SHELLS = ("bash", "zsh", "tcsh", "fish", "powershell")  # those of shtab, which is slow to import
WATCH_S = 2
LISTED = 50  # of a list, without --limit


class Parser(argparse.ArgumentParser):
    """Masks what was typed in its errors: it may be a URL with a password."""

    def error(self, message: str) -> NoReturn:
        """Print usage and error; exit with 2."""
        super().error(logs.mask_text(message))


class Add(Protocol):
    """Adds a command to the command line and returns its parser, to be given arguments."""

    def __call__(self, name: str, function: str, text: str, example: str) -> argparse.ArgumentParser:
        """Add it. function: as `module:function` below this package; it takes the parsed options."""
        ...


def new_parser() -> argparse.ArgumentParser:
    """Return the parser. The options that it returns have the chosen command as `command`."""
    root = Parser(prog="orchestrator", description=DESCRIPTION, epilog=EXIT_CODES)
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: str, text: str, example: str) -> argparse.ArgumentParser:
        epilog = f"example: {example}"
        command = commands.add_parser(name, help=text, description=text, epilog=epilog)
        command.set_defaults(command=f"orchestrator.cli.{function}")
        return command

    add_processes(add)
    add_views(add)
    add_repair(add)
    add_dead_letters(add)
    add_parked_rows(add)
    add_trials(add)
    return root


def add_processes(add: Add) -> None:
    """Add what containers run."""
    add(
        "consumer",
        "consumer:start_consumer",
        "Take commands from Kafka into Postgres.",
        "LOG_FORMAT=text orchestrator consumer",
    )
    add(
        "relay",
        "relay:start_relay",
        "Publish deploy orders from Postgres to Kafka.",
        "BATCH_SIZE=500 orchestrator relay",
    )
    run = add(
        "run",
        "run:run_both",
        "Set up, then run consumer and relay, supervised.",
        "orchestrator run --embedded",
    )
    run.add_argument(
        "--embedded",
        action="store_true",
        help="bring PostgreSQL and Kafka, unless DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS are set",
    )
    add(
        "setup",
        "setup:set_up_servers",
        "Migrate the database and create missing topics.",
        "LANES=8 orchestrator setup",
    )
    migrate = add(
        "migrate", "setup:migrate_or_check", "Migrate the database.", "orchestrator migrate --check"
    )
    migrate.add_argument("--check", action="store_true", help="exit with 1 if a migration is pending")
    migrate.add_argument(
        "--sql",
        action="store_true",
        help="print the SQL for psql and run nothing; it makes 4 lanes, unless `SET outbox.lanes = N`"
        " comes before it",
    )
    health = add(
        "healthcheck",
        "healthcheck:check_health",
        "Ask the process in this container whether it is alive.",
        "METRICS_PORT=9464 orchestrator healthcheck",
    )
    health.add_argument(
        "--ready", action="store_true", help="ask whether it is ready, and if not, what it waits for"
    )


def add_views(add: Add) -> None:
    """Add what only reads."""
    status = add(
        "status",
        "status:show_status",
        "Show lanes, partitions, rates and dead letters on one screen, and the repair of each refusal.",
        "orchestrator status --watch",
    )
    status.add_argument("--watch", action="store_true", help=f"repeat every {WATCH_S} s")
    doctor = add(
        "doctor",
        "doctor:run_checks",
        "Check settings, Postgres, Kafka and the data in them; say for each fault what to do.",
        "orchestrator doctor",
    )
    explain = add(
        "explain",
        "explain:explain_id",
        "Show the history of an order: command, worker, outbox, record; or what is missing and why.",
        "orchestrator explain 6f1c1b2e-9d57-4d0c-8f5a-1c2d3e4f5a6b",
    )
    explain.add_argument("id", type=uuid, metavar="SCENARIO_UUID|WORKER_ID")
    audit = add(
        "audit",
        "audit:audit_topic",
        "Compare the output topic with the workers; all processes may run.",
        "orchestrator audit --since 2h",
    )
    audit.add_argument(
        "--since",
        type=time_or_age,
        metavar="TIMESTAMP|DURATION",
        help="leave out what is older: 2026-01-31T12:00:00Z (UTC unless it names a zone), or 90s, 15m,"
        " 2h, 7d",
    )
    for parser in (status, doctor, explain, audit):
        add_json(parser)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


# ---- what changes data: all of it asks first ----------------------------------------------------


def add_confirmation(parser: argparse.ArgumentParser, dry_run: str) -> None:
    """Add --yes and --dry-run, as `terminal.require_answer` expects them. dry_run: what that does."""
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help=dry_run)


def add_repair(add: Add) -> None:
    """Add `repair`."""
    repair = add(
        "repair",
        "repair:repair",
        "Let a refused lane or partition continue.",
        "orchestrator repair lane 2 --dry-run",
    )
    repair.set_defaults(unknown_rows=None, start=None)
    kinds = repair.add_subparsers(required=True, dest="what", metavar="lane|partition")
    lane = kinds.add_parser(
        "lane",
        help="a lane whose marker is ahead, behind or missing",
        description="Find out which of a refused lane's outbox rows are in Kafka, and restart its batch"
        " number from the marker. All input must be consumed; relays may run.",
        epilog="example: orchestrator repair lane all",
    )
    partition = kinds.add_parser(
        "partition",
        help="a partition whose topic was recreated, or whose position is not in the log",
        description="Set the position from which a refused partition of the input continues. Consumers"
        " may run.",
        epilog="example: orchestrator repair partition 0 --from beginning",
    )
    for parser in (lane, partition):
        parser.add_argument("number", type=number_or_all, metavar="N|all")
        add_confirmation(parser, "only say what would be done")
    lane.add_argument(
        "--unknown-rows",
        choices=("publish", "skip"),
        help="rows whose record may have been deleted by retention: publish them (a reader may see them"
        " twice) or skip them (perhaps no reader ever saw them)",
    )
    partition.add_argument(
        "--from",
        dest="start",
        type=offset_or_beginning,
        metavar="beginning|OFFSET",
        help="the new position (beginning: the log start offset)",
    )


def add_dead_letters(add: Add) -> None:
    """Add `dlq`."""
    dlq = add(
        "dlq",
        "dlq:dlq",
        "List, show, retry or discard dead letters.",
        "orchestrator dlq list",
    )
    add_actions(dlq, "dlq", "PARTITION:OFFSET", "with this reason, such as not_json", "not_json")


def add_parked_rows(add: Add) -> None:
    """Add `parked`."""
    parked = add(
        "parked",
        "parked:parked",
        "List, show, retry or discard parked rows: those that Kafka rejected.",
        "orchestrator parked list",
    )
    add_actions(parked, "parked", "LANE:ID", "with this text in Kafka's reason, such as large", "large")


def add_actions(
    parser: argparse.ArgumentParser, name: str, id_form: str, reason_help: str, reason: str
) -> None:
    """Add list, show, retry and discard. reason: one for the examples."""
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("ids", nargs="*", type=two_numbers, metavar=id_form, help="these alone")
    chosen.add_argument("--reason", metavar="TEXT", help=reason_help)
    for option, text in (("--since", "not older than this"), ("--until", "older than this")):
        chosen.add_argument(option, type=time_or_age, metavar="TIMESTAMP|DURATION", help=text)
    chosen.add_argument("--key", help="with this key")
    actions = parser.add_subparsers(required=True, dest="action", metavar="list|show|retry|discard")

    def add(action: str, text: str, end: str) -> argparse.ArgumentParser:
        epilog = f"example: orchestrator {name} {action} {end}"
        return actions.add_parser(action, parents=[chosen], help=text, description=text, epilog=epilog)

    listing = add("list", "print a line for each: id, time, reason", "--since 2h")
    listing.add_argument("--limit", type=at_least_one, default=LISTED, help=f"how many ({LISTED})")
    listing.add_argument("--handled", action="store_true", help="those already handled, too")
    add_json(listing)
    showing = add("show", "print everything about each, as JSON", "0:17 --payload")
    showing.add_argument("--payload", action="store_true", help="the content, too: may hold passwords")
    showing.add_argument("--json", action="store_true", help="no effect: it is JSON anyway")
    showing.set_defaults(handled=True, all=False)
    for action, text in (("retry", "send them again"), ("discard", "give them up: never send them")):
        changing = add(action, text, f"--reason {reason} --dry-run")
        changing.add_argument("--all", action="store_true", help="all that wait")
        add_confirmation(changing, "only count them")
        changing.set_defaults(handled=False)


# ---- for trying it out -------------------------------------------------------------------------


def add_trials(add: Add) -> None:
    """Add what helps to try it out."""
    submit = add(
        "submit",
        "submit:submit_commands",
        "Send commands as the API would; print each scenario's UUID.",
        "orchestrator submit rtsp://user:pw@cam/1 --count 10",
    )
    submit.add_argument("camera_url", metavar="CAMERA_URL")
    submit.add_argument("--scenario", type=uuid, help="one UUID for all; default: new ones")
    submit.add_argument("--count", type=at_least_one, default=1, help="how many commands (1)")
    demo = add(
        "demo",
        "demo:run_demo",
        "Show exactly-once on embedded servers: send, kill -9, audit.",
        "orchestrator demo --commands 5000 --kills 2",
    )
    demo.add_argument("--commands", type=at_least_one, default=20_000, help="how many (20000)")
    demo.add_argument("--kills", type=at_least_zero, default=6, help="how many SIGKILLs (6)")
    add_json(demo)
    completion = add(
        "completion",
        "completion:print_completion",
        "Print the completion script of a shell.",
        'eval "$(orchestrator completion bash)"',
    )
    completion.add_argument("shell", choices=SHELLS)
