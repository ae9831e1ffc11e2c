"""A real terminal of 80 columns and 24 lines, for a process of its own."""

import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Mapping

from testkit.system import INHERITED

COLUMNS, LINES = 80, 24


def on_terminal(
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    end: signal.Signals | None = None,
    once: str = "",
) -> tuple[str, int]:
    """Run Python with arguments; return what it wrote on the terminal, and its exit code.

    end: a signal to send it once it has written the text `once`.
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (LINES, COLUMNS))
    with subprocess.Popen(
        [sys.executable, *arguments],
        env={**INHERITED, "TERM": "xterm", **(environ or {})},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        written = b""
        try:
            while read := os.read(ours, 65_536):
                written += read
                if end and once.encode() in written:
                    process.send_signal(end)
                    end = None
        except OSError:  # the process has closed it
            pass
    os.close(ours)
    return written.decode(), process.returncode
