"""`relay`: the relay process."""

import argparse

from orchestrator.cli.session import load_settings
from orchestrator.relay import run_relay


def start_relay(_options: argparse.Namespace) -> int:
    """Run the relay until it is stopped."""
    return run_relay(load_settings())
