"""The command line. Data goes to stdout, talk to stderr."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import psycopg
import shtab
from confluent_kafka import KafkaException

from orchestrator.cli.arguments import a_uuid, at_least_one, at_least_zero
from orchestrator.cli.dlq import add_dlq
from orchestrator.cli.healthcheck import check_health
from orchestrator.cli.operations import add_operators
from orchestrator.cli.parked import add_parked
from orchestrator.cli.submit import submit
from orchestrator.cli.terminal import (
    CHECK_FAILED,
    EXIT_CODES,
    OK,
    UNREACHABLE,
    USAGE,
    complain,
    settings_from_environment,
)
from orchestrator.config.environment import SettingsError
from orchestrator.config.settings import read_kafka_settings
from orchestrator.consumer.process import run_consumer
from orchestrator.errors import NotRepaired, ServerStartError
from orchestrator.kafka.topics import TopicMissing, check_access
from orchestrator.observability import logs
from orchestrator.relay import run_relay
from orchestrator.runtime.migrations import read_pending, write_script
from orchestrator.runtime.process import leave
from orchestrator.runtime.setup import migrate_database, set_up
from orchestrator.runtime.supervisor import run_supervised
from outbox import DatabaseNotReady, InDoubt, OwnershipLost, connect, error_text
from outbox.admin import LaneBusy

log = logging.getLogger(__name__)

DESCRIPTION = (
    "Scenario commands from Kafka, by way of Postgres, to deploy orders in Kafka: exactly once."
)
DATA = Path(".data")  # where the embedded servers keep their data


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and end the process with its exit code."""
    options = parser().parse_args(arguments)
    leave(run(options.command, options))


