"""Is the process alive, is it ready: what /livez and /readyz answer from.

Alive: every loop has ticked lately, or is known to wait; one that waits for a server ticks, too. Ready:
every named check passes; a check returns what is wrong, or None. A check fails only where this process
cannot work.
What else is wrong is a note: it is shown beside the checks, and the process stays ready.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.config.timings import ProcessTimings

Check = Callable[[], str | None]  # what is wrong, if anything is


@dataclass
class Health:
    """Ticks by loop, checks and notes by name. Threads write, the HTTP server reads.

    beside: the port of the relay, if `run` started it beside this process: a health check asks both.
    waits: by loop, for what a silent one waits that does not hang.
    """

    checks: dict[str, Check] = field(default_factory=dict)
    notes: dict[str, Check] = field(default_factory=dict)
    waits: dict[str, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    stalled_s: float = ProcessTimings.stalled_s
    beside: int | None = None
    _stopping: bool = False
    _ticks: dict[str, float] = field(default_factory=dict)

    def tick(self, loop: str) -> None:
        """Record that a loop is alive."""
        self._ticks[loop] = self.clock()

    def add(self, name: str, wrong: Check, works: Callable[[], bool]) -> None:
        """Add what is a check while the process does not work, and a note while it does."""
        self.checks[name] = lambda: None if works() else wrong()
        self.notes[name] = lambda: wrong() if works() else None

    def silent_s(self, loop: str) -> float:
        """Return the time since a loop's last tick; 0 before its first one."""
        now = self.clock()
        return now - self._ticks.get(loop, now)

    def stop(self) -> None:
        """Be unready from here on: the process was told to stop."""
        self._stopping = True

    def stalled_loops(self) -> list[str]:
        """Return the loops that have been silent for too long, and do not wait for a known reason."""
        silent = [loop for loop in tuple(self._ticks) if self.silent_s(loop) > self.stalled_s]
        return [loop for loop in silent if loop not in self.waits]

    def run_checks(self) -> dict[str, str | None]:
        """Return every check by name with what is wrong, None if nothing is."""
        found = {name: check() for name, check in self.checks.items()}
        if self._stopping:
            found["process"] = "stopping"
        return found

    def run_notes(self) -> dict[str, str]:
        """Return what is wrong beside the checks, by name."""
        found = {name: note() for name, note in self.notes.items()}
        return {name: text for name, text in found.items() if text}
