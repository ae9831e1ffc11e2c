"""The command line. Data goes to stdout, talk to stderr."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NoReturn
from uuid import UUID

import psycopg
from confluent_kafka import OFFSET_BEGINNING, KafkaException

from orchestrator import audit, logs
from orchestrator.arguments import a_moment, at_least_one, number_or_all, offset_or_beginning
from orchestrator.consumer import run_consumer
from orchestrator.environment import SettingsError
from orchestrator.errors import NotRepaired, ServerStartError
from orchestrator.healthcheck import check_health
from orchestrator.migrations import check_current, read_migrations, read_pending
from orchestrator.process import leave
from orchestrator.relay import run_relay
from orchestrator.repair import Repair, repair_lanes
from orchestrator.repair_partitions import repair_partitions
from orchestrator.settings import Settings, read_kafka_settings, read_settings
from orchestrator.setup import migrate_database, set_up
from orchestrator.submit import submit
from orchestrator.supervisor import run_supervised
from orchestrator.topics import TopicMissing
from outbox import InDoubt, OwnershipLost, SchemaMismatch, connect
from outbox.errors import describe
from outbox.repair import LaneBusy

log = logging.getLogger(__name__)

OK, CHECK_FAILED, USAGE, UNREACHABLE = 0, 1, 2, 3
EXIT_CODES = "exit code: 0 ok, 1 a check failed, 2 usage or settings, 3 a server is unreachable"
DATA = Path(".data")  # where the embedded servers keep their data


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and end the process with its exit code."""
    options = parser().parse_args(arguments)
    leave(run(options.command, options))


def run(command: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a command; turn what a person can mend into one message and an exit code."""
    logs.set_up("INFO", "text" if sys.stderr.isatty() else "json")
    try:
        return command(options)
    except SettingsError as error:
        return complain(USAGE, f"settings:\n{error}")
    except ModuleNotFoundError as error:  # of the optional extra
        return complain(USAGE, str(error))
    except ServerStartError as error:
        return complain(UNREACHABLE, str(error))
    except (SchemaMismatch, TopicMissing, NotRepaired, LaneBusy, OwnershipLost) as error:
        return complain(CHECK_FAILED, str(error))
    except (psycopg.OperationalError, KafkaException, InDoubt) as error:
        return complain(UNREACHABLE, describe(error))
    except psycopg.Error as error:
        return complain(CHECK_FAILED, describe(error))
    except KeyboardInterrupt:
        return complain(CHECK_FAILED, "interrupted")


def complain(code: int, text: str) -> int:
    """Say to a person what is wrong; return the code."""
    print(logs.mask(f"orchestrator: {text}"), file=sys.stderr)
    return code


def settings_from_environment() -> Settings:
    """Read the settings and set up the logs as they say."""
    settings = read_settings(os.environ)
    logs.set_up(settings.log_level, settings.log_format)
    return settings


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
        for migration in read_migrations():
            print(f"-- {migration.name}\n{migration.sql}")
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


def healthcheck(_options: argparse.Namespace) -> int:
    """Ask the process in this container whether it is alive."""
    return check_health(os.environ)


def submit_commands(options: argparse.Namespace) -> int:
    """Send commands as the API would; print each scenario's UUID."""
    environ = dict(os.environ)
    if "KAFKA_BOOTSTRAP_SERVERS" not in environ and (DATA / "addresses").exists():
        lines = (DATA / "addresses").read_text().splitlines()
        environ |= dict(line.removeprefix("export ").split("=", 1) for line in lines)
    kafka, topic = read_kafka_settings(environ)
    for scenario in submit(kafka, topic, options.camera_url, options.scenario, options.count):
        print(scenario)
    return OK


def audit_topic(options: argparse.Namespace) -> int:
    """Compare the output topic with the workers; all processes may run."""
    settings = settings_from_environment()
    with closing(connect(settings.database_url, "orchestrator audit")) as conn:
        check_current(conn)
        found = audit.audit(conn, settings.kafka, settings.output_topic, options.since, sys.stderr)
    print(audit.as_json(found) if options.json else "\n".join(audit.as_text(found)))
    return OK if found.clean else CHECK_FAILED


def repair(options: argparse.Namespace) -> int:
    """Let a refused lane or a paused partition go on."""
    settings = settings_from_environment()
    if not (options.yes or options.dry_run or sys.stdin.isatty()):
        return complain(USAGE, "no terminal to ask on: say --yes, or look first with --dry-run")
    if options.number is None and options.start not in {None, OFFSET_BEGINNING}:
        return complain(USAGE, "--from OFFSET goes with one partition")
    with closing(connect(settings.database_url, "orchestrator repair")) as conn:
        check_current(conn)
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


def ask(question: str) -> bool:
    """Ask the person at the terminal; only `yes` is a yes."""
    print(f"{question} [yes/no] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def demo(options: argparse.Namespace) -> int:
    """Show exactly-once on embedded servers: send, kill -9, audit."""
    import orchestrator.embedded  # noqa: F401  # the optional extra; says so where it is missing
    from orchestrator.demo import run_demo

    return run_demo(options.scenarios, options.kills, as_json=options.json)


def parser() -> argparse.ArgumentParser:
    """Return the parser; each subcommand's function is its `command`."""
    root = argparse.ArgumentParser(prog="orchestrator", description=__doc__, epilog=EXIT_CODES)
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=command)
        return sub

    add("consumer", consumer)
    add("relay", relay)
    run_parser = add("run", run_both)
    run_parser.add_argument(
        "--embedded",
        action="store_true",
        help="bring PostgreSQL and Kafka, unless DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS are set",
    )
    add("setup", setup)
    migrate_parser = add("migrate", migrate)
    migrate_parser.add_argument("--check", action="store_true", help="exit 1 if a migration is pending")
    migrate_parser.add_argument("--sql", action="store_true", help="print the SQL, run nothing")
    add("healthcheck", healthcheck)
    submit_parser = add("submit", submit_commands)
    submit_parser.add_argument("camera_url", metavar="CAMERA_URL")
    submit_parser.add_argument("--scenario", type=UUID, help="one UUID for all; default: new ones")
    submit_parser.add_argument("--count", type=at_least_one, default=1, help="how many (1)")
    audit_parser = add("audit", audit_topic)
    audit_parser.add_argument(
        "--since",
        type=a_moment,
        metavar="TIMESTAMP|DURATION",
        help="leave out what is older: 2026-01-31T12:00:00Z (UTC unless it says), or 90s, 15m, 2h, 7d",
    )
    audit_parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_repair(add("repair", repair))
    demo_parser = add("demo", demo)
    demo_parser.add_argument("--scenarios", type=at_least_one, default=20_000, help="how many (20000)")
    demo_parser.add_argument("--kills", type=int, default=6, help="SIGKILLs on the way (6)")
    demo_parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return root


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
    )
    partition.add_argument("number", type=number_or_all, metavar="N|all")
    partition.add_argument(
        "--from",
        dest="start",
        type=offset_or_beginning,
        metavar="beginning|OFFSET",
        help="the next offset (beginning: the first one that the log still has)",
    )
