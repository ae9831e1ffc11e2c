"""Our image at work: an installation whose processes are containers."""

import json
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from docker.models.containers import Container  # type: ignore[import-untyped]
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from testcontainers.core.container import DockerContainer

from testkit.containers import ServerContainers
from testkit.eventually import eventually
from testkit.system import System

ROOT = Path(__file__).parent.parent.parent
IMAGE = "vap-orchestrator"
PORT = 9464
NANOSECOND = 1_000_000_000  # Docker's unit of time
COMMAND_S = 300


def run(*command: str, environ: dict[str, str] | None = None) -> str:
    """Run a command at the top of the checkout to its end; return its output. Fails with it."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-3000:]}"
    return done.stdout


class Process:
    """One container of the image, hardened as in deploy/, with a quick health check."""

    def __init__(self, container: DockerContainer, running: ExitStack) -> None:
        self._asked_at = time.monotonic()
        self._started = running.enter_context(container)
        self.container: Container = self._started.get_wrapped_container()

    def state(self) -> dict[str, Any]:
        """Return what Docker says of it now."""
        self.container.reload()
        return dict(self.container.attrs["State"])

    def is_healthy(self) -> bool:
        """Say whether its health check passes."""
        return bool(self.state()["Health"]["Status"] == "healthy")

    def is_unhealthy(self) -> bool:
        """Say whether its health check has failed."""
        return bool(self.state()["Health"]["Status"] == "unhealthy")

    def readiness(self) -> dict[str, Any]:
        """Return what /readyz says, and its `status`; with `eventually`, once it listens."""
        self.container.reload()
        assert self.container.ports.get(f"{PORT}/tcp"), "not running"
        port = self.container.ports[f"{PORT}/tcp"][0]["HostPort"]
        url = f"http://{self._started.get_container_host_ip()}:{port}/readyz"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return {"status": answer.status, **json.load(answer)}
        except urllib.error.HTTPError as error:
            return {"status": error.code, **json.load(error)}
        except OSError as error:
            raise AssertionError(str(error)) from error

    def is_ready(self) -> bool:
        """Say whether it does its work."""
        return bool(self.readiness()["status"] == 200)

    def is_unready(self) -> bool:
        """Say whether it answers that it does not do its work."""
        return bool(self.readiness()["status"] == 503)

    def wait_ready(self) -> float:
        """Wait until it is ready; return the seconds since its first start was asked for."""
        eventually(self.is_ready, 90)
        return time.monotonic() - self._asked_at

    def kill(self) -> None:
        """Do `docker kill -s KILL`."""
        self.container.kill("KILL")
        assert self.container.wait(timeout=10)["StatusCode"] == 137

    def start(self) -> None:
        """Do `docker start`."""
        self.container.start()

    def stop(self) -> float:
        """Do `docker stop`: within 5 s and with exit code 0, as promised; return the seconds."""
        started = time.monotonic()
        self.container.stop(timeout=20)
        took_s = time.monotonic() - started
        state = self.state()
        assert state["ExitCode"] == 0, self.container.logs().decode()[-2000:]
        assert took_s < 5, f"{took_s} s"
        return took_s


class Installation:
    """A system whose processes are containers beside the servers' containers."""

    def __init__(self, servers: ServerContainers, system: System, running: ExitStack) -> None:
        self._servers = servers
        self.system = system
        self._running = running

    def environ(self) -> dict[str, str]:
        """Return the settings, with the addresses that lead there from a container."""
        own = {name: text for name, text in self.system.environ.items() if "METRICS" not in name}
        database = conninfo_to_dict(own["DATABASE_URL"])["dbname"]
        inside = self._servers.inside
        return own | {
            "DATABASE_URL": make_conninfo(inside.database_url, dbname=str(database)),
            "KAFKA_BOOTSTRAP_SERVERS": inside.bootstrap_servers,
        }

    def start(self, *command: str, **environ: str) -> Process:
        """Start a container; without a command it does the whole job."""
        container = DockerContainer(IMAGE).with_network(self._servers.network)
        container.with_envs(**self.environ() | environ).with_exposed_ports(PORT)
        container.with_command(list(command))
        container.with_kwargs(
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            # The image's own `test`, asked more often; it gives up after 3 s by itself, and its start
            # takes seconds on a busy machine.
            healthcheck={"interval": 2 * NANOSECOND, "timeout": 15 * NANOSECOND, "retries": 2},
        )
        return Process(container, self._running)

    def run(self, *command: str) -> None:
        """Run a command to its end and see that it went well."""
        process = self.start(*command)
        code = process.container.wait(timeout=60)["StatusCode"]
        assert code == 0, process.container.logs().decode()[-2000:]
