"""Debezium's Postgres connector with its outbox event router, on one worker of Kafka Connect.

Exactly once with Kafka Connect (KIP-618): the records of a poll and the connector's position in the
write-ahead log are one Kafka transaction. Or at least once, for comparison. Rows stay in the table: the
publication contains only inserts, so deleting them would cost the connector nothing.

Tuned. The variants were compared in turn, on one worker, but on 2 busy cores, so only a difference in
most rounds counts:
- poll.interval.ms: how long a poll waits for a full batch. With 1 the median latency was 4 ms below
  that of 5, in each of the last four rounds of five; 50 needed a fifth less CPU a row than 5. 2 is a
  compromise.
- retry.backoff.ms: the default of 100 is waited whenever the coordinator still finishes the previous
  transaction. With 2 the 99th percentile was lower in four rounds of five at 5 ms, not at 1 ms.
- Warm-up: a row costs 300 us of CPU at first and 60 to 70 after 300,000, because Java keeps compiling.
- slot.retry.delay.ms: after a stop and a resume the first row once came 10 s late, which is its
  default: at a start the connector opens a second session, and the first may still hold the slot.
- No clear difference: max.batch.size 2048 or 8192; a producer with Connect's 16 kB batches and one
  request in flight, or with larger batches and five; StringConverter for the header. Neither the
  parallel nor the serial garbage collector was faster than G1.
- Not tried: compression, which our relay does not use either; several connectors on parts of the table.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psycopg
from confluent_kafka import KafkaException
from psycopg.conninfo import conninfo_to_dict

from bench.peers import NotDelivered, OutboxPeer
from bench.peers.connect import ConnectRefused, ConnectWorker
from bench.peers.resources import new_database
from orchestrator.embedded import Servers, ServerStartError
from orchestrator.embedded.jars import fetch_jars
from orchestrator.kafka.topics import Admin

START_S = 60.0  # until a connector has started or stopped
POLL_S = 0.05
WARM_UP_RATE = 100  # orders a second

OUTBOX = b"""
    CREATE TABLE outbox (
        id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        aggregatetype varchar(255) NOT NULL,
        aggregateid   varchar(255) NOT NULL,
        type          varchar(255) NOT NULL,
        payload       text NOT NULL
    )
"""
PUBLICATION = b"CREATE PUBLICATION outbox FOR TABLE outbox WITH (publish = 'insert')"


@contextmanager
def debezium(
    servers: Servers,
    directory: Path,
    *,
    exactly_once: bool,
    warm_up_rows: int = 200_000,
    warm_up_s: float = 20,
) -> Iterator["DebeziumPeer"]:
    """Yield a connector on a worker of its own, whose files are in `directory`.

    First it warms up: `warm_up_rows` at once, then WARM_UP_RATE for `warm_up_s`.
    Raises ServerStartError, also for a Postgres whose wal_level is not logical.
    """
    check_wal_level(servers)
    name = f"peer_{uuid4().hex[:12]}"
    properties = EXACTLY_ONCE_WORKER if exactly_once else {}
    worker = ConnectWorker(directory, servers.bootstrap_servers, name, fetch_plugin(), properties)
    with ExitStack() as ending:
        url = ending.enter_context(new_database(servers, OUTBOX, PUBLICATION))
        ending.callback(delete_topics, servers, worker.topics)
        ending.callback(drop_slot, servers, name)
        ending.callback(worker.stop)
        worker.start()
        peer = DebeziumPeer(servers, url, worker, name, exactly_once)
        peer.start()
        if warm_up_rows:
            peer.drain(warm_up_rows)
        if warm_up_s:
            peer.latencies(WARM_UP_RATE, warm_up_s)
        yield peer


class DebeziumPeer(OutboxPeer):
    """From an outbox to the output topic, by way of the write-ahead log."""

    insert = b"""
        INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
        VALUES (%s, %s, 'deploy', %s)
    """

    def __init__(
        self, servers: Servers, database_url: str, worker: ConnectWorker, name: str, exactly_once: bool
    ) -> None:
        super().__init__(servers, database_url)
        self.name = "Debezium, exactly once" if exactly_once else "Debezium, at least once"
        self._worker = worker
        self._slot = name
        self._path = f"/connectors/{name}"
        self._config = {
            **CONNECTOR,
            **(EXACTLY_ONCE if exactly_once else AT_LEAST_ONCE),
            **database_of(database_url),
            "topic.prefix": name,
            "slot.name": name,
        }

    def start(self) -> None:
        """Create the connector and its slot, for all rows from now on. Leave it stopped."""
        self._worker.ask("PUT", f"{self._path}/config", self._config)
        self._wait_until("RUNNING", slot_active=True)
        self._stop()

    @contextmanager
    def _running(self, topic: str) -> Iterator[None]:
        self._worker.ask("PUT", f"{self._path}/resume")
        self._wait_until("RUNNING", slot_active=True)
        yield
        self._stop()

    def _stop(self) -> None:
        """Stop the connector's task. A paused one would continue to read max.queue.size rows."""
        self._worker.ask("PUT", f"{self._path}/stop")
        self._wait_until("STOPPED", slot_active=False)

    def _wait_until(self, state: str, slot_active: bool) -> None:
        """Wait for the connector, its task and its slot. Raises NotDelivered."""
        until = time.monotonic() + START_S
        while (states := self._states()) != {state} or self._slot_is_active() != slot_active:
            if time.monotonic() > until:
                raise NotDelivered(f"the connector does not become {state}: {states}")
            time.sleep(POLL_S)

    def _states(self) -> set[str]:
        """Return the states of the connector and its task. Raises NotDelivered if one has failed."""
        try:
            status = self._worker.ask("GET", f"{self._path}/status")
        except ConnectRefused:  # just created: not known yet
            return set()
        states = {part["state"] for part in (status["connector"], *status["tasks"])}
        if "FAILED" in states:
            raise NotDelivered(f"the connector failed: {status}")
        return states

    def _slot_is_active(self) -> bool:
        with psycopg.connect(self.database_url) as conn:
            return conn.execute(IS_ACTIVE, (self._slot,)).fetchone() == (True,)


