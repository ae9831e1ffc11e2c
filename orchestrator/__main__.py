"""`python -m orchestrator COMMAND`, and the `orchestrator` script."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

PROCESS_COMMANDS = {"consumer", "relay", "run"}


def main(arguments: Sequence[str] = sys.argv[1:]) -> NoReturn:
    """Run one command and end the process with its exit code."""
    if arguments and arguments[0] in PROCESS_COMMANDS:
        # SIGTERM is a clean stop even during the imports below: no work has begun yet.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from orchestrator.cli.main import run

    exit_now(run(arguments))


def exit_now(code: int) -> NoReturn:
    """End the process without waiting for its threads: one may be stuck in a call to a server."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
