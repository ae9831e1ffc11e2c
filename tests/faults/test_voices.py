"""No silence: log, /readyz, `status`, `doctor` and the alerts all tell of a fault.

A fault is one line of FAULTS. The first four voices must name it within NAMED_S, an alert within its
`for`, here with short minutes (tests/acceptance/test_alerts.py).
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import psycopg
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from orchestrator.embedded import Servers
from orchestrator.embedded.server import HOST, free_port
from testkit.disagreement import set_marker
from testkit.empty_installation import run_in_process
from testkit.eventually import eventually
from testkit.system import (
    Running,
    System,
    end_sessions,
    limit_messages,
    recreate_input,
    set_config,
)
from tests.acceptance.test_alerts import FIRES_S, Prometheus, prometheus
from tests.faults.postgres_servers import installed, own_postgres
from tests.faults.test_postgres import ghost
from tests.faults.test_unreadable import bomb

__all__ = ["prometheus"]  # a fixture

pytestmark = [pytest.mark.xdist_group("measures: Prometheus in a hurry"), pytest.mark.slow]

NAMED_S = 30.0
VOICES = ("log", "readyz", "status", "doctor")
OUTSIDE = ("status", "doctor")  # a process that does not run says nothing


def ask_voices(
    system: System, processes: Sequence[Running], prometheus: Prometheus | None = None
) -> dict[str, str]:
    """Return what each voice says is wrong; empty if it says that all is well.

    `status` and `doctor` count only with another exit code than 0, and only what they call wrong.
    """
    said = {
        "log": "\n".join(filter(None, map(complaints, processes))),
        "readyz": "\n".join(filter(None, map(unreadiness, processes))),
        "status": wrong_lines(system, "status", ("PROBLEM", "UNKNOWN", "orchestrator:")),
        "doctor": wrong_lines(system, "doctor", ("failed", "unreachable", "orchestrator:")),
    }
    if prometheus:
        said["alerts"] = "\n".join(labels["alertname"] for labels in prometheus.firing())
    return said


def complaints(process: Running) -> str:
    """Return a process's log lines of WARNING and above."""
    lines = process.log.read_text().splitlines()
    return "\n".join(line for line in lines if '"level": "INFO"' not in line)


def unreadiness(process: Running) -> str:
    """Return what /readyz says is wrong: failed checks, and notes."""
    if process.process.poll() is not None:
        return ""
    answer = json.loads(process.get("/readyz"))
    wrong = {**answer["checks"], **answer.get("notes", {})}
    return "\n".join(f"{name}: {text}" for name, text in wrong.items() if text)


def wrong_lines(system: System, command: str, beginnings: tuple[str, ...]) -> str:
    """Return the lines of a command's output that say what is wrong."""
    ran = run_in_process(system.environ, command)
    if ran.returncode == 0:
        return ""
    lines = (ran.stdout + ran.stderr).splitlines()
    return "\n".join(line for line in lines if line.startswith(beginnings))


# ---- an installation at work ------------------------------------------------------------------------


@dataclass
class Stage:
    """An installation at work, seen by Prometheus. ending: what a fault must undo at the end."""

    system: System
    prometheus: Prometheus
    ending: ExitStack
    processes: dict[str, Running] = field(default_factory=dict)

    def start(self, role: str, **environ: str) -> Running:
        """Start a process where it is scraped."""
        port = str(self.prometheus.ports[role])
        self.processes[role] = self.system.start(role, **{"METRICS_PORT": port, **environ})
        return self.processes[role]

    def stop(self, role: str) -> None:
        """Stop a process."""
        self.processes[role].stop()

    def say(self) -> dict[str, str]:
        """Return what each voice says."""
        return ask_voices(self.system, list(self.processes.values()), self.prometheus)


