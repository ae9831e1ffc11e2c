"""python -m outbox: tables, lanes and topic of a service that uses the library."""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import psycopg
from confluent_kafka import KafkaException
from psycopg.conninfo import conninfo_to_dict

from outbox import migrations
from outbox.admin import count_relays, list_lanes
from outbox.enqueue import check_id_sequence, count_lanes
from outbox.errors import OutboxError, error_text
from outbox.kafka_config import property_refusal
from outbox.marker_topic import create_marker_topic, find_marker_faults
from outbox.postgres import Connection, connect

OK, FAULT = 0, 1
DEFAULT_LANES = 4
MOST_LANES = 64  # a relay fences each lane that it takes, in 20 ms

DESCRIPTION = "Tables, lanes and topic of the outbox. DATABASE_URL: where the tables are."


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 1 with the reasons on stderr. words: None: those of the process."""
    arguments = new_parser().parse_args(words)
    try:
        faults = list(arguments.run(arguments))
    except (OutboxError, psycopg.Error, KafkaException, OSError) as error:
        faults = [str(error) if isinstance(error, OutboxError) else error_text(error)]
    for fault in faults:
        print(fault, file=sys.stderr)
    return FAULT if faults else OK


def new_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser("python -m outbox", description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    schema = commands.add_parser("schema", help="print the SQL of the tables, for another tool to run")
    schema.add_argument("--after", type=int, default=0, metavar="VERSION", help="only what is newer")
    migrate = commands.add_parser("migrate", help="create the tables, or upgrade them")
    check = commands.add_parser("check", help="say whether tables and topic are what relays need")
    lanes = commands.add_parser("lanes", help="print the lanes, with owner and rows in flight")
    topics = commands.add_parser("topics", help="check the marker topic")
    topics.add_argument("--create", action="store_true", help="create it, if it is missing")
    for command in (schema, migrate):
        command.add_argument(
            "--lanes", type=lane_count, help=f"their number, fixed the first time ({DEFAULT_LANES})"
        )
    for command in (migrate, check, lanes, topics):
        command.add_argument(
            "--schema", default=os.environ.get("DATABASE_SCHEMA", ""), help="schema of the tables"
        )
    for command in (check, topics):
        command.add_argument("--marker-topic", default="outbox-markers", metavar="TOPIC")
        command.add_argument(
            "--kafka",
            type=kafka_config,
            metavar="FILE",
            help="properties of librdkafka, name=value",
        )
    for command, run in (
        (schema, run_schema),
        (migrate, run_migrate),
        (check, run_check),
        (lanes, run_lanes),
        (topics, run_topics),
    ):
        command.set_defaults(run=run)
    return parser


def lane_count(text: str) -> int:
    """Return a number of lanes."""
    if not 1 <= (number := int(text)) <= MOST_LANES:
        raise argparse.ArgumentTypeError(f"from 1 to {MOST_LANES}")
    return number


def kafka_config(name: str) -> dict[str, str]:
    """Return the properties in a file; those that a relay refuses are refused here, too."""
    try:
        lines = [line.strip() for line in Path(name).read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{name}: {error.strerror}") from error
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    config = {key.strip(): value.strip() for key, _, value in pairs}
    for key, value in config.items():
        if refusal := property_refusal(key, value):
            raise argparse.ArgumentTypeError(f"{key}: {refusal}")
    return config


def run_schema(arguments: argparse.Namespace) -> Iterator[str]:
    """Print the script."""
    print(migrations.write_script(arguments.lanes or DEFAULT_LANES, arguments.after), end="")
    yield from ()


def run_migrate(arguments: argparse.Namespace) -> Iterator[str]:
    """Run what is pending; say so if the number of lanes stays another one."""
    with closing(open_session(arguments)) as conn:
        for one in migrations.migrate(conn, arguments.lanes or DEFAULT_LANES):
            print(f"applied {one.name}")
        lanes = count_lanes(conn)
    print(f"the tables are current, with {lanes} lanes")
    if arguments.lanes not in (None, lanes):
        yield f"--lanes {arguments.lanes} changes nothing: their number was fixed the first time"


def run_check(arguments: argparse.Namespace) -> Iterator[str]:
    """Say what is wrong."""
    with closing(open_session(arguments)) as conn:
        migrations.check_current(conn)
        lanes = count_lanes(conn)
        check_id_sequence(conn)
    if arguments.kafka:
        yield from find_marker_faults(arguments.kafka, arguments.marker_topic, lanes)


def run_lanes(arguments: argparse.Namespace) -> Iterator[str]:
    """Print a line a lane."""
    with closing(open_session(arguments)) as conn:
        for lane in list_lanes(conn):
            owner = lane.owner or "no owner"
            print(f"{lane.lane:4}  batch {lane.batch_number}, {lane.inflight} in flight, {owner}")
        if not count_relays(conn):
            yield "no relay is connected"


def run_topics(arguments: argparse.Namespace) -> Iterator[str]:
    """Create the topic, if asked to; say what is wrong with it."""
    if not arguments.kafka:
        yield "--kafka FILE is missing: it names bootstrap.servers"
        return
    with closing(open_session(arguments)) as conn:
        lanes = count_lanes(conn)
    if arguments.create and create_marker_topic(arguments.kafka, arguments.marker_topic, lanes):
        print(f"created {arguments.marker_topic}")
    else:
        yield from find_marker_faults(arguments.kafka, arguments.marker_topic, lanes)


def open_session(arguments: argparse.Namespace) -> Connection:
    """Open a session on DATABASE_URL. Raises OutboxError if it is not set, or is ambiguous."""
    if not (conninfo := os.environ.get("DATABASE_URL")):
        raise OutboxError("DATABASE_URL is not set")
    if not is_readable(conninfo):
        raise OutboxError(
            "DATABASE_URL is no connection string of libpq: in user and password of a URL write % as"
            " %25, @ as %40 and / as %2F; else quote a value with spaces"
        )
    return connect(conninfo, "outbox", schema=arguments.schema)


def is_readable(conninfo: str) -> bool:
    """Say whether libpq reads it, and no part of a password as host, port or database.

    Its errors would quote that part.
    """
    try:
        found = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        return False
    host, database, port = (str(found.get(part) or "") for part in ("host", "dbname", "port"))
    return "://" not in conninfo or ("@" not in host + database and bool(re.fullmatch("[0-9,]*", port)))


if __name__ == "__main__":
    sys.exit(main())
