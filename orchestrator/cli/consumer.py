"""`consumer`: the consumer process."""

import argparse

from orchestrator.cli.session import load_settings
from orchestrator.consumer.process import run_consumer


def start_consumer(_options: argparse.Namespace) -> int:
    """Run the consumer until it is stopped."""
    return run_consumer(load_settings())
