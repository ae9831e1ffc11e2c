"""Creating installations: one at a time, or several before a test needs them."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psycopg
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from psycopg.conninfo import make_conninfo

from orchestrator.embedded import Servers
from orchestrator.runtime.migrations import migrate
from outbox import connect
from testkit.eventually import eventually
from testkit.system import LANES, System, data_topic, environ_of, have_leaders, marker_topic

DATA_TOPICS = ("INPUT_TOPIC", "OUTPUT_TOPIC", "DEAD_LETTER_TOPIC")
MOST_AT_ONCE = 16  # a test that runs meanwhile shares the servers with their creation


@contextmanager
def template_database(servers: Servers) -> Iterator[str]:
    """Create a migrated database to clone; yield its name."""
    name = f"template_{uuid4().hex[:12]}"
    with psycopg.connect(servers.database_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0".encode())
        with closing(connect(make_conninfo(servers.database_url, dbname=name), "migrate")) as conn:
            migrate(conn, LANES)
        yield name
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextmanager
def new_system(servers: Servers, template: str, directory: Path, lanes: int) -> Iterator[System]:
    """Create one installation, and delete it afterwards."""
    with (
        closing(Installations(servers, template)) as installations,
        installations.system(directory, lanes) as system,
    ):
        yield system


class Installations:
    """Creates installations in a thread, each time twice as many, and keeps them for the next tests.

    One takes 0.4 s, most of it until its topics have leaders; 16 together take little longer. A clone
    gets an identity of its own, because in Kafka it must be another installation than its template.
    """

    def __init__(self, servers: Servers, template: str, *, disposable: bool = False) -> None:
        """Create none yet. disposable: the servers end soon, so nothing is deleted."""
        self._servers, self._template, self._disposable = servers, template, disposable
        self._kafka = AdminClient({"bootstrap.servers": servers.bootstrap_servers, "log_level": 0})
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="installations")
        self._making: Future[list[str]] | None = None
        self._next = 1  # how many
        self._ready: list[str] = []
        self._taken: list[str] = []

    @contextmanager
    def system(self, directory: Path, lanes: int) -> Iterator[System]:
        """Yield an installation, and delete it afterwards."""
        name = self._take()
        system = System(environ_of(self._servers, name), directory)
        try:
            if lanes < LANES:
                system.query("DELETE FROM outbox_lane WHERE lane >= %s", lanes)
                system.query("UPDATE outbox_identity SET lanes = %s", lanes)
            yield system
        finally:
            system.end()
            self._drop([name])

    def close(self) -> None:
        """Delete the installations that were not used."""
        self._thread.shutdown()
        if self._disposable:
            return
        if self._making:
            self._ready += self._making.result()
        self._drop(self._ready)
        environs = [environ_of(self._servers, name) for name in self._ready + self._taken]
        topics = [
            environ[setting] for environ in environs for setting in (*DATA_TOPICS, "MARKER_TOPIC")
        ]
        for future in self._kafka.delete_topics(topics).values():
            with suppress(KafkaException):  # a test deleted it
                future.result()

    def _take(self) -> str:
        """Return the name of an unused one; start to create more in time."""
        if self._making and (self._making.done() or not self._ready):
            made, self._making = self._making, None
            self._ready += made.result()
        if not self._making and (not self._ready or len(self._ready) <= self._next // 4):
            self._making = self._thread.submit(self._make, self._next)
            self._next = min(2 * self._next, MOST_AT_ONCE)
        if not self._ready:
            return self._take()
        self._taken.append(self._ready[-1])
        return self._ready.pop()

    def _make(self, count: int) -> list[str]:
        """Create this number; return their names."""
        names = [uuid4().hex[:12] for _ in range(count)]
        environs = [environ_of(self._servers, name) for name in names]
        data = [environ[setting] for environ in environs for setting in DATA_TOPICS]
        new = [*map(data_topic, data)]
        new += [marker_topic(environ["MARKER_TOPIC"]) for environ in environs]
        created = self._kafka.create_topics(new)
        with psycopg.connect(self._servers.database_url, autocommit=True) as admin:
            # Copying files is faster than logging each page; before PostgreSQL 15 it is the only way.
            how = " STRATEGY file_copy" if admin.info.server_version >= 150_000 else ""
            for name in names:
                admin.execute(f"CREATE DATABASE test_{name} TEMPLATE {self._template}{how}".encode())
        for environ in environs:
            with psycopg.connect(environ["DATABASE_URL"]) as conn:
                conn.execute("UPDATE outbox_identity SET identity = gen_random_uuid()")
        for future in created.values():
            future.result()
        eventually(lambda: have_leaders(self._kafka, data))
        return names

    def _drop(self, names: list[str]) -> None:
        """Drop their databases."""
        with psycopg.connect(self._servers.database_url, autocommit=True) as admin:
            for name in names:
                admin.execute(f"DROP DATABASE test_{name} WITH (FORCE)".encode())
