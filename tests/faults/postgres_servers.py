"""PostgreSQL servers of a test's own: one to crash, one that follows it, a pooler in front."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orchestrator.embedded import EmbeddedPostgres, Servers
from orchestrator.embedded.server import HOST, EmbeddedServer
from orchestrator.runtime.setup import migrate_database
from testkit.containers import POSTGRES_SETTINGS
from testkit.empty_installation import bare_system
from testkit.eventually import eventually
from testkit.servers import server_directory
from testkit.system import LANES, System, create_topics


@contextmanager
def own_postgres(wal: Path | None = None) -> Iterator[EmbeddedPostgres]:
    """Run a server that a test may harm. wal: where it keeps its WAL."""
    with server_directory() as directory:
        postgres = SplitPostgres(directory / "postgres", wal)
        try:
            postgres.start()
            yield postgres
        finally:
            postgres.kill()


class SplitPostgres(EmbeddedPostgres):
    """A server that may keep its WAL on another volume than its data."""

    def __init__(self, directory: Path, wal: Path | None) -> None:
        super().__init__(directory, settings=POSTGRES_SETTINGS)
        self._wal = wal

    def _fill(self, new: Path) -> list[str]:
        return super()._fill(new) + ([f"--waldir={self._wal}"] if self._wal else [])


@contextmanager
def installed(servers: Servers, directory: Path, lanes: int = LANES) -> Iterator[System]:
    """Make an installation on these servers, and take it away again."""
    with bare_system(servers, directory) as system:
        migrate_database(replace(system.settings, lanes=lanes))
        create_topics(system)
        yield system


def run(postgres: EmbeddedPostgres, sql: str) -> list[tuple[Any, ...]]:
    """Run one statement as the server's administrator, in a session of its own."""
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        cursor = admin.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def set_server(postgres: EmbeddedPostgres, name: str, value: str) -> None:
    """Change a setting of the running server, and wait until new sessions have it."""
    run(postgres, f"ALTER SYSTEM SET {name} = '{value}'")
    run(postgres, "SELECT pg_reload_conf()")
    eventually(lambda: run(postgres, f"SHOW {name}") == [(value,)])


class Standby(EmbeddedPostgres):
    """A server that copies `primary` at its first start, and then follows it."""

    def __init__(self, directory: Path, primary: EmbeddedPostgres) -> None:
        super().__init__(directory, settings=POSTGRES_SETTINGS)
        self._primary = primary

    def _fill(self, new: Path) -> list[str]:
        copy = ["--pgdata", str(new), "--dbname", f"{self._primary.url}?application_name=standby"]
        how = ["--write-recovery-conf", "--checkpoint=fast", "--wal-method=stream", "--no-sync"]
        return [str(self._program().with_name("pg_basebackup")), *copy, *how]

    def catch_up(self) -> None:
        """Wait until it has replayed all that the primary has written."""
        ((end,),) = run(self._primary, "SELECT pg_current_wal_lsn()")
        eventually(lambda: run(self, f"SELECT pg_last_wal_replay_lsn() >= '{end}'") == [(True,)])

    def promote(self) -> None:
        """Make it the primary."""
        assert run(self, "SELECT pg_promote()") == [(True,)]


@contextmanager
def primary_and_standby() -> Iterator[tuple[EmbeddedPostgres, Standby]]:
    """Run two servers, of which the second follows the first."""
    with server_directory() as directory, own_postgres() as primary:
        standby = Standby(directory / "standby", primary)
        try:
            standby.start()
            yield primary, standby
        finally:
            standby.kill()


def either(primary: EmbeddedPostgres, standby: Standby) -> str:
    """Return the address of whichever of the two can be written to."""
    hosts = f"{HOST}:{primary.port},{HOST}:{standby.port}"
    login = f"postgres:{primary.password}"  # which the standby has, too
    return f"postgresql://{login}@{hosts}/postgres?target_session_attrs=read-write"


class PgBouncer(EmbeddedServer):
    """Debian's pooler in front of a server; it knows the password, and asks for none."""

    name = "PgBouncer"
    death_signal = signal.SIGKILL

    def __init__(
        self, directory: Path, postgres: EmbeddedPostgres, mode: str, settings: Mapping[str, str] = {}
    ) -> None:
        super().__init__(directory, None)
        self._postgres = postgres
        self.settings = {"pool_mode": mode, **settings}

    def url(self, system: System) -> str:
        """Return the address of an installation's database through the pooler."""
        name = psycopg.conninfo.conninfo_to_dict(system.settings.database_url)["dbname"]
        return f"postgresql://postgres@{HOST}:{self.port}/{name}"

    def _program(self) -> Path:
        return Path(shutil.which("pgbouncer") or "pgbouncer")

    def _working_directory(self) -> Path:
        return self.directory

    def _user(self) -> tuple[int, int]:
        return self._postgres._user()  # not root, either

    def _prepare(self) -> None:
        settings = {
            "listen_addr": HOST,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "any",
            **self.settings,
        }
        server = (
            f"host={HOST} port={self._postgres.port} user=postgres password={self._postgres.password}"
        )
        lines = [f"{name} = {value}" for name, value in settings.items()]
        text = "\n".join(["[databases]", f"* = {server}", "[pgbouncer]", *lines, ""])
        (self.directory / "pgbouncer.ini").write_text(text)

    def _command(self) -> list[str]:
        return [str(self._program()), "pgbouncer.ini"]

    def _answers(self) -> bool:
        try:
            psycopg.connect(f"host={HOST} port={self.port} dbname=postgres", connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def pooler(postgres: EmbeddedPostgres, mode: str, **settings: str) -> Iterator[PgBouncer]:
    """Run PgBouncer in a mode; skip the test where it is not installed."""
    if not shutil.which("pgbouncer"):
        pytest.skip("pgbouncer is not installed (apt install pgbouncer)")
    with server_directory() as directory:
        (directory / "pooler").mkdir()
        (directory / "pooler").chmod(0o755)
        pgbouncer = PgBouncer(directory / "pooler", postgres, mode, settings)
        try:
            pgbouncer.start()
            yield pgbouncer
        finally:
            pgbouncer.kill()


@contextmanager
def small_volume(size: str, uid: int, gid: int) -> Iterator[Path]:
    """Mount a volume of a few megabytes in memory; skip the test where that is not allowed."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if os.geteuid() != 0 or not mount or not umount:
        pytest.skip("only root can mount a volume small enough to be filled")
    with server_directory() as directory:
        volume = directory / "volume"
        volume.mkdir()
        options = f"size={size},mode=0700,uid={uid},gid={gid}"
        command = [mount, "-t", "tmpfs", "-o", options, "tmpfs", str(volume)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"a small volume cannot be mounted here: {done.stderr.strip()}")
        try:
            yield volume
        finally:
            subprocess.run([umount, str(volume)], check=True)


def fill(volume: Path) -> Path:
    """Write until the disk is full; return the file that must be deleted."""
    ballast = volume / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            return ballast
    raise AssertionError
