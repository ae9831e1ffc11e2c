"""What a reader types to run a command of ours, so that every text names one that works there.

After `pip install -r requirements.txt` in a checkout there is no `orchestrator` command: it comes with
the package.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

COMMAND, MODULE = "orchestrator", "python -m orchestrator"


def program_of(argv: Sequence[str], python: str) -> str:
    """Return what starts us. argv: of this process; python: the path of its interpreter."""
    started_as_command = Path(argv[0]).name == COMMAND
    # Beside the interpreter: the children of `run` are started as modules.
    return COMMAND if started_as_command or Path(python).with_name(COMMAND).is_file() else MODULE


PROGRAM = program_of(sys.argv, sys.executable)
