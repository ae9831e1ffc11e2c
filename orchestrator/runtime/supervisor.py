"""`run`: setup, then consumer and relay as supervised children of one process."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from threading import Event
from types import MappingProxyType

import psycopg
from confluent_kafka import KafkaException

from orchestrator.config.settings import Settings
from orchestrator.kafka.topics import TopicMissing
from orchestrator.observability.health import Health
from orchestrator.observability.metrics import new_registry
from orchestrator.runtime.process import BESIDE, answer_http, check_port, run_until_stopped
from orchestrator.runtime.setup import set_up
from outbox import Backoff, DatabaseNotReady, error_text

log = logging.getLogger(__name__)

CHILD_POLL_S = 0.2  # how soon it is seen that a child has exited
RESTART_MIN_S, RESTART_MAX_S = 0.5, 30.0  # a child that exits at once must not make a busy loop
HEALTHY_AFTER_S = 60.0  # a child that lived so long starts again quickly
CHILD_SHUTDOWN_S = 4.3  # children end within 4 s by themselves
SUPERVISOR_GRACE_S = 4.7

SETUP_ERRORS = (psycopg.Error, KafkaException, TopicMissing, DatabaseNotReady)


def run_supervised(settings: Settings) -> int:
    """Set up, then keep both processes running until stopped; return the exit code.

    Raises SettingsError if a port is taken: the children would only exit, again and again.
    """
    for port in child_ports(settings):
        check_port(settings.metrics_host, port)
    return run_until_stopped(lambda stop: supervise(settings, stop), grace_s=SUPERVISOR_GRACE_S)


def child_ports(settings: Settings) -> tuple[int, int]:
    """Return the ports of consumer and relay: METRICS_PORT and the next one; 0 is any for both."""
    port = settings.metrics_port
    return port, port and port + 1


def supervise(settings: Settings, stop: Event) -> None:
    """Set up once the servers answer, then keep the children running until `stop` is set."""
    set_up_with_retries(settings, stop)
    port, next_port = child_ports(settings)
    children = [Child("consumer", port, {BESIDE: str(next_port)}), Child("relay", next_port)]
    while not stop.wait(CHILD_POLL_S):
        for child in children:
            child.keep_running()
    for child in children:
        child.terminate()
    deadline = time.monotonic() + CHILD_SHUTDOWN_S
    for child in children:
        child.wait(deadline)


def set_up_with_retries(settings: Settings, stop: Event) -> None:
    """Set up as soon as the servers let us, or return when `stop` is set. Logs each error once.

    Meanwhile it answers where the consumer will: alive, and not ready.
    """
    logged: set[str] = set()
    backoff, waits_for = Backoff(stop), "setup has not finished"
    health = Health({"setup": lambda: waits_for})
    with answer_http(settings, new_registry("run"), health):
        while not stop.is_set():
            try:
                set_up(settings)
            except SETUP_ERRORS as error:
                waits_for = error_text(error)
                if waits_for not in logged:
                    log.warning("setup waiting", extra={"error": waits_for, "next": "trying again"})
                logged.add(waits_for)
                backoff.wait()
            else:
                return


class Child:
    """One of the two processes, restarted when it exits."""

    def __init__(self, name: str, port: int, environ: Mapping[str, str] = MappingProxyType({})) -> None:
        self._name = name
        self._environ = {"METRICS_PORT": str(port), **environ}
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause_s = RESTART_MIN_S
        self._restart_at = 0.0

    def keep_running(self) -> None:
        """Start the process if it is not running; after an exit, with a growing pause."""
        if self._process is None:
            if time.monotonic() >= self._restart_at:
                self.start()
        elif (code := self._process.poll()) is not None:
            self._on_exit(code)

    def kill(self) -> None:
        """Send SIGKILL, as the demo does."""
        if self._process:
            self._process.kill()

    def terminate(self) -> None:
        """Send SIGTERM."""
        if self._process:
            self._process.terminate()

    def wait(self, deadline: float) -> None:
        """Wait for the exit until a moment (monotonic), then kill."""
        if self._process:
            try:
                self._process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def start(self) -> None:
        """Start the process now."""
        command = [sys.executable, "-m", "orchestrator", self._name]
        environ = {**os.environ, **self._environ}
        environ.pop("METRICS_PORT_FILE", None)  # its own port, not the one in the file
        self._started = time.monotonic()
        self._process = subprocess.Popen(command, env=environ)

    def _on_exit(self, code: int) -> None:
        now = time.monotonic()
        if now - self._started > HEALTHY_AFTER_S:
            self._pause_s = RESTART_MIN_S
        log.error("child exited", extra={"child": self._name, "code": code})
        self._process, self._restart_at = None, now + self._pause_s
        self._pause_s = min(2 * self._pause_s, RESTART_MAX_S)
