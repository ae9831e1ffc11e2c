"""PostgreSQL and Kafka in containers, with testcontainers, and containers of the project's image."""

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import docker  # type: ignore[import-untyped]
import psycopg
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from docker.errors import DockerException, ImageNotFound  # type: ignore[import-untyped]
from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from orchestrator.embedded import KAFKA_VERSION, Servers
from orchestrator.embedded.kafka import KAFKA_PROPERTIES
from orchestrator.embedded.server import free_port
from testkit.eventually import eventually

TEST_KAFKA_VERSION = os.environ.get("TEST_KAFKA_VERSION", KAFKA_VERSION)
TEST_POSTGRES_VERSION = os.environ.get("TEST_POSTGRES_VERSION", "18")
KAFKA_IMAGE = f"apache/kafka:{TEST_KAFKA_VERSION}"
POSTGRES_IMAGE = f"postgres:{TEST_POSTGRES_VERSION}"

# Tests kill servers, not machines: data that a process has written survives it without fsync.
POSTGRES_SETTINGS = {"fsync": "off", "max_connections": "200", "max_prepared_transactions": "10"}
PASSWORD = "planted-in-tests"

DOCKER_TIMEOUT_S = 10  # for an answer of the daemon, which may query a registry
CONTAINER_TIMEOUT_S = 60  # from the start of a container until its server answers


def docker_fault(*images: str) -> str | None:
    """Return why Docker cannot run these images, or None if it can."""
    with warnings.catch_warnings():
        # docker leaves its socket open without an answer; pytest would report that in the first test.
        warnings.simplefilter("ignore", ResourceWarning)
        fault = ask_docker(images)
        gc.collect()
    return fault


def ask_docker(images: tuple[str, ...]) -> str | None:
    """Check the daemon and the images; return the first fault."""
    try:
        with closing(docker.from_env(timeout=DOCKER_TIMEOUT_S)) as client:
            client.ping()
            for image in images:
                if not is_available(client, image):
                    return f"Docker has no {image} and cannot pull it"
    except (DockerException, OSError):
        return "Docker does not answer"
    return None


def is_available(client: docker.DockerClient, image: str) -> bool:
    """Return whether the image is here, or can be pulled."""
    try:
        client.images.get(image)
    except ImageNotFound:
        try:
            client.images.get_registry_data(image)
        except (DockerException, OSError):
            return False
    return True


@dataclass(frozen=True)
class ServerContainers:
    """Both servers, on a network of their own."""

    network: Network
    postgres: PostgresContainer
    kafka: "KafkaContainer"

    @property
    def servers(self) -> Servers:
        """The addresses for this process."""
        return Servers(self.postgres.get_connection_url(), self.kafka.bootstrap_servers)

    @property
    def inside(self) -> Servers:
        """The addresses for containers on their network."""
        url = f"postgresql://postgres:{PASSWORD}@postgres/postgres"
        return Servers(url, KafkaContainer.INSIDE)

    def postgres_answers(self) -> bool:
        """Return whether the server answers a client."""
        try:
            psycopg.connect(self.servers.database_url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def server_containers() -> Iterator[ServerContainers]:
    """Run both servers in containers, which testcontainers removes even after a crash."""
    with closing(docker.from_env(timeout=DOCKER_TIMEOUT_S)) as client:
        # Ryuk is the container that does so; everything else works without its image.
        if not is_available(client, testcontainers_config.ryuk_image):
            testcontainers_config.ryuk_disabled = True
    settings = [f"--{name}={value}" for name, value in POSTGRES_SETTINGS.items()]
    postgres = PostgresContainer(
        POSTGRES_IMAGE, username="postgres", password=PASSWORD, dbname="postgres", driver=None
    ).with_command(["postgres", *settings])
    postgres.with_bind_ports(5432, free_port())  # a port that Docker chooses changes at a restart
    with (
        Network() as network,
        postgres.with_network(network).with_network_aliases("postgres"),
        KafkaContainer(KAFKA_IMAGE, postgres.get_container_host_ip()).with_network(network) as kafka,
    ):
        eventually(kafka.answers, CONTAINER_TIMEOUT_S)
        yield ServerContainers(network, postgres, kafka)


class KafkaContainer(DockerContainer):
    """apache/kafka as one node, with the properties of the embedded one.

    Clients are sent on to the address that a listener advertises: those on this machine to a port of
    `host`, which is chosen beforehand; containers of its network, and the broker itself, to INSIDE.
    """

    INSIDE = "kafka:9093"

    def __init__(self, image: str, host: str) -> None:
        super().__init__(image)
        port = free_port()
        self.bootstrap_servers = f"{host}:{port}"
        self.with_bind_ports(9092, port)
        self.with_network_aliases("kafka")
        properties = KAFKA_PROPERTIES | {
            "controller.quorum.voters": "1@localhost:9094",
            "listeners": "PLAINTEXT://:9092,INSIDE://:9093,CONTROLLER://:9094",
            "advertised.listeners": f"PLAINTEXT://{host}:{port},INSIDE://{self.INSIDE}",
            "inter.broker.listener.name": "INSIDE",
            "listener.security.protocol.map": ",".join(
                f"{listener}:PLAINTEXT" for listener in ("PLAINTEXT", "INSIDE", "CONTROLLER")
            ),
        }
        for name, value in properties.items():
            self.with_env(f"KAFKA_{name.replace('.', '_').upper()}", value)

    def answers(self) -> bool:
        """Return whether the server answers a client. Raises RuntimeError if the broker has ended."""
        self.reload()
        if self.status == "exited":
            output = b"".join(self.get_logs()).decode().splitlines()
            raise RuntimeError(f"{self.image} ended: {' '.join(output[-2:])}")
        client = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        try:
            return bool(client.list_topics(timeout=2).brokers)
        except KafkaException:
            return False
