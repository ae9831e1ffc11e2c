"""`python -m orchestrator COMMAND`, and the `orchestrator` script."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

PROCESSES = {"consumer", "relay", "run"}


def main(arguments: Sequence[str] = sys.argv[1:]) -> NoReturn:
    """Run one command. SIGTERM ends a process in an orderly way even while it still imports."""
    if arguments and arguments[0] in PROCESSES:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # nothing is in hand yet
    if arguments == ["healthcheck"]:  # spare what is asked every few seconds all other imports
        from orchestrator.cli.healthcheck import check_health

        sys.exit(check_health(os.environ))
    from orchestrator.cli import main as cli

    cli.main(arguments)


if __name__ == "__main__":
    main()
