"""The PostgreSQL and the Kafka that the tests run against: always real servers.

| when                                                     | servers                                  |
|----------------------------------------------------------|------------------------------------------|
| TEST_DATABASE_URL and TEST_KAFKA_BOOTSTRAP_SERVERS       | the given ones                           |
| Docker answers, and has the images or can pull them      | containers                               |
| otherwise                                                | embedded ones, see orchestrator.embedded |
TEST_BACKEND=docker|embedded forces one of the latter two, TEST_KAFKA_VERSION another Kafka,
TEST_POSTGRES_VERSION another PostgreSQL in containers.
"""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from docker.errors import DockerException  # type: ignore[import-untyped]

from orchestrator.embedded import Servers, ServerStartError, embedded_servers
from testkit import summary as report
from testkit.containers import (
    KAFKA_IMAGE,
    POSTGRES_IMAGE,
    POSTGRES_SETTINGS,
    TEST_KAFKA_VERSION,
    docker_fault,
    server_containers,
)

# Errors of starting servers that are reported in one line, without a stack trace.
START_ERRORS = (ServerStartError, DockerException, OSError, RuntimeError, AssertionError)


@dataclass(frozen=True)
class Backend:
    """The source of the servers, and the reason for it."""

    name: str
    why: str
    run: Callable[[], AbstractContextManager[Servers]]


def choose_backend() -> Backend:
    """Choose by the module's table. Raises pytest.UsageError for invalid settings."""
    given = [name for name in GIVEN if os.environ.get(name)]
    if len(given) == 1:
        raise pytest.UsageError(f"{' and '.join(GIVEN)} go together, only {given[0]} is set")
    if given:
        return Backend("given", " and ".join(GIVEN), given_servers)
    if forced := os.environ.get("TEST_BACKEND"):
        if forced not in BACKENDS:
            raise pytest.UsageError(f"TEST_BACKEND is one of {', '.join(BACKENDS)}, not {forced!r}")
        if forced == "docker" and (fault := docker_fault(POSTGRES_IMAGE, KAFKA_IMAGE)):
            raise pytest.UsageError(f"TEST_BACKEND=docker: {fault}")
        return Backend(forced, "TEST_BACKEND", BACKENDS[forced])
    if fault := docker_fault(POSTGRES_IMAGE, KAFKA_IMAGE):
        return Backend("embedded", fault, BACKENDS["embedded"])
    return Backend("docker", "Docker answers", containers_or_embedded)


GIVEN = ("TEST_DATABASE_URL", "TEST_KAFKA_BOOTSTRAP_SERVERS")


@contextmanager
def given_servers() -> Iterator[Servers]:
    """Use the servers of the environment, which are neither started nor stopped here."""
    database_url, bootstrap_servers = (os.environ[name] for name in GIVEN)
    yield Servers(database_url, bootstrap_servers)


@contextmanager
def embedded() -> Iterator[Servers]:
    """Run embedded servers with data that is deleted afterwards.

    Kafka without a login: the clients of tests know its address alone. All secrets in it are planted.
    """
    with (
        server_directory() as directory,
        embedded_servers(
            directory, TEST_KAFKA_VERSION, POSTGRES_SETTINGS, kafka_login=False
        ) as servers,
    ):
        yield servers


@contextmanager
def server_directory() -> Iterator[Path]:
    """Create a directory for servers, deleted after the block.

    Not pytest's tmp_path: that is closed to others, and Postgres runs as another user when the tests
    run as root.
    """
    with tempfile.TemporaryDirectory(prefix="servers-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        yield Path(name)


@contextmanager
def containers() -> Iterator[Servers]:
    """Run both servers in containers."""
    with server_containers() as running:
        yield running.servers


@contextmanager
def containers_or_embedded() -> Iterator[Servers]:
    """Run containers, or embedded servers if they do not start, and report that."""
    with ExitStack() as running:
        try:
            servers = running.enter_context(containers())
        except START_ERRORS as error:
            report.lines.append(f"servers: embedded, since the containers did not start: {error}")
            servers = running.enter_context(embedded())
        yield servers


BACKENDS = {"docker": containers, "embedded": embedded}

if __name__ == "__main__":
    with suppress(KeyboardInterrupt), embedded() as kept:
        addresses = (kept.database_url, kept.bootstrap_servers)
        for setting, address in zip(GIVEN, addresses, strict=True):
            print(f"export {setting}={address}", flush=True)  # noqa: T201  # they are kept for this
        signal.pause()
