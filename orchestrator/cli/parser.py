"""The parser: every command with its arguments, help and example.

A command is named as `module:function` and imported only once it is chosen. So this file, and what
stands under it, imports no client of Postgres or Kafka: --help and completion need neither.
"""

import argparse
import re
from difflib import get_close_matches
from typing import Any, NoReturn

from orchestrator.cli.arguments import Add, add_json, at_least_one, at_least_zero, uuid
from orchestrator.cli.exit_codes import EXIT_CODES
from orchestrator.cli.operator_arguments import (
    add_dead_letters,
    add_parked_rows,
    add_repair,
    add_views,
    add_waiting_rows,
)
from orchestrator.observability.masking import mask_text, printable
from orchestrator.program import COMMAND, PROGRAM

DESCRIPTION = (
    "Turns scenario commands from Kafka into workers in Postgres and deploy orders in Kafka,"
    " exactly once."
)
SHELLS = ("bash", "zsh", "tcsh", "fish", "powershell")  # those of shtab, which is slow to import


class Parser(argparse.ArgumentParser):
    """Its example names what starts us here; its errors mask what was typed: it may hold a password."""

    def __init__(self, *, epilog: str | None = None, **options: Any) -> None:
        example = epilog and epilog.replace(f"{COMMAND} ", f"{PROGRAM} ")
        super().__init__(epilog=example, **options)

    def error(self, message: str) -> NoReturn:
        """Print usage and error; exit with 2."""
        if found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            choices = re.findall(r"[\w-]+", found[2])
            meant = get_close_matches(found[1], choices, n=1)
            advice = f"did you mean {meant[0]}?" if meant else f"choose from {', '.join(choices)}"
            message = f"{message[: found.start()]}there is no {found[1]!r}: {advice}"
        super().error(printable(mask_text(message)))


class PrintVersion(argparse.Action):
    """Prints the version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print it and exit."""
        from orchestrator.observability.metrics import release

        print(f"orchestrator {release()}")
        parser.exit()


def new_parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    """Return the parser. The options that it returns have the chosen command as `command`."""
    root = Parser(prog=program, description=DESCRIPTION, epilog=EXIT_CODES)
    root.add_argument("--version", action=PrintVersion, nargs=0, help="print the version")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: str, text: str, example: str) -> argparse.ArgumentParser:
        epilog = f"example: {example}"
        command = commands.add_parser(name, help=text, description=text, epilog=epilog)
        command.set_defaults(command=f"orchestrator.cli.{function}")
        return command

    add_processes(add)
    add_views(add)
    add_repair(add)
    add_waiting_rows(add)
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
        "Set up, then run and supervise consumer and relay.",
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
        help="print the SQL for psql instead; it makes 4 lanes, unless `SET outbox.lanes = N` comes"
        " first",
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


CAMERA_HELP = "-: read one a line from stdin, so that no password stands in the shell's history"


def add_trials(add: Add) -> None:
    """Add what helps to try it out."""
    submit = add(
        "submit",
        "submit:submit_commands",
        "Send commands as the API would; where stdout is no terminal, print each scenario's UUID.",
        "orchestrator submit rtsp://user:pw@cam/1 --count 10",
    )
    submit.add_argument("camera_url", metavar="CAMERA_URL|-", help=CAMERA_HELP)
    submit.add_argument("--scenario", type=uuid, help="one UUID for all; default: new ones")
    submit.add_argument("--count", type=at_least_one, default=1, help="how many commands (1)")
    submit.add_argument("--rate", type=at_least_one, help="at most so many a second; default: no limit")
    demo = add(
        "demo",
        "demo:run_demo",
        "Show exactly-once on embedded servers: send, kill -9, audit.",
        "orchestrator demo --commands 5000 --kills 2",
    )
    demo.add_argument("--commands", type=at_least_one, default=20_000, help="how many commands (20000)")
    demo.add_argument("--kills", type=at_least_zero, default=6, help="how many SIGKILLs (6)")
    add_json(demo)
    completion = add(
        "completion",
        "completion:print_completion",
        "Print the completion script of a shell.",
        'eval "$(orchestrator completion bash)"',
    )
    completion.add_argument("shell", choices=SHELLS)
