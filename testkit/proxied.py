"""A system whose processes reach Postgres and Kafka through proxies."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from orchestrator.embedded import EmbeddedKafka
from orchestrator.embedded.kafka import KAFKA_PROPERTIES
from orchestrator.embedded.server import HOST, free_port
from testkit.containers import TEST_KAFKA_VERSION
from testkit.proxy import Address, Rule, proxy
from testkit.servers import server_directory
from testkit.system import System
from testkit.wire_protocol import Frame, KafkaConversation, PostgresConversation, producer_and_epoch


@dataclass(frozen=True)
class WiredKafka:
    """A broker with two listeners: a usual one, and one whose advertised address is a proxy."""

    bootstrap_servers: str
    behind_proxy: Address
    proxy_port: int

    @contextmanager
    def proxied(self, *rules: Rule) -> Iterator[str]:
        """Run the proxy; yield its address for clients."""
        with proxy(KafkaConversation, self.behind_proxy, rules, self.proxy_port) as port:
            yield f"{HOST}:{port}"


def wired_broker(
    directory: Path, changed: Mapping[str, str] = MappingProxyType({})
) -> tuple[EmbeddedKafka, WiredKafka]:
    """Return such a broker, not started; always an embedded one. changed: properties of it."""
    port, behind, front, controller = (free_port() for _ in range(4))
    listeners = {"PLAINTEXT": port, "BEHIND": behind, "CONTROLLER": controller}
    protocols = KAFKA_PROPERTIES["listener.security.protocol.map"]
    properties = {
        "listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in listeners.items()),
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port},BEHIND://{HOST}:{front}",
        "listener.security.protocol.map": f"{protocols},BEHIND:PLAINTEXT",
        "controller.quorum.voters": f"1@{HOST}:{controller}",
        **changed,
    }
    kafka = EmbeddedKafka(directory, port, TEST_KAFKA_VERSION, properties)
    return kafka, WiredKafka(f"{HOST}:{port}", (HOST, behind), front)


@contextmanager
def wired_kafka() -> Iterator[WiredKafka]:
    """Run such a broker."""
    with server_directory() as directory:
        kafka, wired = wired_broker(directory)
        kafka.start()
        try:
            yield wired
        finally:
            kafka.kill()  # faster than a shutdown; the data is not needed


@contextmanager
def postgres_proxied(system: System, rules: Sequence[Rule]) -> Iterator[str]:
    """Run a proxy in front of a system's database; yield the URL through it."""
    server = conninfo_to_dict(system.settings.database_url)
    address = (str(server["host"]), int(str(server["port"])))
    with proxy(PostgresConversation, address, rules) as port:
        yield make_conninfo(system.settings.database_url, host=HOST, port=port)


def led_through(system: System, kafka: str, **environ: str) -> System:
    """Return the same installation with another address of Kafka."""
    return System({**system.environ, "KAFKA_BOOTSTRAP_SERVERS": kafka, **environ}, system.directory)


@dataclass
class Epochs:
    """Checks that no transaction begins under a producer epoch whose EndTxn may still arrive."""

    reused: int = 0
    _doubted: set[tuple[int, int]] = field(default_factory=set)

    def doubt(self, end_txn: Frame) -> None:
        """Record that this request may arrive again."""
        self._doubted.add(producer_and_epoch(end_txn))

    def begin(self, add_partitions: Frame) -> None:
        """Check a request that begins a transaction."""
        self.reused += producer_and_epoch(add_partitions) in self._doubted
