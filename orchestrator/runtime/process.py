"""The shell of a process: signals, the HTTP side, the work in a thread of its own.

The work may be stuck in a call to a server that is down. The main thread is not: it sees SIGTERM, gives
the work time to finish, and lets the process end. Nothing is lost by that: the next start finds out
what became of the work in progress.
"""

import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from threading import Event

from prometheus_client import CollectorRegistry

from orchestrator.config.environment import SettingsError
from orchestrator.config.settings import Settings
from orchestrator.observability.health import Health
from orchestrator.observability.http import listen, serve_http

log = logging.getLogger(__name__)

BESIDE = "ORCHESTRATOR_BESIDE"  # set by `run` for its consumer: the port of its relay
SHUTDOWN_GRACE_S = 4.0  # for the work to finish, of the 5 s that a stop may take
SIGNAL_POLL_S = 0.1  # how soon a signal is seen
GC_INTERVAL_S = 10.0  # how long what a failure left may stay in memory


@contextmanager
def answer_http(settings: Settings, registry: CollectorRegistry, health: Health) -> Iterator[None]:
    """Answer on METRICS_PORT while the block runs. Raises SettingsError if the port is taken."""
    host, port = settings.metrics_host, settings.metrics_port
    health.beside = int(os.environ.get(BESIDE) or 0) or None
    with ExitStack() as stack:
        try:
            bound = stack.enter_context(serve_http(host, port, registry, health))
        except OSError as error:
            raise cannot_listen(host, port, error) from error
        log.info("process started", extra={"pid": os.getpid(), "port": bound})
        yield


def check_port(host: str, port: int) -> None:
    """Raise SettingsError if another process listens there."""
    try:
        listen(host, port).close()
    except OSError as error:
        raise cannot_listen(host, port, error) from error


def cannot_listen(host: str, port: int, error: OSError) -> SettingsError:
    """Return the fault of an address that cannot be used."""
    return SettingsError(
        [f"METRICS_HOST, METRICS_PORT: cannot listen on {host}:{port}: {error.strerror}"]
    )


def run_until_stopped(
    work: Callable[[Event], None],
    on_stop: Callable[[], None] = lambda: None,
    grace_s: float = SHUTDOWN_GRACE_S,
) -> int:
    """Run `work(stop)` until it ends or SIGTERM or SIGINT arrives; return the exit code."""
    stop, received = Event(), list[int]()
    # The handlers take no lock: Event.set() would block for good if it interrupted itself or wait().
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: received.append(number))
    configure_gc()
    done = ThreadPoolExecutor(1, thread_name_prefix="work").submit(work, stop)
    collect_at = time.monotonic() + GC_INTERVAL_S
    while not (done.done() or received):
        wait([done], timeout=SIGNAL_POLL_S)
        if time.monotonic() > collect_at:
            gc.collect()
            collect_at = time.monotonic() + GC_INTERVAL_S
    stop.set()
    on_stop()
    return _finish(done, grace_s)


def configure_gc() -> None:
    """Leave garbage collection to a timer, instead of several passes in each batch.

    A successful batch is freed by reference counting; repeated passes over it cost a quarter of a
    relay's CPU time. Only failures leave reference cycles: an exception and the frames that it passed.
    What the imports left is frozen, and never searched again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 10, 10)  # only a flood of garbage starts a pass by itself


def _finish(done: "Future[None]", grace_s: float) -> int:
    """Wait for the work to end; return 0 if it was stopped, 1 if it failed."""
    wait([done], timeout=grace_s)
    if not done.done():
        log.warning("process stopped", extra={"abandoned": True})  # a server is down
        return 0
    if error := done.exception():
        log.critical("process failed", exc_info=error)
        return 1
    log.info("process stopped")
    return 0
