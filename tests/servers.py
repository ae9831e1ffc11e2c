"""The PostgreSQL and the Kafka that the tests run against: real ones, always.

| when                                                     | servers                                  |
|----------------------------------------------------------|------------------------------------------|
| TEST_DATABASE_URL and TEST_KAFKA_BOOTSTRAP_SERVERS       | the ones named                           |
| Docker answers, and has the images or can pull them      | containers                               |
| otherwise                                                | embedded ones, see orchestrator.embedded |
TEST_BACKEND=docker|embedded forces one of the latter two, TEST_KAFKA_VERSION another Kafka.
"""

import gc
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker  # type: ignore[import-untyped]
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from docker.errors import DockerException, ImageNotFound  # type: ignore[import-untyped]
from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from orchestrator.embedded import KAFKA_VERSION, Servers, ServerStartError, embedded_servers
from orchestrator.embedded.kafka import KAFKA_PROPERTIES
from orchestrator.embedded.server import free_port
from tests.eventually import eventually

TEST_KAFKA_VERSION = os.environ.get("TEST_KAFKA_VERSION", KAFKA_VERSION)
POSTGRES_IMAGE = "postgres:18"
KAFKA_IMAGE = f"apache/kafka:{TEST_KAFKA_VERSION}"

# Tests kill servers, not machines: what a process has written outlives it without fsync.
POSTGRES_SETTINGS = {"fsync": "off", "max_connections": "200"}

DOCKER_TIMEOUT_S = 10  # for an answer of the daemon, which may have to ask a registry
CONTAINER_TIMEOUT_S = 60  # from the start of a container until its server answers

# What goes wrong when servers start and is told in a line, not in a stack trace.
START_ERRORS = (ServerStartError, DockerException, OSError, RuntimeError, AssertionError)


@dataclass(frozen=True)
class Backend:
    """Where the servers come from, and why from there."""

    name: str
    why: str
    run: Callable[[], AbstractContextManager[Servers]]


def choose_backend() -> Backend:
    """Choose as the module says. Raises pytest.UsageError for settings that make no sense."""
    given = [name for name in GIVEN if os.environ.get(name)]
    if len(given) == 1:
        raise pytest.UsageError(f"{' and '.join(GIVEN)} go together, only {given[0]} is set")
    if given:
        return Backend("given", " and ".join(GIVEN), given_servers)
    if forced := os.environ.get("TEST_BACKEND"):
        if forced not in BACKENDS:
            raise pytest.UsageError(f"TEST_BACKEND is one of {', '.join(BACKENDS)}, not {forced!r}")
        return Backend(forced, "TEST_BACKEND", BACKENDS[forced])
    if fault := docker_fault():
        return Backend("embedded", fault, BACKENDS["embedded"])
    return Backend("docker", "Docker answers", containers_or_embedded)


def docker_fault() -> str | None:
    """Say why Docker cannot run the servers, or None if it can."""
    with warnings.catch_warnings():
        # docker leaves its socket open when nobody answers; pytest would blame the first test.
        warnings.simplefilter("ignore", ResourceWarning)
        fault = ask_docker()
        gc.collect()
    return fault


def ask_docker() -> str | None:
    """Look for the daemon and for both images; return the first fault."""
    try:
        with closing(docker.from_env(timeout=DOCKER_TIMEOUT_S)) as client:
            client.ping()
            for image in (POSTGRES_IMAGE, KAFKA_IMAGE):
                if not is_available(client, image):
                    return f"Docker has no {image} and cannot pull it"
    except (DockerException, OSError):
        return "Docker does not answer"
    return None


def is_available(client: docker.DockerClient, image: str) -> bool:
    """Tell whether the image is here, or else whether its registry would give it."""
    try:
        client.images.get(image)
    except ImageNotFound:
        try:
            client.images.get_registry_data(image)
        except (DockerException, OSError):
            return False
    return True


