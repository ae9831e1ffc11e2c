"""Embedded servers keep data and addresses, never meet each other, and do not outlive their owner."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from psycopg.conninfo import make_conninfo

from orchestrator.embedded import (
    EmbeddedKafka,
    EmbeddedPostgres,
    Servers,
    ServerStartError,
    embedded_servers,
)
from orchestrator.embedded.server import HOST, EmbeddedServer
from testkit.containers import POSTGRES_SETTINGS, TEST_KAFKA_VERSION
from testkit.eventually import eventually
from testkit.servers import server_directory
from testkit.system import INHERITED

pytestmark = pytest.mark.xdist_group("own servers: embedded")


@pytest.fixture
def directory() -> Iterator[Path]:
    with server_directory() as directory:
        yield directory


@pytest.fixture
def postgres(directory: Path) -> Iterator[EmbeddedPostgres]:
    postgres = EmbeddedPostgres(directory / "postgres", settings=POSTGRES_SETTINGS)
    yield postgres
    postgres.stop()


@pytest.fixture
def kafka(directory: Path) -> Iterator[EmbeddedKafka]:
    kafka = EmbeddedKafka(directory / "kafka", version=TEST_KAFKA_VERSION)
    yield kafka
    kafka.stop()


def test_data_and_addresses_survive_a_restart(directory: Path) -> None:
    with embedded_servers(directory, TEST_KAFKA_VERSION, POSTGRES_SETTINGS) as first:
        make_table_and_topic(first)
    assert not processes_in(directory)
    with embedded_servers(directory, TEST_KAFKA_VERSION, POSTGRES_SETTINGS) as second:
        assert second == first
        assert has_table(second)
        assert has_topic(second)


def test_other_users_of_the_machine_get_in_nowhere(directory: Path) -> None:
    with embedded_servers(directory, TEST_KAFKA_VERSION, POSTGRES_SETTINGS) as servers:
        make_table_and_topic(servers)
        for password in ("", "postgres", "a guess"):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(make_conninfo(servers.database_url, password=password))
        for login in ({}, {**servers.kafka_login, "sasl.password": "a guess"}):
            stranger = AdminClient({"bootstrap.servers": servers.bootstrap_servers, **login})
            with pytest.raises(KafkaException):
                stranger.list_topics(timeout=2)
        assert seen_by_others(directory) == []


def seen_by_others(directory: Path) -> list[str]:
    """Return what another user can read or list below the directory, also by names that it guesses."""
    if os.geteuid() != 0:
        return [str(one) for one in directory.iterdir() if one.stat().st_mode & 0o077]
    paths = [str(path) for path in directory.rglob("*")]
    script = 'for path; do test -r "$path" && echo "$path"; done; true'
    command = ["sh", "-c", script, "sh", *paths]
    done = subprocess.run(
        command, user="nobody", extra_groups=[], capture_output=True, text=True, check=True
    )
    assert len(paths) > 100
    return done.stdout.splitlines()


def test_run_prints_no_password_and_keeps_them_for_this_user(directory: Path) -> None:
    python, log = [sys.executable, "-m", "orchestrator"], directory / "log"

    def command(*shell: str) -> str:
        done = subprocess.run(
            shell, cwd=directory, env=INHERITED, capture_output=True, text=True, check=False
        )
        assert done.stdout, done.stderr
        return done.stdout

    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*python, "run", "--embedded"],
            cwd=directory,
            env={**INHERITED, "METRICS_PORT": "0"},
            stdout=output,
            stderr=output,
        ) as main,
    ):
        try:
            submit = [*python, "submit", "rtsp://user:pw@camera/1", "--count", "3"]
            eventually(lambda: len(command(*submit).split()) == 3, 60)
            audit = f". .data/addresses; exec {shlex.join([*python, 'audit', '--json'])}"
            eventually(lambda: json.loads(command("sh", "-c", audit))["deployed"] == 3, 30)
            assert seen_by_others(directory / ".data") == []
        finally:
            main.terminate()
    passwords = [file.read_text() for file in (directory / ".data").glob("*/**/password")]
    assert len(passwords) == 2
    assert not any(password in log.read_text() for password in passwords)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("part", [".", "kafka", "postgres"])
def test_a_directory_of_another_user_is_refused(directory: Path, part: str) -> None:
    (directory / part).mkdir(exist_ok=True)
    shutil.chown(directory / part, "nobody")
    with (
        pytest.raises(ServerStartError, match=r"belongs to the user \d+; delete it"),
        embedded_servers(directory, TEST_KAFKA_VERSION, POSTGRES_SETTINGS),
    ):
        pass
    assert not processes_in(directory)


def test_data_of_a_server_without_a_password_are_refused(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    postgres.stop()
    (postgres.data / "password").unlink()
    with pytest.raises(ServerStartError, match=r"asked for no password.*Delete it"):
        postgres.start()


@pytest.mark.slow
def test_killed_servers_restart_with_their_data(
    postgres: EmbeddedPostgres, kafka: EmbeddedKafka
) -> None:
    postgres.start()
    kafka.start()
    make_table_and_topic(servers := Servers(postgres.url, kafka.bootstrap_servers))
    postgres.kill()
    kafka.kill()
    postgres.start()
    kafka.start()
    assert has_table(servers)
    assert has_topic(servers)


@pytest.mark.slow
def test_another_port_is_chosen_if_another_program_has_it(
    postgres: EmbeddedPostgres, kafka: EmbeddedKafka
) -> None:
    for server in (postgres, kafka):
        server.start()
        before = server.port
        server.stop()
        with socket.create_server((HOST, before)):
            server.start()
            assert server.port != before


def test_a_port_that_was_asked_for_is_never_exchanged(directory: Path) -> None:
    with socket.create_server((HOST, 0)) as stranger:
        postgres = EmbeddedPostgres(directory / "postgres", port=stranger.getsockname()[1])
        with pytest.raises(ServerStartError, match="is taken"):
            postgres.start()


def test_a_directory_has_one_owner(directory: Path, postgres: EmbeddedPostgres) -> None:
    postgres.start()
    with pytest.raises(ServerStartError, match="in use"):
        EmbeddedPostgres(directory / "postgres").start()
    psycopg.connect(postgres.url).close()  # the first is served on


def test_a_server_that_does_not_start_is_an_error_with_its_log(directory: Path) -> None:
    postgres = EmbeddedPostgres(directory / "postgres", settings={"wal_level": "none"})
    with pytest.raises(ServerStartError, match='invalid value for parameter "wal_level"'):
        postgres.start()
    assert not processes_in(directory)


def test_control_c_in_the_terminal_does_not_reach_the_servers(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    assert os.getsid(postgres.pid) == postgres.pid != os.getsid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent-death signal of Linux")
def test_servers_end_when_their_owner_is_killed(directory: Path) -> None:
    start_and_kill_owner(directory)
    eventually(lambda: not processes_in(directory))


@pytest.mark.slow
def test_servers_left_over_by_a_killed_owner_are_replaced(
    directory: Path, postgres: EmbeddedPostgres, kafka: EmbeddedKafka
) -> None:
    left = start_and_kill_owner(directory, "--outlived")
    assert {process.pid for process in left} <= {p.pid for p in processes_in(directory)}
    servers: tuple[EmbeddedServer, ...] = (postgres, kafka)
    for server, before in zip(servers, left, strict=True):
        server.start()
        assert server.pid != before.pid
        assert not before.is_running() or before.status() == psutil.STATUS_ZOMBIE


# An owner that tells the pids of its servers and waits for its end.
OWNER = """
import signal, sys
from pathlib import Path
from orchestrator.embedded import EmbeddedKafka, EmbeddedPostgres
directory, version, *options = sys.argv[1:]
if "--outlived" in options:
    EmbeddedPostgres.death_signal = EmbeddedKafka.death_signal = 0
