"""What the commands share when they talk to an operator: questions, errors, tables, masked output."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence

from orchestrator.cli.screen import laid_out
from orchestrator.observability.masking import mask_text, mask_value, printable


class UsageError(Exception):
    """The options of a command do not fit together, or do not fit here."""


def print_error(code: int, text: str, *more: str) -> int:
    """Print what is wrong, masked, on stderr, `more` on lines of their own; return the exit code."""
    for line in (f"orchestrator: {text}", *more):
        print(printable(mask_text(line)), file=sys.stderr)
    return code


def print_lines(lines: Iterable[str]) -> None:
    """Print lines for an operator, each masked."""
    print("\n".join(shown_lines(lines)), flush=True)


def shown_lines(lines: Iterable[str]) -> list[str]:
    """Return lines as an operator may see them: masked, and as the terminal takes them."""
    return [laid_out(printable(mask_text(line))) for line in lines]


def print_json(fields: object) -> None:
    """Print one JSON value for a script, with every text in it masked."""
    print(json.dumps(mask_value(fields), indent=2), flush=True)


def require_answer(options: argparse.Namespace) -> None:
    """Raise UsageError if a change must be confirmed and there is no terminal to ask on."""
    if not (options.dry_run or options.yes or sys.stdin.isatty()):
        raise UsageError("no terminal to ask on: use --yes, or --dry-run first")


def ask(question: str) -> bool:
    """Ask the operator at the terminal; only `yes` is a yes."""
    print(f"{question} [yes/no] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yield lines of aligned columns, with numbers to the right. Nothing if there are no rows."""
    if not rows:
        return
    texts = [list(head), *([format_cell(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in texts) for column in range(len(head))]
    right = [all(isinstance(row[column], int | float) for row in rows) for column in range(len(head))]
    for line in texts:
        cells = zip(line, widths, right, strict=True)
        yield "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in cells).rstrip()


def format_cell(cell: object) -> str:
    """Return a cell of a table: `-` for None. No commas: an offset may be copied into a command."""
    match cell:
        case None:
            return "-"
        case float():
            return f"{cell:,.1f}"
        case _:
            return str(cell)