IS_ACTIVE = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"


def database_of(url: str) -> dict[str, str]:
    """Return the database's address as properties of the connector."""
    known = conninfo_to_dict(url)
    return {theirs: str(known[ours]) for ours, theirs in DATABASE.items() if ours in known}


DATABASE = {
    "host": "database.hostname",
    "port": "database.port",
    "user": "database.user",
    "password": "database.password",
    "dbname": "database.dbname",
}
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
    "max.batch.size": "8192",
    "max.queue.size": "32768",
    "poll.interval.ms": "2",
    "transforms": "outbox",
    "transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter",
    "transforms.outbox.route.topic.replacement": "${routedByValue}",
    "slot.retry.delay.ms": "200",
    "slot.max.retries": "100",
    "producer.override.linger.ms": "0",
    "producer.override.batch.size": "262144",
    "producer.override.max.in.flight.requests.per.connection": "5",
    "producer.override.retry.backoff.ms": "2",
    "producer.override.retry.backoff.max.ms": "50",
}
EXACTLY_ONCE_WORKER = {"exactly.once.source.support": "enabled"}
EXACTLY_ONCE = {"exactly.once.support": "required", "transaction.boundary": "poll"}
AT_LEAST_ONCE = {"producer.override.enable.idempotence": "true"}


# ---- before and after the connector ----------------------------------------------------------------


def check_wal_level(servers: Servers) -> None:
    """Check that Postgres can decode its log. Raises ServerStartError."""
    with psycopg.connect(servers.database_url) as conn:
        row = conn.execute("SHOW wal_level").fetchone()
    if row != ("logical",):
        raise ServerStartError(f"Debezium needs wal_level = logical in PostgreSQL, not {row}")


def fetch_plugin() -> list[Path]:
    """Return the connector's jars, without those of the worker."""
    jars = fetch_jars(Path(__file__).with_name("debezium.lock"))
    return [jar for jar in jars if not jar.name.startswith(WORKERS_OWN)]


WORKERS_OWN = ("connect-api-", "kafka-clients-", "slf4j-api-")


def drop_slot(servers: Servers, slot: str) -> None:
    """Drop the replication slot, if it exists. Until then Postgres keeps all its WAL."""
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        conn.execute(END_SLOT, (slot,))
        conn.execute(DROP_SLOT, (slot,))


END_SLOT = """
    SELECT pg_terminate_backend(active_pid, 5000)
      FROM pg_replication_slots
     WHERE slot_name = %s AND active
"""
DROP_SLOT = """
    SELECT pg_drop_replication_slot(slot_name)
      FROM pg_replication_slots
     WHERE slot_name = %s
"""


def delete_topics(servers: Servers, topics: Sequence[str]) -> None:
    """Delete the topics that exist."""
    admin = Admin({"bootstrap.servers": servers.bootstrap_servers})
    for gone in admin.delete_topics(list(topics)).values():
        with suppress(KafkaException):  # the worker had not created it
            gone.result()
