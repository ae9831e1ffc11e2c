"""The testbed: real servers, an installation for each measurement, and its meters."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil  # type: ignore[import-untyped]
import psycopg

from orchestrator.embedded import EmbeddedKafka, EmbeddedPostgres, Servers
from testkit.installations import new_system, template_database
from testkit.system import System

# For the embedded PostgreSQL. wal_level: for Debezium; all measurements use the same one.
POSTGRES = {
    "max_connections": "200",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "wal_level": "logical",
}


@dataclass(frozen=True)
class Testbed:
    """The servers. pids: of the servers that run here, by name, to read their CPU time.

    series: the data of the plot, from the last round.
    """

    servers: Servers
    pids: Mapping[str, int]
    template: str
    directory: Path
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    @contextmanager
    def system(self, lanes: int = 4, **settings: str) -> Iterator[System]:
        """Create an installation, and delete it after the block."""
        with (
            TemporaryDirectory(dir=self.directory) as logs,
            new_system(self.servers, self.template, Path(logs), lanes) as system,
        ):
            if settings:
                system.environ |= settings
                system.__post_init__()
            yield system

    def query(self, sql: str) -> list[tuple[object, ...]]:
        """Run one statement as a superuser."""
        with psycopg.connect(self.servers.database_url, autocommit=True) as conn:
            cursor = conn.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []


@contextmanager
def open_testbed() -> Iterator[Testbed]:
    """Use the servers of DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS, or run embedded ones."""
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True))
        )
        directory.chmod(0o755)
        pids: dict[str, int] = {}
        if given := os.environ.get("DATABASE_URL"):
            servers = Servers(given, os.environ["KAFKA_BOOTSTRAP_SERVERS"])
        else:
            kafka = EmbeddedKafka(directory / "kafka")
            postgres = EmbeddedPostgres(directory / "postgres", settings=POSTGRES)
            for server in (kafka, postgres):
                stack.callback(server.stop)
                server.launch()
            for server in (kafka, postgres):
                server.wait_until_ready()
            servers = Servers(postgres.url, kafka.bootstrap_servers)
            pids = {"kafka": kafka.pid, "postgres": postgres.pid}
        template = stack.enter_context(template_database(servers))
        yield Testbed(servers, pids, template, directory)


class Meters:
    """CPU time, memory, WAL and commits between two moments.

    pids: processes by name; the children of a process are included.
    """

    def __init__(self, system: System, pids: Mapping[str, int]) -> None:
        self._system = system
        self._pids = dict(pids)
        self._began = time.perf_counter()
        self._cpu = {name: cpu_seconds(pid) for name, pid in self._pids.items()}
        self._wal = self._read_wal()

    def per_message(self, messages: int) -> dict[str, float]:
        """Return microseconds of CPU a message, by process, and bytes of WAL a message."""
        wal = (self._read_wal() - self._wal) / messages
        spent = {name: cpu_seconds(pid) - self._cpu[name] for name, pid in self._pids.items()}
        return {f"cpu_us_{name}": s * 1e6 / messages for name, s in spent.items()} | {"wal_bytes": wal}

    def share(self) -> dict[str, float]:
        """Return the CPU used since the start in percent of one core, by process."""
        took = time.perf_counter() - self._began
        return {
            f"cpu_percent_{name}": (cpu_seconds(pid) - self._cpu[name]) * 100 / took
            for name, pid in self._pids.items()
        }

    def _read_wal(self) -> int:
        return read_wal(self._system)


def read_wal(system: System) -> int:
    """Return how many bytes of WAL the server has written since it was initialized."""
    ((written,),) = system.query("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint")
    return int(written)


def read_commits(system: System) -> int:
    """Return the transactions committed in the installation's database by sessions that ended."""
    ((commits,),) = system.query(
        "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    )
    return int(commits)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its children, user and system."""
    process = psutil.Process(pid)
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6
