"""`python -m orchestrator COMMAND`, and the `orchestrator` script."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from threading import Thread
from typing import NoReturn

PROCESS_COMMANDS = {"consumer", "relay", "run"}


def main(arguments: Sequence[str] = sys.argv[1:]) -> NoReturn:
    """Run one command and end the process with its exit code."""
    if arguments and arguments[0] in PROCESS_COMMANDS:
        # SIGTERM is a clean stop even during the imports below: no work has begun yet.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    else:
        exit_on_sigterm()
    from orchestrator.cli.main import run

    exit_now(run(arguments))


def exit_on_sigterm() -> None:
    """End at once on SIGTERM, as any program does that is not PID 1: for that one Linux ignores it.

    A thread sees the signal also while the main thread is in a call to a server.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)  # Python's own handler writes each signal's number there
    signal.signal(signal.SIGTERM, lambda *_: None)

    def wait() -> NoReturn:
        while os.read(read_end, 1)[0] != signal.SIGTERM:
            pass
        if screen := sys.modules.get("orchestrator.cli.screen"):
            screen.leave()
        os._exit(128 + signal.SIGTERM)

    Thread(target=wait, name="SIGTERM", daemon=True).start()


def exit_now(code: int) -> NoReturn:
    """End the process without waiting for its threads: one may be stuck in a call to a server."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
