"""`run`: the whole job on one machine, with servers of its own if asked to."""

import argparse
import os

from orchestrator.cli.addresses import DATA, SERVERS, export_addresses
from orchestrator.cli.session import load_settings
from orchestrator.runtime.supervisor import run_supervised


def run_both(options: argparse.Namespace) -> int:
    """Set up, then run and supervise both processes until stopped."""
    if not options.embedded or set(SERVERS) <= os.environ.keys():
        return run_supervised(load_settings())
    from orchestrator.embedded import embedded_servers  # an optional extra

    with embedded_servers(DATA) as servers:
        export_addresses(servers.environ)
        return run_supervised(load_settings())
