"""Make the histories of Postgres and Kafka disagree, and run `orchestrator repair`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
from confluent_kafka import Producer
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from outbox.admin import Marker, marker_key
from testkit.empty_installation import end_all, run_in_process
from testkit.system import Running, System

SECRET = "user:pw@"


def repair(system: System, *words: str) -> tuple[int, str]:
    """Run `orchestrator repair`, as `operate` does."""
    return operate(system, "repair", *words)


def operate(system: System, *command: str) -> tuple[int, str]:
    """Run a command without a terminal; return its exit code and its output, without a secret."""
    ran = run_in_process(system.environ, *command)
    said = ran.stdout + ran.stderr
    assert SECRET not in said
    assert "Traceback" not in said, said
    return ran.returncode, said


def logged_repairs(system: System) -> list[tuple[Any, ...]]:
    """Return command, target, reason and counts of each repair, by target."""
    return system.query("SELECT command, target, reason, counts FROM repairs ORDER BY target, id")


def is_refused(relay: Running, lane: int, reason: str) -> bool:
    """Return whether the relay refuses a lane and names its repair."""
    return f"lane {lane}: refused: {reason}: orchestrator repair lane {lane}" in relay.get("/readyz")


def set_marker(system: System, marker: int, lane: int = 0) -> None:
    """Commit another marker for a lane, as another outbox of the same name would."""
    with system.lane(lane, owner=False) as foreign:
        foreign.publisher.start(lane)
        foreign.publisher.publish({lane: Marker(marker, uuid4())}, ())


def forget_markers(system: System) -> None:
    """Delete the markers of all lanes, by tombstones; a retention policy would do the same."""
    ((identity,),) = system.query("SELECT identity FROM outbox_identity")
    ((lanes,),) = system.query("SELECT count(*) FROM outbox_lane")
    producer = Producer(dict(system.settings.kafka))
    for lane in range(lanes):
        producer.produce(system.settings.marker_topic, None, marker_key(identity), lane)
    assert producer.flush(10) == 0


def back_up(system: System) -> None:
    """Copy the database as it is; no process may run."""
    name, admin = _database(system)
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}_backup TEMPLATE {name}".encode())


@contextmanager
def copied(system: System) -> Iterator[System]:
    """Yield a second history: a copy of the database, on the same topics. No process may run yet."""
    back_up(system)
    name, admin = _database(system)
    url = make_conninfo(system.settings.database_url, dbname=f"{name}_backup")
    (system.directory / "copy").mkdir()
    copy = System(system.environ | {"DATABASE_URL": url}, system.directory / "copy")
    try:
        yield copy
    finally:
        end_all(copy)
        with psycopg.connect(admin, autocommit=True) as conn:
            conn.execute(f"DROP DATABASE {name}_backup WITH (FORCE)".encode())


def restore(system: System) -> None:
    """Replace the database by the copy; sessions on it are ended."""
    name, admin = _database(system)
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        conn.execute(f"ALTER DATABASE {name}_backup RENAME TO {name}".encode())


def _database(system: System) -> tuple[str, str]:
    """Return the database's name, and the address of another one on the same server."""
    url = system.settings.database_url
    return str(conninfo_to_dict(url)["dbname"]), make_conninfo(url, dbname="postgres")