def run(command: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a command; turn what a person can mend into one message and an exit code."""
    logs.set_up("INFO", "text" if sys.stderr.isatty() else "json")
    try:
        code = command(options)
        sys.stdout.flush()
    except SettingsError as error:
        return complain(USAGE, f"settings:\n{error}")
    except ModuleNotFoundError as error:  # of the optional extra
        return complain(USAGE, str(error))
    except ServerStartError as error:
        return complain(UNREACHABLE, str(error))
    except (DatabaseNotReady, TopicMissing, NotRepaired, LaneBusy, OwnershipLost) as error:
        return complain(CHECK_FAILED, str(error))
    except (psycopg.OperationalError, KafkaException, InDoubt) as error:
        return complain(UNREACHABLE, error_text(error))
    except psycopg.Error as error:
        return complain(CHECK_FAILED, error_text(error))
    except KeyboardInterrupt:
        return complain(CHECK_FAILED, "interrupted")
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CHECK_FAILED
    return code


# ---- the commands, as in --help -----------------------------------------------------------------


def consumer(_options: argparse.Namespace) -> int:
    """Take commands from Kafka into Postgres."""
    return run_consumer(settings_from_environment())


def relay(_options: argparse.Namespace) -> int:
    """Take deploy orders from Postgres to Kafka."""
    return run_relay(settings_from_environment())


def run_both(options: argparse.Namespace) -> int:
    """Set up, then run consumer and relay, supervised."""
    if not options.embedded or {"DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS"} <= os.environ.keys():
        return run_supervised(settings_from_environment())
    from orchestrator.embedded import embedded_servers  # an optional extra

    with embedded_servers(DATA) as servers:
        use(servers.database_url, servers.bootstrap_servers)
        return run_supervised(settings_from_environment())


def use(database_url: str, bootstrap_servers: str) -> None:
    """Make the embedded servers ours, and tell people and `submit` where they are."""
    addresses = {"DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers}
    os.environ.update(addresses)
    os.environ.setdefault("LOG_FORMAT", "text")
    lines = [f"export {name}={value}" for name, value in addresses.items()]
    (DATA / "addresses").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), file=sys.stderr)


def setup(_options: argparse.Namespace) -> int:
    """Migrate the database and create missing topics."""
    set_up(settings_from_environment())
    return OK


def migrate(options: argparse.Namespace) -> int:
    """Migrate the database."""
    if options.sql:
        print(write_script(), end="")
        return OK
    settings = settings_from_environment()
    if not options.check:
        migrate_database(settings)
        return OK
    with closing(connect(settings.database_url, "orchestrator migrate")) as conn:
        pending = read_pending(conn)
    for migration in pending:
        print(f"pending: {migration.name}")
    return CHECK_FAILED if pending else OK


def healthcheck(options: argparse.Namespace) -> int:
    """Ask the process in this container whether it is alive."""
    return check_health(os.environ, "/readyz" if options.ready else "/livez")


def submit_commands(options: argparse.Namespace) -> int:
    """Send commands as the API would; print each scenario's UUID."""
    environ = dict(os.environ)
    if "KAFKA_BOOTSTRAP_SERVERS" not in environ and (DATA / "addresses").exists():
        lines = (DATA / "addresses").read_text().splitlines()
        environ |= dict(line.removeprefix("export ").split("=", 1) for line in lines)
    kafka, topic = read_kafka_settings(environ)
    check_access(kafka)
    for scenario in submit(kafka, topic, options.camera_url, options.scenario, options.count):
        print(scenario)
    return OK


def demo(options: argparse.Namespace) -> int:
    """Show exactly-once on embedded servers: send, kill -9, audit."""
    import orchestrator.embedded  # noqa: F401  # the optional extra; says so where it is missing
    from orchestrator.cli.demo import run_demo

    return run_demo(options.scenarios, options.kills, as_json=options.json)


def completion(options: argparse.Namespace) -> int:
    """Print the completion script of a shell."""
    print(shtab.complete(parser(), options.shell))
    return OK


class Parser(argparse.ArgumentParser):
    """Complains about what was typed without what may be a credential in it."""

    def error(self, message: str) -> NoReturn:
        """Print usage and complaint; exit with 2."""
        super().error(logs.mask(message))


def parser() -> argparse.ArgumentParser:
    """Return the parser; each subcommand's function is its `command`."""
    root = Parser(prog="orchestrator", description=DESCRIPTION, epilog=EXIT_CODES)
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace], int], example: str
    ) -> argparse.ArgumentParser:
        text, epilog = command.__doc__, f"example: {example}"
        sub = commands.add_parser(name, help=text, description=text, epilog=epilog)
        sub.set_defaults(command=command)
        return sub

    add("consumer", consumer, "LOG_FORMAT=text orchestrator consumer")
    add("relay", relay, "BATCH_SIZE=500 orchestrator relay")
    run_parser = add("run", run_both, "orchestrator run --embedded")
    run_parser.add_argument(
        "--embedded",
        action="store_true",
        help="bring PostgreSQL and Kafka, unless DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS are set",
    )
    add("setup", setup, "LANES=8 orchestrator setup")
    migrate_parser = add("migrate", migrate, "orchestrator migrate --check")
    migrate_parser.add_argument("--check", action="store_true", help="exit 1 if a migration is pending")
    migrate_parser.add_argument(
        "--sql",
        action="store_true",
        help="print the SQL for psql, run nothing; 4 lanes, unless `SET outbox.lanes = N` goes before",
    )
    health_parser = add("healthcheck", healthcheck, "METRICS_PORT=9464 orchestrator healthcheck")
    health_parser.add_argument(
        "--ready", action="store_true", help="whether it works, and else why not"
    )
    submit_parser = add(
        "submit", submit_commands, "orchestrator submit rtsp://user:pw@cam/1 --count 10"
    )
    submit_parser.add_argument("camera_url", metavar="CAMERA_URL")
    submit_parser.add_argument("--scenario", type=a_uuid, help="one UUID for all; default: new ones")
    submit_parser.add_argument("--count", type=at_least_one, default=1, help="how many (1)")
    add_operators(add)
    add_dlq(add)
    add_parked(add)
    completion_parser = add("completion", completion, 'eval "$(orchestrator completion bash)"')
    completion_parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    demo_parser = add("demo", demo, "orchestrator demo --scenarios 5000 --kills 2")
    demo_parser.add_argument("--scenarios", type=at_least_one, default=20_000, help="how many (20000)")
    demo_parser.add_argument("--kills", type=at_least_zero, default=6, help="SIGKILLs on the way (6)")
    demo_parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return root
