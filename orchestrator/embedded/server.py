"""A server as a child process that owns a directory.

The directory contains its data, its log, its port and its password, so that a restart has the same data
at the same address. It is closed to other users of the machine.

Invariant: one owner per directory (a file lock), and no server outlives its owner. Servers run in
sessions of their own, so that Ctrl-C reaches only the owner, which stops them in order; on Linux the
kernel ends them when the owner is killed; elsewhere the next start ends those that were left over.
Without this, a second broker would open the same log segments, or a test would see the data of the
previous run.
"""

import fcntl
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, ClassVar

import psutil  # type: ignore[import-untyped]

from orchestrator.errors import ServerStartError

log = logging.getLogger("orchestrator.embedded")

HOST = "127.0.0.1"  # there is no TLS, so other machines must not connect
# Below the range from which Linux (32768), macOS and Windows (49152) take ports for outgoing
# connections: such a port could be in use when the server restarts, even by a client's own retries.
PORTS = range(20_000, 32_000)

START_TIMEOUT_S = 60  # 2 s on a quiet machine; longer on a busy one, and with crash recovery
STOP_TIMEOUT_S = 30  # Kafka's first stop writes its start-up cache, about 5 s
POLL_S = 0.02  # between two checks whether a server answers
LOG_TAIL = 20  # lines of a server's log that an error shows