@contextmanager
def staged(system: System, prometheus: Prometheus) -> Iterator[Stage]:
    """Start both processes, and give them when all is well."""
    with ExitStack() as ending:
        made = Stage(system, prometheus, ending)
        for role in ("consumer", "relay"):
            made.start(role)
        system.submit(20)
        system.check_exactly_once(20)
        eventually(lambda: len(prometheus.query("up == 1")) == 2)
        prometheus.wait_silent()
        yield made


@pytest.fixture
def stage(system: System, prometheus: Prometheus) -> Iterator[Stage]:  # the fixture
    with staged(system, prometheus) as made:
        yield made


# ---- the faults -------------------------------------------------------------------------------------


def leave_a_dead_letter(stage: Stage) -> None:
    stage.system.produce(b"no command")


def park_a_row(stage: Stage) -> None:
    limit_messages(stage.system, 4000)
    url = "rtsp://camera/" + "x" * 5000
    stage.system.produce(json.dumps({"scenario_uuid": "0" * 32, "camera_url": url}).encode())


def refuse_a_lane(stage: Stage) -> None:
    stage.stop("relay")
    set_marker(stage.system, 1000, lane=2)
    stage.start("relay")


def refuse_the_partitions(stage: Stage) -> None:
    recreate_input(stage.system)


def defer_a_worker(stage: Stage) -> None:
    """Lock a worker; it counts once a minute is over, so the minute is added."""
    system = stage.system
    stage.stop("relay")
    (worker,) = system.accept(1)
    stage.ending.enter_context(locked(system, f"workers WHERE worker_id = '{worker}'"))
    stage.start("relay")
    eventually(lambda: system.query("SELECT id FROM outbox_deferred"))
    system.query("UPDATE outbox_deferred SET deferred_at = deferred_at - interval '10 min'")


@contextmanager
def locked(system: System, rows: str) -> Iterator[None]:
    with psycopg.connect(system.settings.database_url, application_name="test Runner") as conn:
        conn.execute(f"SELECT FROM {rows} FOR UPDATE".encode())
        yield


def cut_a_relay_off(stage: Stage) -> None:
    """Start a second relay with a wrong address, where Prometheus expects the first."""
    stage.system.start("relay")
    stage.stop("relay")
    stage.start("relay", KAFKA_BOOTSTRAP_SERVERS=f"{HOST}:{free_port()}")


def cut_the_consumer_off(stage: Stage) -> None:
    stage.stop("consumer")
    stage.start("consumer", KAFKA_BOOTSTRAP_SERVERS=f"{HOST}:{free_port()}")


def delete_topic(stage: Stage, name: str) -> None:
    admin, topic = AdminClient(dict(stage.system.settings.kafka)), getattr(stage.system.settings, name)
    admin.delete_topics([topic])[topic].result(10)


def delete_the_output(stage: Stage) -> None:
    delete_topic(stage, "output_topic")
    stage.system.accept(1)


