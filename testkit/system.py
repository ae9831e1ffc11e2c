"""One installation for one test: a database cloned from a template, topics and a group of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from uuid import UUID, uuid4

import msgspec
import psycopg
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka import Message as Record
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)
from psycopg.conninfo import make_conninfo

from orchestrator.config.settings import Settings, read_settings
from orchestrator.config.timings import ConsumerTimings
from orchestrator.consumer.commands import command_subscription
from orchestrator.consumer.session import ConsumerSession, open_consumer_session
from orchestrator.contract import workers
from orchestrator.contract.messages import DeployOrder, encode_order, worker_id
from orchestrator.embedded import Servers
from orchestrator.kafka.reader import find_ranges, read_ranges
from orchestrator.kafka.topics import INPUT_CONFIG, TopicMissing, read_high_watermarks, read_topic_id
from orchestrator.observability.health import Health
from orchestrator.observability.metrics import ConsumerMetrics, new_registry
from orchestrator.operations.audit.audit import Audit, audit
from orchestrator.runtime.database import open_session
from outbox import (
    Connection,
    Message,
    Observer,
    OutboxRow,
    Timings,
    count_lanes,
    enqueue,
    transaction,
    with_overrides,
)
from outbox.admin import Lane, Marker, Publisher, RelayOptions, SteppedRelay, step_relay
from testkit.eventually import eventually

# Waits that tests shorten, in this process and in those that they start. A test of such a wait itself
# uses PRODUCTION, or OUTBOX_TIMINGS="" in a process.
QUICK = {
    "OUTBOX_TIMINGS": json.dumps(
        {
            "refused_recheck_s": 0.5,
            "position_check_s": 0.5,
            "deferred_retry_s": 0.2,
            "gauge_period_s": 0.5,
            "gauge_max_pause_s": 2.0,
        }
    )
}

PARTITIONS = 2  # of every topic except the marker topic
LANES = 4


# The part of the shell's environment that the processes get: none of its settings.
INHERITED = {
    name: value
    for name, value in os.environ.items()
    if name in {"HOME", "LANG", "PATH", "PYTHONPATH", "TMPDIR", "VIRTUAL_ENV", "XDG_CACHE_HOME"}
}


class Running:
    """A real process of the orchestrator. Its output, stdout and stderr, is in `log`."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env={**INHERITED, **environ},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )

    def logged(self, text: str) -> bool:
        """Return whether the process has written `text`."""
        return text in self.log.read_text()

    def port(self) -> int:
        """Return the port of its HTTP server; with `eventually`, once it listens."""
        for line in self.log.read_text().splitlines():
            if '"process started"' in line:
                return int(msgspec.json.decode(line)["port"])
        raise AssertionError("not listening yet")

    def get(self, path: str) -> str:
        """Return an answer of its HTTP server; empty before it listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port()}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError as error:
            raise AssertionError(str(error)) from error

    def wait_killed(self, timeout: float = 60) -> None:
        """Wait until it was killed by SIGKILL at a crash point."""
        assert self.process.wait(timeout) == -signal.SIGKILL, self.log.read_text()[-2000:]

    def wait_frozen(self, timeout: float = 60) -> None:
        """Wait until it was frozen by SIGSTOP at a crash point."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", timeout)

    def thaw(self) -> None:
        """Let it continue."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Stop it with SIGTERM; check that it ends within 5 s and with exit code 0."""
        if self.process.poll() is None:
            started = time.monotonic()
            self.process.terminate()
            code, took_s = self.process.wait(60), time.monotonic() - started
            assert code == 0, self.log.read_text()[-2000:]
            assert took_s < 5, f"{took_s} s"