class EmbeddedServer(ABC):
    """A server as a child process that owns `directory`."""

    name: ClassVar[str]
    death_signal: ClassVar[signal.Signals]  # its signal when its owner is killed

    def __init__(self, directory: Path, port: int | None) -> None:
        self.directory = directory.absolute()
        self._wanted_port = port
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[bytes] | None = None

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1, known from the first start on."""
        if self._port is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._port

    @property
    def pid(self) -> int:
        """The process to send signals to."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    @property
    def log_file(self) -> Path:
        """The output of the server since its last start."""
        return self.directory / "server.log"

    def start(self) -> None:
        """Launch the server and wait until it answers, also after it was killed or stopped.

        Raises ServerStartError, with nothing left running.
        """
        try:
            self.launch()
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def launch(self) -> None:
        """Start the process, and return before it answers."""
        if self._process and self._process.poll() is None:
            return
        close_directory(self.directory, *self._user())
        self._take_lock()
        self._kill_orphans()
        self._port = self._choose_port()
        self._prepare()
        log.info("server starting", extra={"server": self.name, "address": f"{HOST}:{self._port}"})
        self._process = self._spawn(self._command())

    def wait_until_ready(self) -> None:
        """Wait until the server answers a client. Raises ServerStartError."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            status = self._process.poll() if self._process else None
            if status is not None:
                raise self._failed(f"ended with exit status {status}")
            if time.monotonic() > deadline:
                raise self._failed(f"does not answer after {START_TIMEOUT_S} s")
            time.sleep(POLL_S)
        log.info("server started", extra={"server": self.name, "address": f"{HOST}:{self.port}"})

    def stop(self) -> None:
        """Shut the server down. Does nothing if it does not run."""
        self._stop_with(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server with SIGKILL and wait until it is gone, so that start() may follow."""
        self._stop_with(signal.SIGKILL)

    def _stop_with(self, number: signal.Signals) -> None:
        """Send a signal, wait, and kill the server if it does not end."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)  # or a frozen one would not react
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                log.warning("server killed", extra={"server": self.name, "after_s": STOP_TIMEOUT_S})
                self._process.kill()
                self._process.wait()
            self._process = None
            self._kill_orphans()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        """Become the owner of the directory until the lock's file is closed, or this process ends."""
        if self._lock is not None:
            return
        lock = (self.directory / "lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise ServerStartError(f"{self.directory} is in use by another process") from error
        self._lock = lock

    def _kill_orphans(self) -> None:
        """Kill processes of this server whose owner is gone: this process has the lock now."""
        for process in self._processes():
            log.warning("server killed", extra={"server": self.name, "orphan": process.pid})
            with suppress(psutil.NoSuchProcess):
                process.kill()
        while self._processes():
            time.sleep(POLL_S)

    def _processes(self) -> list[psutil.Process]:
        """Return all processes of this server, also those whose parent has ended.

        The working directory identifies them. A pid file would not: pids are reused.
        """
        found = []
        for process in psutil.process_iter(["name"]):
            with suppress(psutil.Error):  # ended meanwhile, or of another user
                if (
                    process.info["name"] == self._program().name
                    and Path(process.cwd()) == self._working_directory()
                ):
                    found.append(process)
        return found

    def _choose_port(self) -> int:
        """Return the requested port, else that of the last run, else a free one."""
        if self._wanted_port is not None:
            if not _is_free(self._wanted_port):
                raise ServerStartError(f"{self.name}: port {self._wanted_port} is taken")
            return self._wanted_port
        memory = self.directory / "port"
        if memory.exists() and _is_free(remembered := int(memory.read_text())):
            return remembered
        port = free_port()
        memory.write_text(str(port))
        return port

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start `command` as the server's process, with its output in the log file."""
        if self.log_file.exists():
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        with self.log_file.open("wb") as output:
            return _SPAWNER.submit(
                subprocess.Popen,
                as_child(command, *self._user(), self.death_signal),
                cwd=self._working_directory(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            ).result()

    def _failed(self, what: str) -> ServerStartError:
        lines = self.log_file.read_text(errors="replace").splitlines()[-LOG_TAIL:]
        return ServerStartError("\n  ".join([f"{self.name} {what}; {self.log_file} ends:", *lines]))

    def _user(self) -> tuple[int, int]:
        """Return the user and group that the server runs as."""
        return os.geteuid(), os.getegid()

    @abstractmethod
    def _program(self) -> Path:
        """Return the executable."""

    @abstractmethod
    def _working_directory(self) -> Path:
        """Return the directory that only this server uses, as the kernel names it."""

    @abstractmethod
    def _prepare(self) -> None:
        """Create the data directory at the first start, and the configuration at each."""

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the command line."""

    @abstractmethod
    def _answers(self) -> bool:
        """Return whether the server answers a client."""


def as_child(command: list[str], uid: int, gid: int, death_signal: int) -> list[str]:
    """Return `command` run as that user, with that signal when the thread that starts it ends."""
    numbers = [str(number) for number in (os.getpid(), uid, gid, death_signal)]
    return [sys.executable, "-I", "-S", "-c", BECOME_SERVER, *numbers, *command]


# Runs in a Python process that the server replaces, so that the pid is the server's. Not a preexec_fn:
# that runs in a fork of a process with threads, where it may deadlock. The signal is requested after
# the change of user, which would clear it (man 2 PR_SET_PDEATHSIG).
BECOME_SERVER = """
import ctypes, os, sys
parent, uid, gid, death_signal = map(int, sys.argv[1:5])
if os.geteuid() != uid:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal)
if os.getppid() != parent:
    sys.exit("the parent ended before the server began")
os.execv(sys.argv[5], sys.argv[5:])
"""

# For prctl the "parent" is the thread: this one lives as long as the process, those of callers may not.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedded")


def run_tool(command: list[str], cwd: Path) -> None:
    """Run a tool of a server to its end. Raises ServerStartError with its output if it fails."""
    try:
        result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ServerStartError(f"{command[0]} does not run: {error}") from error
    if result.returncode != 0:
        output = (result.stdout + result.stderr).splitlines()[-LOG_TAIL:]
        raise ServerStartError(
            "\n  ".join([f"exit status {result.returncode} of {command[0]}:", *output])
        )


def close_directory(directory: Path, uid: int, gid: int, mode: int = 0o700) -> None:
    """Create a directory, or take over an older one, that other users than this one cannot read.

    Raises ServerStartError, also if it is another user's, who could open it again.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if (owner := directory.stat().st_uid) not in {os.geteuid(), uid}:
            raise PermissionError(f"it belongs to the user {owner}; delete it, or run as that user")
        if owner != uid:
            os.chown(directory, uid, gid)
        directory.chmod(mode)
    except OSError as error:
        raise ServerStartError(f"{directory} cannot be closed to other users: {error}") from error


def kept_password(file: Path) -> str:
    """Return the password in a file that only its owner may read; the first time a new, random one."""
    if not (file.exists() and file.stat().st_size):
        file.touch(0o600)
        file.write_text(secrets.token_urlsafe())
    return file.read_text()


def free_port() -> int:
    """Return a port without a listener that no process, this one included, was given by this function.

    A UDP socket of the same number keeps it for this process: a server may be about to listen there.
    """
    while True:
        port = secrets.choice(PORTS)
        with suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as hold:
            hold.bind((HOST, port))
            if _is_free(port):
                hold.detach()  # stays open until the process ends
                return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the servers do: connections of the previous run, in TIME_WAIT, do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
