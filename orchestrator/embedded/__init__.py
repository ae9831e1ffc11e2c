"""Real PostgreSQL and Apache Kafka as child processes, from wheels and Maven jars.

For trials and tests, on Linux and macOS. They need no Docker and no system Java.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.config.kafka import variable_of

try:
    from orchestrator.embedded.kafka import KAFKA_VERSION, EmbeddedKafka
    from orchestrator.embedded.postgres import EmbeddedPostgres
    from orchestrator.embedded.server import close_directory
    from orchestrator.errors import ServerStartError
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"{missing}; embedded servers need, in a checkout:"
        " pip install --require-hashes -r requirements-embedded.txt"
    ) from missing

__all__ = [
    "KAFKA_VERSION",
    "EmbeddedKafka",
    "EmbeddedPostgres",
    "ServerStartError",
    "Servers",
    "embedded_servers",
]


@dataclass(frozen=True)
class Servers:
    """The addresses of the two servers. kafka_login: further properties of a client of Kafka."""

    database_url: str
    bootstrap_servers: str
    kafka_login: Mapping[str, str] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        """The settings that lead a process to them."""
        login = {variable_of(name): text for name, text in self.kafka_login.items()}
        addresses = {
            "DATABASE_URL": self.database_url,
            "KAFKA_BOOTSTRAP_SERVERS": self.bootstrap_servers,
        }
        return addresses | login


@contextmanager
def embedded_servers(
    directory: Path,
    kafka_version: str = KAFKA_VERSION,
    postgres_settings: Mapping[str, str] = {},
    *,
    kafka_login: bool = True,
) -> Iterator[Servers]:
    """Run both servers below `directory` while the block runs; their data stays for the next run.

    Other users of the machine cannot read the data, nor connect, unless `kafka_login` is False.
    Raises ServerStartError. Servers that were started are always stopped.
    """
    # Under root PostgreSQL runs as another user, who must be able to enter.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    close_directory(directory, os.geteuid(), os.getegid(), mode)
    kafka = EmbeddedKafka(directory / "kafka", version=kafka_version, with_login=kafka_login)
    postgres = EmbeddedPostgres(directory / "postgres", settings=postgres_settings)
    with ExitStack() as running:
        for server in (kafka, postgres):  # Kafka first, because it takes longer
            running.callback(server.stop)
            server.launch()
        for server in (kafka, postgres):
            server.wait_until_ready()
        yield Servers(postgres.url, kafka.bootstrap_servers, kafka.login)
