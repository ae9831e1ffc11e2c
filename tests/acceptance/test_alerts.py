"""A real Prometheus scrapes the real processes: alerts fire when they should, and clear afterwards.

The rules are those of deploy/prometheus with shorter times: a minute lasts MINUTE_S, or the tests
would take an hour. tests/unit/test_monitoring.py tests the rules with invented series.
"""

import json
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen
from uuid import uuid4

import psycopg
import pytest
import yaml
from confluent_kafka import Producer

from orchestrator.embedded.server import HOST, EmbeddedServer, free_port
from testkit.disagreement import repair, set_marker
from testkit.eventually import eventually
from testkit.servers import server_directory
from testkit.system import Running, System, recreate_input
from tests.unit.test_monitoring import ALERTS, QUERIES, RULES

pytestmark = pytest.mark.xdist_group("measures: Prometheus in a hurry")

MINUTE_S = 3  # scrapes come every second, and a busy machine may be late with two of them
# The longest wait: 5 s of the gauges, a window and `for`; 10 s until a refused partition is checked.
FIRES_S = 60
CLEARS_S = 60  # the longest window, ten minutes; a repaired lane's back-off


def shortened(text: str) -> str:
    """Return an expression or a time of the rules with every minute MINUTE_S long."""
    seconds = {"m": MINUTE_S, "h": 60 * MINUTE_S, "d": 24 * 60 * MINUTE_S}
    text = re.sub(r"\b(\d+)([mhd])\b", lambda it: f"{int(it[1]) * seconds[it[2]]}s", text)
    return re.sub(r"> (60|300)\b", lambda it: f"> {int(it[1]) // 60 * MINUTE_S}", text)


class Prometheus(EmbeddedServer):
    """Debian's Prometheus with shortened rules. ports: where it scrapes which process."""

    name = "Prometheus"
    death_signal = signal.SIGKILL

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, None)
        self.ports = {"consumer": free_port(), "relay": free_port()}

    def _program(self) -> Path:
        return Path(shutil.which("prometheus") or "prometheus")

    def _working_directory(self) -> Path:
        return self.directory

    def _prepare(self) -> None:
        rules = yaml.safe_load(RULES.read_text())
        for rule in (rule for group in rules["groups"] for rule in group["rules"]):
            rule["expr"], rule["for"] = shortened(rule["expr"]), shortened(rule["for"])
        settings = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [RULES.name],
            "scrape_configs": [
                {"job_name": name, "static_configs": [{"targets": [f"{HOST}:{port}"]}]}
                for name, port in self.ports.items()
            ],
        }
        for name, content in (("prometheus.yml", settings), (RULES.name, rules)):
            (self.directory / name).write_text(yaml.safe_dump(content))

    def _command(self) -> list[str]:
        address = f"--web.listen-address={HOST}:{self.port}"
        return [
            str(self._program()),
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            address,
        ]

    def _answers(self) -> bool:
        try:
            with urlopen(f"http://{HOST}:{self.port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        """Return what its API answers."""
        url = f"http://{HOST}:{self.port}/api/v1/{path}?{urlencode(parameters)}"
        with urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an expression, as they are now."""
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found

    def firing(self) -> list[dict[str, str]]:
        """Return the labels of the alerts that fire."""
        alerts = self.ask("alerts")["alerts"]
        return [alert["labels"] for alert in alerts if alert["state"] == "firing"]

    def fires(self, name: str) -> bool:
        """Say whether an alert fires."""
        return name in {labels["alertname"] for labels in self.firing()}

    def wait_firing(self, *names: str) -> None:
        """Wait until all of them have fired."""
        for name in names:
            eventually(partial(self.fires, name), FIRES_S)

    def wait_silent(self) -> None:
        """Wait until no alert fires."""

        def silent() -> bool:
            assert not (firing := self.firing()), firing
            return True

        eventually(silent, CLEARS_S)


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed (apt install prometheus)")
    with server_directory() as directory:
        running = Prometheus(directory / "prometheus")
        try:
            running.start()
            yield running
        finally:
            running.kill()


def start(system: System, prometheus: Prometheus, role: str) -> Running:
    """Start a process where it is scraped."""
    return system.start(role, METRICS_PORT=str(prometheus.ports[role]))


@pytest.fixture
def watched(system: System, prometheus: Prometheus) -> tuple[Running, Running]:
    """A consumer and a relay that work, seen by Prometheus, and no alert."""
    consumer, relay = (start(system, prometheus, role) for role in ("consumer", "relay"))
    system.submit(100)
    system.check_exactly_once(100)
    eventually(lambda: len(prometheus.query("up == 1")) == 2)
    prometheus.wait_silent()
    return consumer, relay


@contextmanager
def locked(system: System, rows: str) -> Iterator[None]:
    """Lock rows in another session, for longer than a session of the processes may."""
    with psycopg.connect(system.settings.database_url) as conn:
        conn.execute(f"SELECT FROM {rows} FOR UPDATE".encode())
        yield


@contextmanager
def transaction(system: System, partition: int) -> Iterator[None]:
    """Keep a producer's transaction open in a partition of the input: later records wait."""
    name = {"transactional.id": f"api-{uuid4()}", "transaction.timeout.ms": 300_000}
    producer = Producer({**system.settings.kafka, **name})
    producer.init_transactions(10)
    producer.begin_transaction()
    producer.produce(system.settings.input_topic, b"undecided", partition=partition)
    assert producer.flush(10) == 0
    yield
    producer.abort_transaction(10)


@pytest.mark.usefixtures("watched")
def test_nothing_fires_while_all_works(prometheus: Prometheus) -> None:
    for_long = f"[{5 * MINUTE_S}s]"  # ConsumerStalled takes that long, and most others less
    scraped = f"min(count_over_time(outbox_lanes_owned{for_long})) >= {4 * MINUTE_S}"
    eventually(lambda: prometheus.query(scraped), 60)
    fired = f'count_over_time(ALERTS{{alertstate="firing"}}{for_long})'
    eventually(lambda: not prometheus.query(fired), 60)
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in rules] == [alert["alert"] for alert in ALERTS]
    assert {rule["health"] for rule in rules} == {"ok"}, rules


