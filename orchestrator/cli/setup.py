"""`setup` and `migrate`: what a release needs in Postgres and Kafka before its processes start."""

import argparse
from contextlib import closing

from orchestrator.cli.exit_codes import CHECK_FAILED, OK
from orchestrator.cli.session import load_settings
from orchestrator.runtime.database import open_session
from orchestrator.runtime.migrations import read_pending, write_script
from orchestrator.runtime.setup import migrate_database, set_up


def set_up_servers(_options: argparse.Namespace) -> int:
    """Migrate the database and create the topics that are missing."""
    set_up(load_settings())
    return OK


def migrate_or_check(options: argparse.Namespace) -> int:
    """Migrate the database, or print what a migration would do."""
    if options.sql:
        print(write_script(), end="")
        return OK
    settings = load_settings()
    if not options.check:
        migrate_database(settings)
        return OK
    with closing(open_session(settings, "orchestrator migrate")) as conn:
        pending = read_pending(conn)
    for migration in pending:
        print(f"pending: {migration.name}")
    return CHECK_FAILED if pending else OK