GIVEN = ("TEST_DATABASE_URL", "TEST_KAFKA_BOOTSTRAP_SERVERS")


@contextmanager
def given_servers() -> Iterator[Servers]:
    """Use the servers that the environment names; neither started nor stopped here."""
    yield Servers(*(os.environ[name] for name in GIVEN))


@contextmanager
def embedded() -> Iterator[Servers]:
    """Run embedded servers on data that ends with them."""
    with (
        server_directory() as directory,
        embedded_servers(directory, TEST_KAFKA_VERSION, POSTGRES_SETTINGS) as servers,
    ):
        yield servers


@contextmanager
def server_directory() -> Iterator[Path]:
    """Make a directory for servers that ends with the block.

    Not pytest's tmp_path: that is closed to others, and Postgres runs as another user when the tests
    run as root.
    """
    with tempfile.TemporaryDirectory(prefix="servers-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        yield Path(name)


@contextmanager
def containers() -> Iterator[Servers]:
    """Run both servers in containers, which testcontainers removes even after a crash of ours."""
    with closing(docker.from_env(timeout=DOCKER_TIMEOUT_S)) as client:
        # Ryuk is the container that does so; without its image all the rest works.
        if not is_available(client, testcontainers_config.ryuk_image):
            testcontainers_config.ryuk_disabled = True
    settings = [f"--{name}={value}" for name, value in POSTGRES_SETTINGS.items()]
    postgres = PostgresContainer(POSTGRES_IMAGE, username="postgres", dbname="postgres", driver=None)
    with postgres.with_command(["postgres", *settings]):
        host = postgres.get_container_host_ip()
        with KafkaContainer(KAFKA_IMAGE, host) as kafka:
            eventually(kafka.answers, CONTAINER_TIMEOUT_S)
            yield Servers(postgres.get_connection_url(), kafka.bootstrap_servers)


class KafkaContainer(DockerContainer):
    """apache/kafka as one node, with the properties of the embedded one.

    Clients are sent on to the advertised address, so the port on `host`, where containers publish
    theirs, is chosen beforehand. That address may lead nowhere inside the container: the broker
    talks to itself on a listener of its own.
    """

    def __init__(self, image: str, host: str) -> None:
        super().__init__(image)
        port = free_port()
        self.bootstrap_servers = f"{host}:{port}"
        self.with_bind_ports(9092, port)
        properties = KAFKA_PROPERTIES | {
            "controller.quorum.voters": "1@localhost:9094",
            "listeners": "PLAINTEXT://:9092,INTERNAL://:9093,CONTROLLER://:9094",
            "advertised.listeners": f"PLAINTEXT://{host}:{port},INTERNAL://localhost:9093",
            "inter.broker.listener.name": "INTERNAL",
            "listener.security.protocol.map": ",".join(
                f"{listener}:PLAINTEXT" for listener in ("PLAINTEXT", "INTERNAL", "CONTROLLER")
            ),
        }
        for name, value in properties.items():
            self.with_env(f"KAFKA_{name.replace('.', '_').upper()}", value)

    def answers(self) -> bool:
        """Tell whether a client is served. Raises RuntimeError if the broker has ended."""
        self.reload()
        if self.status == "exited":
            output = b"".join(self.get_logs()).decode().splitlines()
            raise RuntimeError(f"{self.image} ended: {' '.join(output[-2:])}")
        client = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        try:
            return bool(client.list_topics(timeout=2).brokers)
        except KafkaException:
            return False


fallen_back: list[str] = []  # told at the end of the run: what the header promised did not come true


@contextmanager
def containers_or_embedded() -> Iterator[Servers]:
    """Run containers; where they do not start, embedded servers, and say so."""
    with ExitStack() as running:
        try:
            servers = running.enter_context(containers())
        except START_ERRORS as error:
            fallen_back.append(f"servers: embedded, since the containers did not start: {error}")
            servers = running.enter_context(embedded())
        yield servers


BACKENDS = {"docker": containers, "embedded": embedded}
