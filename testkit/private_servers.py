"""An installation on a PostgreSQL and a Kafka of its own, which may be killed, frozen and restarted."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil  # type: ignore[import-untyped]
import psycopg

from orchestrator.embedded import EmbeddedKafka, EmbeddedPostgres, Servers
from orchestrator.runtime.setup import set_up
from testkit.containers import POSTGRES_SETTINGS
from testkit.empty_installation import end_all
from testkit.eventually import eventually
from testkit.proxied import WiredKafka, wired_broker
from testkit.servers import server_directory
from testkit.system import Running, System, environ_of

BATCH = 50
BACK_S = (
    45  # until all works again: session time-out of a dead member, silence of a lane's owner, back-off
)


@dataclass
class Work:
    """An installation on servers of its own, and how many commands it was sent."""

    kafka: EmbeddedKafka
    postgres: EmbeddedPostgres
    system: System
    wired: WiredKafka
    sent: int = 0

    def send(self) -> None:
        """Send commands."""
        self.system.submit(BATCH)
        self.sent += BATCH

    def bring_back(self) -> None:
        """Thaw and start both servers, and wait until they answer."""
        for server in (self.kafka, self.postgres):
            if server._process:
                wake(server.pid)
            server.launch()
        for server in (self.kafka, self.postgres):
            server.wait_until_ready()

    def check(self) -> None:
        """Check that all commands so far are deployed exactly once."""
        self.system.check_exactly_once(self.sent, BACK_S)


@contextmanager
def own_servers(name: str) -> Iterator[Work]:
    """Run both servers while the block runs; yield an installation called `name` on them."""
    with server_directory() as directory, ExitStack() as ending:
        kafka, wired = wired_broker(directory / "kafka")
        postgres = EmbeddedPostgres(directory / "postgres", settings=POSTGRES_SETTINGS)
        for server in (kafka, postgres):
            ending.callback(server.kill)
            server.launch()
        for server in (kafka, postgres):
            server.wait_until_ready()
        (directory / "logs").mkdir()
        servers = Servers(postgres.url, kafka.bootstrap_servers)
        system = System(environ_of(servers, name), directory / "logs")
        ending.callback(end_all, system)
        with psycopg.connect(postgres.url, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE test_{name}".encode())
        set_up(system.settings)
        yield Work(kafka, postgres, system, wired)


def pause(pid: int) -> None:
    """Freeze a server with all its processes: connections stay open and nothing answers."""
    family(pid, psutil.Process.suspend)


def wake(pid: int) -> None:
    """Let a frozen server continue."""
    family(pid, psutil.Process.resume)


def family(pid: int, do: Callable[[psutil.Process], None]) -> None:
    """Apply an action to a process and all its children."""
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            do(process)


def start(work: Work) -> tuple[Running, Running]:
    """Start a consumer and a relay."""
    return work.system.start("consumer"), work.system.start("relay")


def answer(process: Running, path: str) -> int:
    """Return the status of an HTTP answer."""
    try:
        with urlopen(f"http://127.0.0.1:{process.port()}/{path}", timeout=5) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code


def is_ready(process: Running) -> bool:
    """Return whether /readyz answers 200."""
    return answer(process, "readyz") == 200


def is_unready(process: Running) -> bool:
    """Return whether /readyz answers 503."""
    return answer(process, "readyz") == 503


def wait_ready(*processes: Running) -> None:
    """Wait until all processes are ready."""
    for process in processes:
        eventually(partial(is_ready, process), BACK_S)


def wait_unready(*processes: Running) -> None:
    """Wait until all processes are unready, and alive."""
    for process in processes:
        eventually(partial(is_unready, process), BACK_S)
        assert answer(process, "livez") == 200
