"""One run of `repair`: what it is given, and how it talks to the operator."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TextIO

from orchestrator.config.settings import Settings
from orchestrator.errors import NotRepaired
from outbox import Connection


@dataclass(frozen=True)
class RepairRun:
    """command: as it was typed. report: takes a line for the operator. confirm: asks whether to go on.

    unknown_rows: what to do with rows that may have been published, or may not; None: refuse.
    without_inputs: topics that are not waited for, because no consumer reads them any more.
    progress: where to write how far the reading of a topic is.
    """

    settings: Settings
    conn: Connection
    command: str
    dry_run: bool
    report: Callable[[str], None]
    confirm: Callable[[], bool]
    unknown_rows: Literal["publish", "skip"] | None = None
    without_inputs: frozenset[str] = frozenset()
    progress: TextIO | None = None

    def require_confirmation(self) -> None:
        """Ask. Raises NotRepaired on a no."""
        if not self.confirm():
            raise NotRepaired("nothing was changed")

    def report_dry_run(self) -> None:
        """Report the end of a dry run."""
        self.report("dry run: nothing was changed")
