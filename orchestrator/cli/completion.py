"""`completion`: the completion script of a shell."""

import argparse

import shtab

from orchestrator.cli.exit_codes import OK
from orchestrator.cli.parser import new_parser
from orchestrator.program import COMMAND


def print_completion(options: argparse.Namespace) -> int:
    """Print the script."""
    print(shtab.complete(new_parser(COMMAND), options.shell))
    return OK
