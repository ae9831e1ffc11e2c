"""The shell of a process: signals, the HTTP side, the work in a thread of its own.

The work may be stuck in a call to a server that is away. The main thread is not: it sees SIGTERM,
gives the work its time to finish, and lets the process end. Nothing is lost by that: whatever was in
hand is found out by the next start.
"""

import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event

from prometheus_client import CollectorRegistry

from orchestrator.config.environment import SettingsError
from orchestrator.config.settings import Settings
from orchestrator.observability.health import Health
from orchestrator.observability.http import serve_http

log = logging.getLogger(__name__)

FINISH_S = 4.0  # of the 5 s that a stop may take
LOOK_S = 0.1  # how soon a signal is seen
COLLECT_S = 10.0  # how long what failed may stay in memory


def run_process(
    settings: Settings,
    registry: CollectorRegistry,
    health: Health,
    work: Callable[[Event], None],
) -> int:
    """Be a container process: do `work(stop)` and answer on METRICS_PORT; return the exit code."""
    host, port = settings.metrics_host, settings.metrics_port
    collect_garbage_by_the_clock()
    try:
        with serve_http(host, port, registry, health) as bound:
            log.info("process started", extra={"pid": os.getpid(), "port": bound})
            return run_until_stopped(work, on_stop=health.stop)
    except OSError as error:
        raise cannot_listen(host, port, error) from error


def collect_garbage_by_the_clock() -> None:
    """Leave the search for cycles to `run_until_stopped`, instead of several searches in each batch.

    What becomes of a batch that goes well is freed by reference counts; looking through all of it,
    again and again, took a quarter of a relay's time. What fails leaves cycles: an exception and the
    frames that it passed. What the imports left is never looked through again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 10, 10)  # for a flood of garbage only


def check_port(host: str, port: int) -> None:
    """Raise SettingsError if somebody listens there already."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise cannot_listen(host, port, error) from error


def cannot_listen(host: str, port: int, error: OSError) -> SettingsError:
    """Return the fault of an address that cannot be ours."""
    return SettingsError(
        [f"METRICS_HOST, METRICS_PORT: cannot listen on {host}:{port}: {error.strerror}"]
    )


def run_until_stopped(
    work: Callable[[Event], None],
    on_stop: Callable[[], None] = lambda: None,
    finish_s: float = FINISH_S,
) -> int:
    """Do `work(stop)` until it ends or SIGTERM or SIGINT arrives; return the exit code."""
    stop, asked = Event(), list[int]()
    # The handlers take no lock: Event.set() would wait for ever if it interrupts itself or wait().
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: asked.append(number))
    done = ThreadPoolExecutor(1, thread_name_prefix="work").submit(work, stop)
    collect_at = time.monotonic() + COLLECT_S
    while not (done.done() or asked):
        wait([done], timeout=LOOK_S)
        if time.monotonic() > collect_at:
            gc.collect()
            collect_at = time.monotonic() + COLLECT_S
    stop.set()
    on_stop()
    return _finish(done, finish_s)


def _finish(done: "Future[None]", finish_s: float) -> int:
    """Wait for the work to end; 0 if it was asked to, 1 if it broke."""
    wait([done], timeout=finish_s)
    if not done.done():
        log.warning("stopped while a server is away; what was in hand is abandoned")
        return 0
    if error := done.exception():
        log.critical("process broken", exc_info=error)
        return 1
    log.info("process stopped")
    return 0