servers = [
    EmbeddedPostgres(Path(directory, "postgres")),
    EmbeddedKafka(Path(directory, "kafka"), version=version),
]
for server in servers:
    server.start()
print(*(server.pid for server in servers), flush=True)
signal.pause()
"""


def start_and_kill_owner(directory: Path, *options: str) -> list[psutil.Process]:
    """Return Postgres and Kafka of an owner that was killed when both were up."""
    command = [sys.executable, "-c", OWNER, str(directory), TEST_KAFKA_VERSION, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:
        assert owner.stdout
        servers = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()]
        owner.kill()
    assert len(servers) == 2
    return servers


def processes_in(directory: Path) -> list[psutil.Process]:
    """Return the processes that work below `directory`, each server's children among them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(directory.resolve()):
                found.append(process)
    return found


def make_table_and_topic(servers: Servers) -> None:
    with psycopg.connect(servers.database_url) as conn:
        conn.execute("CREATE TABLE kept ()")
    kafka = admin_of(servers)
    kafka.create_topics([NewTopic("kept", 1)])["kept"].result()


def has_table(servers: Servers) -> bool:
    with psycopg.connect(servers.database_url) as conn:
        return conn.execute("SELECT to_regclass('kept')").fetchone() != (None,)


def has_topic(servers: Servers) -> bool:
    return "kept" in admin_of(servers).list_topics(timeout=10).topics


def admin_of(servers: Servers) -> AdminClient:
    return AdminClient({"bootstrap.servers": servers.bootstrap_servers, **servers.kafka_login})
