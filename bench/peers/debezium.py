"""Debezium's Postgres connector with its outbox event router, on Kafka Connect."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
from confluent_kafka.admin import AdminClient
from psycopg.conninfo import conninfo_to_dict

from bench.peers import LOOK_S, MeasuredPeer, NotDelivered, Order, insert_waiting, new_database
from bench.peers.connect import ConnectRefused, ConnectWorker, fetch_jars
from orchestrator.embedded import Servers, ServerStartError

DEBEZIUM_VERSION = "3.6.1.Final"
START_S = 60.0  # for a connector to start or to stop
WARM_UP_ROWS = 20_000

OUTBOX = """
    CREATE TABLE outbox (
        id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        aggregatetype varchar(255) NOT NULL,
        aggregateid   varchar(255) NOT NULL,
        type          varchar(255) NOT NULL,
        payload       text NOT NULL
    )
"""
PUBLICATION = "CREATE PUBLICATION outbox FOR TABLE outbox WITH (publish = 'insert')"
INSERT = """
    INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
    VALUES (%s, %s, 'deploy', %s)
"""


@contextmanager
def debezium(servers: Servers, directory: Path, exactly_once: bool) -> Iterator["DebeziumPeer"]:
    """Give a connector on a worker of its own, whose files are in `directory`, for the block.

    Raises ServerStartError, also for a Postgres whose wal_level is not logical.
    """
    check_wal_level(servers)
    name = f"peer_{uuid4().hex[:12]}"
    worker = ConnectWorker(
        directory,
        servers.bootstrap_servers,
        name,
        fetch_plugin(),
        EXACTLY_ONCE_WORKER if exactly_once else {},
    )
    with ExitStack() as ending:
        url = ending.enter_context(new_database(servers, OUTBOX, PUBLICATION))
        ending.callback(delete_topics, servers, worker.topics)
        ending.callback(drop_slot, servers, name)
        ending.callback(worker.stop)
        worker.start()
        peer = DebeziumPeer(servers, url, worker, name, exactly_once)
        peer.start()
        yield peer


class DebeziumPeer(MeasuredPeer):
    """From an outbox to the output topic, by way of the write-ahead log."""

    def __init__(
        self, servers: Servers, url: str, worker: ConnectWorker, connector: str, exactly_once: bool
    ) -> None:
        super().__init__(servers)
        self.name = "Debezium, exactly once" if exactly_once else "Debezium, at least once"
        self._url = url
        self._worker = worker
        self._connector = connector
        self._exactly_once = exactly_once

    def start(self) -> None:
        """Make the connector and its slot, let Java compile what it will run, and stop it."""
        config = CONNECTOR | (EXACTLY_ONCE if self._exactly_once else AT_LEAST_ONCE)
        config |= database_of(self._url) | {
            "topic.prefix": self._connector,
            "slot.name": self._connector,
        }
        self._worker.ask("PUT", f"/connectors/{self._connector}/config", config)
        self._wait_until("RUNNING", slot_active=True)
        self._stop()
        self.drain(WARM_UP_ROWS)

    def _fill(self, topic: str, orders: Sequence[Order]) -> None:
        insert_waiting(self._url, INSERT, [(topic, *order) for order in orders])

    @contextmanager
    def _running(self, topic: str) -> Iterator[None]:
        self._worker.ask("PUT", f"/connectors/{self._connector}/resume")
        self._wait_until("RUNNING", slot_active=True)
        yield
        self._stop()

    @contextmanager
    def _sending(self, topic: str) -> Iterator[Callable[[Order], None]]:
        with psycopg.connect(self._url, autocommit=True, prepare_threshold=0) as conn:
            yield lambda order: conn.execute(INSERT, (topic, *order)) and None

    def _stop(self) -> None:
        """End the connector's task. A paused one would go on reading, up to max.queue.size rows."""
        self._worker.ask("PUT", f"/connectors/{self._connector}/stop")
        self._wait_until("STOPPED", slot_active=False)

    def _wait_until(self, state: str, slot_active: bool) -> None:
        """Wait for the connector, its task and its slot. Raises NotDelivered."""
        until = time.monotonic() + START_S
        while (states := self._states()) != {state} or self._slot_is_active() != slot_active:
            if time.monotonic() > until:
                raise NotDelivered(f"the connector does not become {state}: {states}")
            time.sleep(LOOK_S)

    def _states(self) -> set[str]:
        """Return the states of the connector and its task. Raises NotDelivered if one has failed."""
        try:
            status = self._worker.ask("GET", f"/connectors/{self._connector}/status")
        except ConnectRefused:  # just made: nothing is known of it yet
            return set()
        states = {part["state"] for part in (status["connector"], *status["tasks"])}
        if "FAILED" in states:
            raise NotDelivered(f"the connector failed: {status}")
        return states

    def _slot_is_active(self) -> bool:
        with psycopg.connect(self._url) as conn:
            return (self._connector, True) in conn.execute(SLOTS).fetchall()


SLOTS = "SELECT slot_name, active FROM pg_replication_slots"


def database_of(url: str) -> dict[str, str]:
    """Return where the database is, as the connector wants to be told."""
    known = conninfo_to_dict(url)
    names = {"host": "hostname", "port": "port", "user": "user", "password": "password"}
    names["dbname"] = "dbname"
    return {f"database.{new}": str(known[old]) for old, new in names.items() if old in known}


CONNECTOR: Mapping[str, str] = {
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "tasks.max": "1",
    "plugin.name": "pgoutput",
    "publication.name": "outbox",
    "publication.autocreate.mode": "disabled",
    "table.include.list": "public.outbox",
    "snapshot.mode": "no_data",
    "tombstones.on.delete": "false",
    "skipped.operations": "u,d,t",
    "max.batch.size": "2048",
    "max.queue.size": "8192",
    "poll.interval.ms": "5",
    "transforms": "outbox",
    "transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter",
    "transforms.outbox.route.topic.replacement": "${routedByValue}",
    "producer.override.linger.ms": "0",
    "producer.override.batch.size": "262144",
    "producer.override.max.in.flight.requests.per.connection": "5",
}
EXACTLY_ONCE_WORKER = {"exactly.once.source.support": "enabled"}
EXACTLY_ONCE = {"exactly.once.support": "required", "transaction.boundary": "poll"}
AT_LEAST_ONCE = {"producer.override.enable.idempotence": "true"}


# ---- what it needs, and what it leaves ------------------------------------------------------------


def check_wal_level(servers: Servers) -> None:
    """See that Postgres can decode its log. Raises ServerStartError."""
    with psycopg.connect(servers.database_url) as conn:
        row = conn.execute("SHOW wal_level").fetchone()
    if row != ("logical",):
        raise ServerStartError(f"Debezium needs wal_level = logical in PostgreSQL, not {row}")


def fetch_plugin() -> list[Path]:
    """Return the connector's jars, without those that the worker has."""
    jars = fetch_jars(f"io.debezium:debezium-connector-postgres:{DEBEZIUM_VERSION}")
    return [jar for jar in jars if not jar.name.startswith(WORKERS_OWN)]


WORKERS_OWN = ("connect-api-", "kafka-clients-", "slf4j-api-")


def drop_slot(servers: Servers, slot: str) -> None:
    """Drop the replication slot, if there is one."""
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        conn.execute(DROP_SLOT, (slot,))


DROP_SLOT = """
    SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s
"""


def delete_topics(servers: Servers, topics: Sequence[str]) -> None:
    """Delete the topics."""
    admin = AdminClient({"bootstrap.servers": servers.bootstrap_servers})
    for gone in admin.delete_topics(list(topics)).values():
        gone.result()
