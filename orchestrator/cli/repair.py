"""`repair`: let a refused lane or partition continue."""

import argparse
import sys

from orchestrator.cli.exit_codes import OK
from orchestrator.cli.session import operator_session
from orchestrator.cli.terminal import UsageError, ask, require_answer
from orchestrator.operations.repair.lane import repair_lanes
from orchestrator.operations.repair.partition import repair_partitions
from orchestrator.operations.repair.run import RepairRun


def repair(options: argparse.Namespace) -> int:
    """Say what a repair will do, ask, and do it."""
    require_answer(options)
    if options.number is None and isinstance(options.start, int):
        raise UsageError("--from OFFSET needs one partition, not all")
    with operator_session("repair") as (settings, conn):
        run = RepairRun(
            settings,
            conn,
            typed_command(options),
            options.dry_run,
            report=print,
            confirm=lambda: options.yes or ask("Go on?"),
            unknown_rows=options.unknown_rows,
            without_inputs=frozenset(options.without_inputs),
            progress=sys.stderr,
        )
        if options.what == "lane":
            repair_lanes(run, options.number)
        else:
            repair_partitions(run, options.number, options.start, options.again)
    return OK


def typed_command(options: argparse.Namespace) -> str:
    """Return the command as it was typed, for the table `repairs`."""
    words = ["repair", options.what, "all" if options.number is None else str(options.number)]
    if options.unknown_rows is not None:
        words += ["--unknown-rows", options.unknown_rows]
    for topic in options.without_inputs:
        words += ["--without-input", topic]
    if options.start is not None:
        words += ["--from", str(options.start)]
    if options.again:
        words.append("--again")
    return " ".join(words)
