"""`history`: what operators did, and who: the table `repairs`."""

import argparse
from collections.abc import Iterator, Sequence

from orchestrator.cli.exit_codes import OK
from orchestrator.cli.session import operator_session
from orchestrator.cli.terminal import print_json, print_lines, table
from orchestrator.operations.repair.log import LoggedRepair, read_repairs
from orchestrator.operations.text import utc_text


def show_history(options: argparse.Namespace) -> int:
    """Print the latest changes, the latest last."""
    with operator_session("history", kafka=False) as (_, conn):
        found = read_repairs(conn, options.since, options.limit)
    if options.json:
        print_json([one._asdict() for one in found])
    else:
        print_lines(render_history(found))
    return OK


def render_history(found: Sequence[LoggedRepair]) -> Iterator[str]:
    """Yield a line for each change."""
    yield from table(
        ("time (UTC)", "who", "target", "reason", "counts", "command"),
        [
            (
                utc_text(one.repaired_at),
                one.repaired_by,
                one.target,
                one.reason,
                ", ".join(f"{number} {what}" for what, number in one.counts.items()),
                one.command,
            )
            for one in found
        ],
    )
    if not found:
        yield "no operator has changed anything"
