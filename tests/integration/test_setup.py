"""Setup makes what is missing, leaves what is there, and says plainly what it cannot reach."""

import logging
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Barrier
from uuid import uuid4

import pytest
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)
from psycopg.conninfo import make_conninfo

from orchestrator.config.settings import DEFAULT_LANES, Settings
from orchestrator.embedded import Servers
from orchestrator.embedded.server import free_port
from orchestrator.kafka.topics import describe_topic
from orchestrator.runtime.migrations import read_migrations
from orchestrator.runtime.setup import set_up
from testkit.empty_installation import bare_system, run_command
from testkit.eventually import eventually
from testkit.system import System, topics_of

SECRET = "S3CRET"


@pytest.fixture
def bare(servers: Servers, tmp_path: Path) -> Iterator[System]:
    with bare_system(servers, tmp_path) as system:
        yield system


def partitions(system: System) -> dict[str, int]:
    """Return the partitions of those of its topics that are there."""
    found = AdminClient(dict(system.settings.kafka)).list_topics(timeout=10).topics
    return {name: len(found[name].partitions) for name in topics_of(system) if name in found}


def create(system: System, topic: str, count: int) -> None:
    admin = AdminClient(dict(system.settings.kafka))
    admin.create_topics([NewTopic(topic, count, 1)])[topic].result()


def test_missing_topics_are_created_with_a_progress_partition_for_each_lane(bare: System) -> None:
    set_up(replace(bare.settings, lanes=7))
    eventually(lambda: len(partitions(bare)) == 4)
    assert partitions(bare)[bare.settings.marker_topic] == 7


def test_the_dead_letter_topic_has_a_limit_of_its_own(bare: System) -> None:
    """Whatever the brokers' default is."""
    set_up(bare.settings)
    asked = ConfigResource(ResourceType.TOPIC, bare.settings.dead_letter_topic)
    admin = AdminClient(dict(bare.settings.kafka))

    def is_set() -> bool:
        limit = admin.describe_configs([asked])[asked].result(10)["max.message.bytes"]
        return (limit.value, limit.is_default) == ("1048588", False)

    eventually(is_set)


def test_the_brokers_keep_the_input_as_large_as_it_becomes_in_a_consumer(bare: System) -> None:
    set_up(bare.settings)
    topic = bare.settings.input_topic
    small_batch = {"compression.type": "gzip", "message.max.bytes": 9_000_000}
    producer = Producer({**bare.settings.kafka, **small_batch})
    answers: list[KafkaError | None] = []
    for size in (8_000_000, 800_000):
        producer.produce(
            topic, bytes(size), partition=0, on_delivery=lambda error, _: answers.append(error)
        )
    assert producer.flush(30) == 0
    assert [answer and answer.code() for answer in answers] == [KafkaError.MSG_SIZE_TOO_LARGE, None]


def test_a_topic_that_cannot_be_created_is_named_with_the_reason(bare: System) -> None:
    dotted = bare.settings.input_topic.replace("-", ".")
    create(bare, dotted.replace(".", "_"), 1)
    ran = run_command(bare.environ | {"INPUT_TOPIC": dotted}, "setup")
    assert ran.returncode == 1
    assert f"topic {dotted} was not created: " in ran.stderr
    assert "give it another name in its variable" in ran.stderr


def test_topics_that_are_there_stay_as_they_are(bare: System) -> None:
    settings = bare.settings
    create(bare, settings.input_topic, 3)
    create(bare, settings.output_topic, 1)
    create(bare, settings.marker_topic, 9)
    bare.produce(b"an early command")
    set_up(settings)
    eventually(lambda: len(partitions(bare)) == 4)
    found = partitions(bare)
    assert found[settings.input_topic] == 3
    assert found[settings.output_topic] == 1
    assert found[settings.marker_topic] == 9
    assert [record.value() for record in bare.read(settings.input_topic)] == [b"an early command"]


def test_partitions_are_added_to_a_marker_topic_with_too_few(bare: System) -> None:
    create(bare, bare.settings.marker_topic, 2)
    set_up(bare.settings)
    eventually(lambda: partitions(bare)[bare.settings.marker_topic] == DEFAULT_LANES)


def test_ten_setups_at_once_widen_a_marker_topic_and_all_end_well(bare: System) -> None:
    """Each sees too few partitions; only the first of them may add some."""
    set_up(bare.settings)
    admin = AdminClient(dict(bare.settings.kafka))
    for _ in range(5):
        markers = f"{bare.settings.marker_topic}-{uuid4()}"
        create(bare, markers, 1)
        settings, together = replace(bare.settings, marker_topic=markers), Barrier(10)

        def run(settings: Settings = settings, together: Barrier = together) -> None:
            together.wait(30)
            set_up(settings)

        with ThreadPoolExecutor(10) as threads:
            runs = [threads.submit(run) for _ in range(10)]
        assert [str(one.exception()) for one in runs if one.exception()] == []
        eventually(partial(has_a_partition_for_each_lane, admin, markers))
        admin.delete_topics([markers])[markers].result()


