"""`run`: setup, then consumer and relay as supervised children of one process."""

import logging
import os
import subprocess
import sys
import time
from threading import Event

import psycopg
from confluent_kafka import KafkaException

from orchestrator.config.settings import Settings
from orchestrator.kafka.topics import TopicMissing
from orchestrator.runtime.process import check_port, run_until_stopped
from orchestrator.runtime.setup import set_up
from outbox import error_text, persist

log = logging.getLogger(__name__)

LOOK_S = 0.2  # how soon a dead child is noticed
RESTART_FIRST_S, RESTART_LAST_S = 0.5, 30.0  # a child that dies at once is not a busy loop
STEADY_S = 60.0  # a child that lived so long starts again quickly
CHILDREN_S = 4.3  # children end within 4 s by themselves
FINISH_S = 4.7


def run_supervised(settings: Settings) -> int:
    """Set up, then keep both processes running until stopped; return the exit code.

    Raises SettingsError if a port is taken: the children would only die of it again and again.
    """
    for port in ports_of(settings):
        check_port(settings.metrics_host, port)
    return run_until_stopped(lambda stop: supervise(settings, stop), finish_s=FINISH_S)


def ports_of(settings: Settings) -> tuple[int, int]:
    """Return the ports of consumer and relay: METRICS_PORT and the one above; 0 is any for both."""
    port = settings.metrics_port
    return port, port and port + 1


def supervise(settings: Settings, stop: Event) -> None:
    """Wait for the servers, set up, and watch the children."""
    said: set[str] = set()

    def note(error: Exception) -> None:
        if (text := error_text(error)) not in said:
            log.warning("setup waits", extra={"error": text})
        said.add(text)

    waited_for = (psycopg.Error, KafkaException, TopicMissing)
    persist(lambda _good: set_up(settings), waited_for, note, stop)
    ports = ports_of(settings)
    children = [Child(name, port) for name, port in zip(("consumer", "relay"), ports, strict=True)]
    while not stop.wait(LOOK_S):
        for child in children:
            child.keep_running()
    for child in children:
        child.terminate()
    until = time.monotonic() + CHILDREN_S
    for child in children:
        child.wait(until)


class Child:
    """One of the two processes, started again when it dies."""

    def __init__(self, name: str, port: int) -> None:
        self._name = name
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause_s = RESTART_FIRST_S
        self._restart_at = 0.0

    def keep_running(self) -> None:
        """Start the process if it is not running; after a death, with a growing pause."""
        if self._process is None:
            if time.monotonic() >= self._restart_at:
                self.start()
        elif (code := self._process.poll()) is not None:
            self._bury(code)

    def kill(self) -> None:
        """Send SIGKILL, as the demo does."""
        if self._process:
            self._process.kill()

    def terminate(self) -> None:
        """Ask the process to end."""
        if self._process:
            self._process.terminate()

    def wait(self, until: float) -> None:
        """Wait for the end until a moment (monotonic), then kill."""
        if self._process:
            try:
                self._process.wait(max(until - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def start(self) -> None:
        """Start the process now."""
        command = [sys.executable, "-m", "orchestrator", self._name]
        environ = {**os.environ, "METRICS_PORT": str(self._port)}
        environ.pop("METRICS_PORT_FILE", None)  # its own port, not the one in the file
        self._started = time.monotonic()
        self._process = subprocess.Popen(command, env=environ)

    def _bury(self, code: int) -> None:
        now = time.monotonic()
        if now - self._started > STEADY_S:
            self._pause_s = RESTART_FIRST_S
        log.error("process died", extra={"child": self._name, "code": code})
        self._process, self._restart_at = None, now + self._pause_s
        self._pause_s = min(2 * self._pause_s, RESTART_LAST_S)