@dataclass
class System:
    """An installation. environ: for its processes; settings: the same, parsed."""

    environ: dict[str, str]
    directory: Path
    settings: Settings = field(init=False)
    _running: list[Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.settings = read_settings(self.environ)

    # ---- the outside world ----------------------------------------------------------------------

    def connect(self, name: str = "test") -> Connection:
        """Open a session; close it with `closing`."""
        return open_session(self.settings, name)

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement in a session of its own and return its rows."""
        with psycopg.connect(self.settings.database_url, autocommit=True) as conn:
            if schema := self.settings.database_schema:
                conn.execute(f"SET search_path = {schema}, public".encode())
            cursor = conn.execute(sql.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def produce(self, *values: bytes | None, key: bytes | None = None, **record: Any) -> None:
        """Write records to the input topic and wait until they are acknowledged."""
        producer = Producer({**self.settings.kafka, "linger.ms": 1, "message.max.bytes": 10_000_000})
        for value in values:
            producer.produce(self.settings.input_topic, value, key, **record)
        assert producer.flush(20) == 0

    def submit(self, commands: int, scenario: UUID | None = None) -> list[UUID]:
        """Write valid commands as the API would; return their scenarios."""
        scenarios = [scenario or uuid4() for _ in range(commands)]
        producer = Producer({**self.settings.kafka, "linger.ms": 1})
        for number, one in enumerate(scenarios):
            command = {"scenario_uuid": str(one), "camera_url": f"rtsp://user:pw@camera/{number}"}
            producer.produce(self.settings.input_topic, msgspec.json.encode(command), str(one).encode())
        assert producer.flush(20) == 0
        return scenarios

    def read(self, topic: str) -> list[Record]:
        """Return all committed records of a topic."""
        kafka = self.settings.kafka
        spans = find_ranges(AdminClient(dict(kafka)), topic)
        return [record for chunk in read_ranges(kafka, topic, spans) for record in chunk]

    def orders(self) -> list[DeployOrder]:
        """Return the deploy orders that a read_committed Runner sees."""
        decode = msgspec.json.Decoder(DeployOrder).decode
        return [decode(record.value() or b"") for record in self.read(self.settings.output_topic)]

    def statuses(self) -> dict[str, int]:
        """Count the workers by status."""
        return dict(self.query("SELECT status, count(*) FROM workers GROUP BY status"))

    def audit(self) -> Audit:
        """Compare the output topic with the workers."""
        with closing(self.connect()) as conn:
            return audit(conn, self.settings.kafka, self.settings.output_topic)

    def check_exactly_once(self, commands: int, timeout: float = 30) -> None:
        """Wait until all commands are deployed; check that none is lost, duplicated or reordered."""
        eventually(partial(self.check_deployed, commands), timeout)
        found = self.audit()
        assert found.passed, found
        assert found.accepted == found.deployed == found.published == commands, found

    def check_deployed(self, commands: int) -> bool:
        """See that so many workers are deployed, and no others are there."""
        found = self.statuses()
        assert found == {"deployed": commands}, f"{commands} sent, {found}"
        return True

    # ---- the parts, in this process -------------------------------------------------------------

    def accept(self, commands: int, scenario: UUID | None = None) -> list[UUID]:
        """Insert workers and their outbox rows directly in Postgres; return the workers' ids."""
        topic_id = uuid4()  # of no topic: no record has such a place
        now_ms = int(time.time() * 1000)
        orders = [
            DeployOrder(
                worker_id(topic_id, 0, number, now_ms),
                scenario or uuid4(),
                f"rtsp://user:pw@camera/{number}",
            )
            for number in range(commands)
        ]
        messages = [
            Message(
                self.settings.output_topic,
                str(order.scenario_uuid).encode(),
                encode_order(order),
                aggregate_id=order.worker_id,
            )
            for order in orders
        ]
        with closing(self.connect()) as conn, transaction(conn):
            workers.insert(conn, orders)
            enqueue(conn, messages, count_lanes(conn))
        return [order.worker_id for order in orders]

    @contextmanager
    def consumer(
        self, timings: ConsumerTimings | None = None, metrics: ConsumerMetrics | None = None
    ) -> Iterator[ConsumerSession[DeployOrder]]:
        """Yield a consumer session, to be stepped with run_once."""
        subscription = command_subscription(self.settings)
        metrics = metrics or ConsumerMetrics(new_registry("consumer"), Health())
        with (
            closing(self.connect("test consumer")) as conn,
            open_consumer_session(
                subscription, conn, metrics, timings or with_overrides(ConsumerTimings(), QUICK)
            ) as session,
        ):
            yield session

    @contextmanager
    def lane(
        self,
        number: int = 0,
        *also: int,
        owner: bool = True,
        batch_size: int = 1000,
        publisher: type[Publisher] = Publisher,
        observer: Observer | None = None,
        timings: Timings | None = None,
        strict_fencing: bool = False,
        topics: Collection[str] | None = None,
    ) -> Iterator["OwnedLane"]:
        """Yield a relay session of one lane, and `also` of others, to be stepped by hand.

        owner=False: take the epoch without the advisory lock, as a successor does whose predecessor
        is a zombie.
        """
        options = RelayOptions(
            workers.set_deployed,
            batch_size,
            strict_fencing,
            observer=observer or Observer(),
            timings=timings or with_overrides(Timings(), QUICK),
            topics=topics,
        )
        with (
            closing(self.connect(f"test lane {number}")) as conn,
            step_relay(
                conn,
                self.settings.kafka,
                [number, *also],
                options,
                marker_topic=self.settings.marker_topic,
                publisher=publisher,
                is_owner=owner,
            ) as relay,
        ):
            yield OwnedLane(relay, number)

    # ---- the real processes ---------------------------------------------------------------------

    def start(self, *command: str, crash_at: str = "", **environ: str) -> Running:
        """Start a process; crash_at: a crash point, see outbox.crash_points."""
        log = self.directory / f"{len(self._running)}-{command[0]}.log"
        extra = QUICK | {"OUTBOX_CRASH_POINT": crash_at} | environ
        running = Running(["orchestrator", *command], self.environ | extra, log)
        self._running.append(running)
        return running

    def end(self) -> None:
        """End all processes."""
        for running in self._running:
            if running.process.poll() is None:
                running.kill()


class OwnedLane:
    """A relay that is stepped by hand, its first lane, and its components."""

    def __init__(self, relay: SteppedRelay, number: int) -> None:
        self.relay = relay
        self.number = number
        self.session = relay.session
        self.publisher = relay.publisher
        self.conn = relay.conn
        self.stop = relay.stop
        self.recover = relay.recover
        self.run_once = relay.run_once
        self.drain = relay.drain

    @property
    def lane(self) -> Lane:
        """Return the session's first lane."""
        return self.relay.lane(self.number)

    def next_marker(self, number: int) -> Marker:
        """Return the marker of a lane's batch as its owner knows it, in Kafka or not."""
        lane = self.relay.lane(number)
        assert lane.token
        return Marker(lane.batch_number, lane.token)

    def markers(self, *numbers: int) -> dict[int, Marker | None]:
        """Return the markers of lanes in Kafka, once they stay the same.

        A reader may see a transaction a little after its commit was answered, and a busy broker may not
        answer at once.
        """
        found: dict[int, Marker | None] = {}
        agreed = 0

        def are_read() -> bool:
            nonlocal agreed
            seen = self.publisher.peek_markers(numbers)
            agreed = agreed + 1 if seen and seen == found else 0
            found.update(seen)
            return agreed >= 3

        eventually(are_read)
        return found

    def marker(self) -> int | None:
        """Return the number of the lane's marker in Kafka."""
        marker = self.markers(self.number)[self.number]
        return None if marker is None else marker.batch_number

    def claim(self) -> list[OutboxRow]:
        """Do the Postgres half of a cycle."""
        return self.relay.claim(self.number)


@contextmanager
def deferred_workers(one_lane: System, commands: int) -> Iterator[list[UUID]]:
    """Publish workers whose rows another session keeps locked while the block runs."""
    workers = one_lane.accept(commands)
    with closing(one_lane.connect("test Runner")) as other, other.transaction():
        with one_lane.lane() as lane:
            lane.recover()
            assert lane.run_once() == commands
            other.execute("SELECT FROM workers WHERE worker_id = ANY(%s) FOR UPDATE", [workers])
            assert lane.run_once() == 0
        yield workers


def own_headers(record: Record) -> list[tuple[str, bytes | None]]:
    """Return a record's headers as its message had them: without the library's, the message id."""
    *headers, (name, message_id) = cast("list[tuple[str, bytes | None]]", record.headers())
    assert name == "message-id"
    assert UUID((message_id or b"").decode())
    return headers


def take(session: ConsumerSession[Any], records: int) -> None:
    """Step the session until it has consumed exactly this number of records."""
    taken = 0

    def enough() -> bool:
        nonlocal taken
        taken += session.run_once()
        return taken >= records

    eventually(enough, 30)
    assert taken == records


def crash_points(package: ModuleType, process: str) -> set[str]:
    """Return the names of a process's crash points in the code of a package."""
    return {
        name
        for file in Path(str(package.__file__)).parent.rglob("*.py")
        for name in re.findall(rf'crash_point\("{process}\.(\w+)"\)', file.read_text())
    }


def end_sessions(system: System, name: str) -> None:
    """Terminate the sessions of an installation whose application_name is like `name`."""
    system.query(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE %s",
        name,
    )


def limit_messages(system: System, size: int) -> None:
    """Let the output topic reject batches of more than `size` bytes; wait until it does."""
    set_config(system, system.settings.output_topic, "max.message.bytes", str(size))


def set_config(system: System, topic: str, name: str, value: str) -> None:
    """Set a property of a topic; wait until the broker has it."""
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    kind = ResourceType.TOPIC
    changed, described = (
        ConfigResource(kind, topic, incremental_configs=[entry]),
        ConfigResource(kind, topic),
    )
    admin = AdminClient(dict(system.settings.kafka))
    admin.incremental_alter_configs([changed])[changed].result(10)

    def is_applied() -> bool:  # a busy broker applies it half a second later
        found = admin.describe_configs([described])[described].result(10)
        return bool(found[name].value == value)

    eventually(is_applied)


def delete_before(system: System, topic: str, partition: int, offset: int) -> None:
    """Set the log start offset of a partition."""
    admin = AdminClient(dict(system.settings.kafka))
    place = TopicPartition(topic, partition, offset)
    admin.delete_records([place])[place].result(10)


def recreate_input(system: System) -> None:
    """Recreate the input topic."""
    recreate(system, system.settings.input_topic)


def recreate(system: System, *topics: str, **config: str) -> None:
    """Recreate topics, and wait until the brokers have forgotten those before."""
    admin = AdminClient(dict(system.settings.kafka))
    before = {read_topic_id(admin, topic) for topic in topics}
    for future in admin.delete_topics(list(topics)).values():
        future.result()
    missing = {topic: NewTopic(topic, PARTITIONS, 1, config=config) for topic in topics}

    def are_created() -> bool:
        for topic, future in admin.create_topics(list(missing.values())).items():
            if future.exception() is None:
                del missing[topic]
        return not missing

    def are_empty() -> bool:  # a broker may lead the old topic for a moment more
        try:
            ids = {read_topic_id(admin, topic) for topic in topics}
            ends = [read_high_watermarks(admin, topic, range(PARTITIONS)) for topic in topics]
        except (KafkaException, TopicMissing):
            return False
        return not ids & before and not any(any(end.values()) for end in ends)

    eventually(are_created)
    eventually(lambda: have_leaders(admin, topics) and are_empty())


# ---- settings and topics --------------------------------------------------------------------------


def environ_of(servers: Servers, name: str) -> dict[str, str]:
    """Return the settings of an installation called `name`."""
    return {
        "DATABASE_URL": make_conninfo(servers.database_url, dbname=f"test_{name}"),
        "KAFKA_BOOTSTRAP_SERVERS": servers.bootstrap_servers,
        "CONSUMER_GROUP": f"group-{name}",
        "INPUT_TOPIC": f"init_scenario-{name}",
        "OUTPUT_TOPIC": f"to_deploy-{name}",
        "DEAD_LETTER_TOPIC": f"dlq-{name}",
        "MARKER_TOPIC": f"progress-{name}",
        "METRICS_HOST": "127.0.0.1",
        "METRICS_PORT": "0",
    }


def topics_of(system: System) -> list[str]:
    """Return all its topics, the marker topic last."""
    settings = system.settings
    return [
        settings.input_topic,
        settings.output_topic,
        settings.dead_letter_topic,
        settings.marker_topic,
    ]


def create_topics(system: System) -> None:
    """Create the topics and wait until they have leaders."""
    admin = AdminClient(dict(system.settings.kafka))
    *data, progress = topics_of(system)
    new = [*map(data_topic, data), marker_topic(progress)]
    for future in admin.create_topics(new).values():
        future.result()
    eventually(lambda: have_leaders(admin, data))


def data_topic(name: str) -> NewTopic:
    """Return an input, output or dead-letter topic to be created; an input as `setup` creates it."""
    config = INPUT_CONFIG if name.startswith("init_scenario") else {}
    return NewTopic(name, PARTITIONS, 1, config=dict(config))


def marker_topic(name: str) -> NewTopic:
    """Return a marker topic to be created."""
    return NewTopic(name, LANES, 1, config={"cleanup.policy": "compact"})


def have_leaders(admin: AdminClient, topics: Sequence[str]) -> bool:
    """Return whether all partitions of these topics have a leader.

    The metadata first: without it, a client that requests offsets sometimes waits for 1 to 3 s.
    """
    known = admin.list_topics(timeout=10).topics
    if not all(topic in known and len(known[topic].partitions) == PARTITIONS for topic in topics):
        return False
    beginning = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
    asked = {
        TopicPartition(topic, number): beginning for topic in topics for number in range(PARTITIONS)
    }
    return not any(future.exception() for future in admin.list_offsets(asked).values())


def delete_topics(system: System) -> None:
    """Delete the topics that still exist."""
    admin = AdminClient(dict(system.settings.kafka))
    for future in admin.delete_topics(topics_of(system)).values():
        with suppress(KafkaException, TimeoutError):  # what is left ends with the server
            future.result(10)