def has_a_partition_for_each_lane(admin: AdminClient, topic: str) -> bool:
    return len(describe_topic(admin, topic).partitions) == DEFAULT_LANES


def test_the_lanes_of_the_database_count_and_not_those_of_the_settings(bare: System) -> None:
    set_up(replace(bare.settings, lanes=3))
    set_up(replace(bare.settings, lanes=9))
    eventually(lambda: partitions(bare).get(bare.settings.marker_topic) == 3)


def test_a_second_run_says_nothing(bare: System, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "orchestrator")
    set_up(bare.settings)
    said = [record.message for record in caplog.records]
    assert said == len(read_migrations()) * ["migration applied"] + 4 * ["topic created"]
    caplog.clear()
    set_up(bare.settings)
    assert caplog.records == []
    again = run_command(bare.environ, "setup")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


# ---- what cannot be reached -----------------------------------------------------------------------

NOWHERE = f"127.0.0.1:{free_port()}"
KAFKA_AWAY = {"KAFKA_BOOTSTRAP_SERVERS": NOWHERE, "KAFKA_CONFIG_SASL_PASSWORD": SECRET}
POSTGRES_AWAY = {"DATABASE_URL": f"postgresql://user:{SECRET}@{NOWHERE}/db"}
NO_SUCH_HOST = {"DATABASE_URL": f"postgresql://user:{SECRET}@no-such-host.invalid/db"}
URL = f"rtsp://user:{SECRET}@camera/1"
AWAY: dict[str, tuple[dict[str, str], list[str]]] = {
    "setup without Kafka": (KAFKA_AWAY, ["setup"]),
    "setup without Postgres": (POSTGRES_AWAY, ["setup"]),
    "setup with a wrong host": (NO_SUCH_HOST, ["setup"]),
    "migrate without Postgres": (POSTGRES_AWAY, ["migrate"]),
    "migrate --check without Postgres": (POSTGRES_AWAY, ["migrate", "--check"]),
    "submit without Kafka": (KAFKA_AWAY, ["submit", URL, "--count", "3"]),
}


@pytest.fixture(scope="module")
def ended(
    servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, subprocess.CompletedProcess[str]]]:
    """What became of each command of AWAY: run at once, since each waits for its server."""
    with (
        bare_system(servers, tmp_path_factory.mktemp("away")) as system,
        ThreadPoolExecutor(len(AWAY)) as threads,
    ):
        runs = {
            name: threads.submit(run_command, system.environ | environ, *command)
            for name, (environ, command) in AWAY.items()
        }
        yield {name: run.result() for name, run in runs.items()}


@pytest.mark.xdist_group("commands that wait at once")
@pytest.mark.parametrize("name", AWAY)
def test_a_server_that_is_away_is_exit_code_3_and_one_line_without_secrets(
    ended: dict[str, subprocess.CompletedProcess[str]], name: str
) -> None:
    command = ended[name]
    assert command.returncode == 3, command.stderr
    assert command.stdout == ""
    talk = [line for line in command.stderr.splitlines() if not line.startswith("{")]
    assert len(talk) == 1, command.stderr  # the log beside it is JSON
    assert talk[0].startswith("orchestrator: ")
    assert SECRET not in command.stderr
    assert "Traceback" not in command.stderr


def test_a_database_that_is_not_there_is_named(bare: System) -> None:
    url = make_conninfo(bare.settings.database_url, dbname="no_such_database")
    ran = run_command(bare.environ | {"DATABASE_URL": url}, "setup")
    assert ran.returncode == 1  # a server that answers is not unreachable
    assert 'database "no_such_database" does not exist: create it' in ran.stderr.splitlines()[-1]


def test_wrong_settings_are_exit_code_2_with_all_faults() -> None:
    wrong = {
        "DATABASE_URL": f"host=db password='{SECRET}",
        "KAFKA_BOOTSTRAP_SERVERS": "",
        "KAFKA_CONFIG_ACKS": SECRET,
        "LANES": SECRET,
    }
    refused = run_command(wrong, "setup")
    assert (refused.returncode, refused.stdout) == (2, "")
    first, *faults = refused.stderr.splitlines()
    assert first == "orchestrator: settings:"
    assert sorted(fault.split()[0] for fault in faults) == sorted(wrong)
    assert SECRET not in refused.stderr
