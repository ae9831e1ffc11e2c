"""Real PostgreSQL and Apache Kafka as child processes, from wheels and Maven jars.

For trials and tests, on Linux and macOS. They need no Docker and no system Java.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

try:
    from orchestrator.embedded.kafka import KAFKA_VERSION, EmbeddedKafka
    from orchestrator.embedded.postgres import EmbeddedPostgres
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
    """The addresses of the two servers."""

    database_url: str
    bootstrap_servers: str


@contextmanager
def embedded_servers(
    directory: Path,
    kafka_version: str = KAFKA_VERSION,
    postgres_settings: Mapping[str, str] = {},
) -> Iterator[Servers]:
    """Run both servers below `directory` while the block runs; their data stays for the next run.

    Raises ServerStartError. Servers that were started are always stopped.
    """
    kafka = EmbeddedKafka(directory / "kafka", version=kafka_version)
    postgres = EmbeddedPostgres(directory / "postgres", settings=postgres_settings)
    with ExitStack() as running:
        for server in (kafka, postgres):  # Kafka first, because it takes longer
            running.callback(server.stop)
            server.launch()
        for server in (kafka, postgres):
            server.wait_until_ready()
        yield Servers(postgres.url, kafka.bootstrap_servers)
