"""Named points at which a test kills or freezes the real process.

Inert unless OUTBOX_CRASH_POINT is set, as NAME[:HIT[:ACTION]]: at the HITth pass (1 unless told) of
the point NAME the process sends itself SIGKILL (ACTION `kill`, the default) or SIGSTOP (`freeze`).
All calls are once a batch or less often, never once a message.
"""

import os
import signal
from itertools import count
from threading import get_ident

_ARMED, _, _REST = os.environ.get("OUTBOX_CRASH_POINT", "").partition(":")
_HIT, _, _ACTION = _REST.partition(":")
_passes = count(1)


def crash_point(name: str) -> None:
    """Do nothing, or end (freeze) this process where a test armed the point `name`."""
    if name == _ARMED and next(_passes) == int(_HIT or 1):
        # To this thread: another one could take the signal while this one goes on for a moment.
        signal.pthread_kill(get_ident(), signal.SIGSTOP if _ACTION == "freeze" else signal.SIGKILL)