@pytest.mark.usefixtures("watched")
def test_invalid_commands_fire_an_alert_and_no_panel_is_empty(
    system: System, prometheus: Prometheus
) -> None:
    system.produce(b"not JSON", b"{}")
    prometheus.wait_firing("DeadLetters")
    assert [labels["alertname"] for labels in prometheus.firing()] == ["DeadLetters"]
    for query in QUERIES.values():  # of the dashboard: every series has samples now
        asked = query.replace("$namespace", ".*").replace("$__rate_interval", "15s")
        eventually(partial(prometheus.query, asked))
    prometheus.wait_silent()


@pytest.mark.slow
@pytest.mark.usefixtures("watched")
def test_a_stalled_outbox_fires_until_its_rows_are_published(
    system: System, prometheus: Prometheus
) -> None:
    with locked(system, "outbox_lane WHERE lane = 2"):
        system.submit(100)
        prometheus.wait_firing("OutboxStalled")
        (alert,) = prometheus.firing()
        assert (alert["lane"], alert["severity"]) == ("2", "critical")
    prometheus.wait_silent()
    system.check_exactly_once(200)


@pytest.mark.slow
def test_frozen_and_killed_processes_fire_until_they_are_back(
    system: System, prometheus: Prometheus, watched: tuple[Running, Running]
) -> None:
    consumer, relay = watched
    relay.process.send_signal(signal.SIGSTOP)
    prometheus.wait_firing("RelayAbsent")
    assert not prometheus.fires("ConsumerAbsent")
    consumer.kill()
    prometheus.wait_firing("ConsumerAbsent")
    relay.thaw()
    start(system, prometheus, "consumer")
    prometheus.wait_silent()
    system.submit(100)
    system.check_exactly_once(200)


def command() -> bytes:
    return json.dumps({"scenario_uuid": str(uuid4()), "camera_url": "rtsp://camera/1"}).encode()


@pytest.mark.slow
@pytest.mark.usefixtures("watched")
def test_a_stuck_partition_and_a_stalled_consumer_fire_until_they_continue(
    system: System, prometheus: Prometheus
) -> None:
    api, sent = Producer({**system.settings.kafka, "linger.ms": 1}), 0

    def fires_while_the_other_partition_continues() -> bool:
        nonlocal sent
        api.produce(system.settings.input_topic, command(), partition=1)
        sent += 1
        return prometheus.fires("PartitionStuck")

    with transaction(system, partition=0):
        system.produce(command(), command(), partition=0)
        eventually(fires_while_the_other_partition_continues, FIRES_S)
        assert api.flush(10) == 0
        (alert,) = prometheus.firing()
        assert (alert["partition"], alert["severity"]) == ("0", "critical")
        with locked(system, "consumed_offsets"):
            system.submit(100)
            prometheus.wait_firing("ConsumerStalled")
            names = {labels["alertname"] for labels in prometheus.firing()}
            assert names == {"ConsumerStalled", "PartitionStuck"}
    prometheus.wait_silent()
    system.check_exactly_once(100 + 2 + sent + 100)


def test_refused_lanes_and_partitions_fire_until_they_are_repaired(
    system: System, prometheus: Prometheus, watched: tuple[Running, Running]
) -> None:
    _, relay = watched
    relay.stop()
    set_marker(system, 1000, lane=2)
    start(system, prometheus, "relay")
    recreate_input(system)
    prometheus.wait_firing("LaneRefused", "PartitionRefused")
    for target in ("partition", "lane"):
        code, said = repair(system, target, "all", "--yes")
        assert code == 0, said
    prometheus.wait_silent()
    system.submit(100)
    system.check_exactly_once(200)