def make_postgres_read_only(stage: Stage) -> None:
    system = stage.system
    ((name,),) = system.query("SELECT current_database()")
    system.query(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    for session in ("orchestrator%", "outbox%"):
        end_sessions(system, session)


def leave_a_transaction_open(stage: Stage) -> None:
    settings = stage.system.settings
    api = {"transactional.id": f"api-{uuid4()}", "transaction.timeout.ms": 300_000}
    producer = Producer({**settings.kafka, **api})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(settings.input_topic, b"no command", partition=0)
    producer.flush(30)
    stage.ending.callback(producer.abort_transaction, 30)
    stage.system.produce(b"no command", b"no command", partition=0)


def send_what_cannot_be_decoded(stage: Stage) -> None:
    set_config(stage.system, stage.system.settings.input_topic, "compression.type", "producer")
    bomb(stage.system)
    stage.system.produce(b"no command", b"no command", partition=0)


def give_the_group_to_others(stage: Stage) -> None:
    stage.stop("consumer")
    settings = stage.system.settings
    other = {"group.id": settings.consumer_group, "partition.assignment.strategy": "cooperative-sticky"}
    member = stage.ending.enter_context(closing(Consumer({**settings.kafka, **other})))
    member.subscribe([settings.input_topic])
    eventually(lambda: member.poll(0.1) is None and member.assignment())
    stage.start("consumer")


def refuse_a_row(stage: Stage) -> None:
    stage.system.query(
        "ALTER TABLE workers ADD CONSTRAINT no_bad CHECK (NOT starts_with(camera_url, 'rtsp://bad'))"
    )
    command = {"scenario_uuid": "0" * 32, "camera_url": "rtsp://bad/1"}
    stage.system.produce(json.dumps(command).encode())


def drop_the_unique_constraint(stage: Stage) -> None:
    stage.system.query("ALTER TABLE workers DROP CONSTRAINT workers_worker_id_key")
    for session in ("orchestrator%", "outbox%"):
        end_sessions(stage.system, session)


def set_a_sequence_back(stage: Stage) -> None:
    system = stage.system
    system.query(
        "INSERT INTO workers (worker_id, scenario_uuid, camera_url, status)"
        " SELECT gen_random_uuid(), gen_random_uuid(), 'x', 'stopped' FROM generate_series(1, 5000)"
    )
    system.query("SELECT setval('workers_id_seq', 1)")
    system.submit(3)


def set_the_outbox_back(stage: Stage) -> None:
    system = stage.system
    stage.stop("relay")
    system.accept(3)
    system.query("SELECT setval('outbox_id_seq', 1)")
    end_sessions(system, "orchestrator%")


def lose_a_lane(stage: Stage) -> None:
    system = stage.system
    system.query("DELETE FROM outbox_lane WHERE lane = 2")
    for session in ("orchestrator%", "outbox%"):
        end_sessions(system, session)


def add_trigger(system: System, name: str, table: str, body: str) -> None:
    """Run a statement before each row that is inserted."""
    system.query(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {body}; END'")
    system.query(
        f"CREATE TRIGGER {name} BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()"
    )


def skip_rows_of_the_outbox(stage: Stage) -> None:
    add_trigger(stage.system, "skip", "outbox", "RETURN NULL")
    stage.system.submit(3)


def take_no_row(stage: Stage) -> None:
    stage.system.query("ALTER TABLE workers ADD CONSTRAINT nothing CHECK (false) NOT VALID")
    stage.system.submit(50)


def take_no_row_without_a_function(stage: Stage) -> None:
    add_trigger(stage.system, "fails", "workers", "PERFORM nowhere()")
    stage.system.submit(3)


class Fault(NamedTuple):
    """A fault, and what names it. row: of the matrix (tests/matrix.py); words: a regular expression.

    voices: those that can tell; the process that does not run has no log.
    """

    plant: Callable[[Stage], object]
    words: str
    alert: str
    row: int
    voices: Sequence[str] = VOICES


FAULTS = {
    "dead letters wait": Fault(
        leave_a_dead_letter, "dead letters wait|invalid commands", "DeadLetters", 30
    ),
    "a parked row": Fault(park_a_row, "parked", "RowsParked", 19),
    "a refused lane": Fault(refuse_a_lane, "marker_ahead.*repair lane 2", "LaneRefused", 10),
    "refused partitions": Fault(
        refuse_the_partitions, "topic_recreated.*repair partition", "PartitionRefused", 24
    ),
    "a deferred worker": Fault(defer_a_worker, "deferred", "WorkersDeferred", 42),
    "no consumer": Fault(
        lambda stage: stage.stop("consumer"), "no consumer is connected", "ConsumerAbsent", 1, OUTSIDE
    ),
    "no relay": Fault(
        lambda stage: stage.stop("relay"), "no relay is connected", "RelayAbsent", 2, OUTSIDE
    ),
    "a relay without Kafka": Fault(
        cut_a_relay_off,
        "[Kk]afka (silent|does not answer)|of this relay is ans",
        "RelayWithoutKafka",
        41,
    ),
    "a consumer without Kafka": Fault(
        cut_the_consumer_off, "_TRANSPORT|_TIMED_OUT|wait for Kafka", "ConsumerStalled", 31
    ),
    "no input topic": Fault(
        lambda stage: delete_topic(stage, "input_topic"),
        "init_scenario.*is missing",
        "ConsumerStalled",
        24,
    ),
    "an open transaction": Fault(
        leave_a_transaction_open, "transaction is open at offset", "PartitionStuck", 70
    ),
    "a batch that cannot be decoded": Fault(
        send_what_cannot_be_decoded, "batch at offset .* cannot be decoded", "PartitionStuck", 71
    ),
    "a group of others": Fault(
        give_the_group_to_others,
        "set CONSUMER_GROUP to a name of its own",
        "ConsumerStalled",
        72,
        ("log", "readyz", "doctor"),
    ),
    "no output topic": Fault(delete_the_output, "to_deploy", "OutboxStalled", 15),
    "a row that Postgres refuses": Fault(refuse_a_row, "constraint no_bad", "DeadLetters", 80),
    "workers without UNIQUE": Fault(
        drop_the_unique_constraint, r"ADD UNIQUE \(worker_id\)", "RelayAbsent", 81
    ),
    "a sequence set back": Fault(
        set_a_sequence_back, r"SELECT setval\('(public\.)?workers_id_seq'", "ConsumerStalled", 83
    ),
    "the outbox's sequence set back": Fault(
        set_the_outbox_back, r"SELECT setval\('public\.outbox_id_seq'", "ConsumerStalled", 62
    ),
    "a lane missing": Fault(lose_a_lane, "missing: 2", "RelayAbsent", 62),
    "rows of the outbox skipped": Fault(
        skip_rows_of_the_outbox, "a rule of outbox skips|trigger skip of outbox", "ConsumerStalled", 82
    ),
    "every row refused": Fault(take_no_row, "constraint nothing", "ConsumerStalled", 80),
    "every row refused by a trigger": Fault(
        take_no_row_without_a_function,
        r"nowhere\(\) does not exist|readyz say what it waits for",  # it is not seen from outside
        "ConsumerStalled",
        80,
    ),
    "Postgres is read-only": Fault(make_postgres_read_only, "read-only", "OutboxStalled", 14),
}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=name, marks=pytest.mark.fault(fault.row))
        for name, fault in FAULTS.items()
    ],
)
def test_every_voice_tells_of_a_fault(stage: Stage, fault: Fault) -> None:
    check_voices(stage, fault)


@pytest.mark.fault(63)
def test_every_voice_tells_of_a_commit_that_waits_for_a_standby(
    servers: Servers, tmp_path: Path, prometheus: Prometheus
) -> None:
    with own_postgres() as postgres:
        on = Servers(postgres.url, servers.bootstrap_servers)
        with installed(on, tmp_path) as system, staged(system, prometheus) as stage, ExitStack() as end:

            def wait_for_a_ghost(stage: Stage) -> None:
                end.enter_context(ghost(postgres))
                stage.system.submit(20)

            check_voices(stage, Fault(wait_for_a_ghost, "'ghost'", "ConsumerStalled", 63))


def check_voices(stage: Stage, fault: Fault) -> None:
    """See that all is well, and that each voice that can tell names the fault once it is there."""
    before = stage.say()
    assert not any(before.values()), before
    fault.plant(stage)
    eventually(partial(are_told, stage, fault), NAMED_S)
    eventually(partial(stage.prometheus.fires, fault.alert), FIRES_S)


def are_told(stage: Stage, fault: Fault) -> bool:
    """Return whether each voice that can tell names the fault."""
    said = stage.say()
    silent = {voice for voice in fault.voices if not re.search(fault.words, said[voice])}
    assert not silent, (silent, said)
    return True
