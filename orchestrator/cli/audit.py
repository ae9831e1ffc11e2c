"""`audit`: the output topic against the workers."""

import argparse
import sys

from orchestrator.cli.exit_codes import CHECK_FAILED, OK
from orchestrator.cli.session import open_session
from orchestrator.operations import audit


def audit_topic(options: argparse.Namespace) -> int:
    """Compare both sides; print the counts, and examples of what is wrong."""
    with open_session("audit") as (settings, conn):
        found = audit.audit(conn, settings.kafka, settings.output_topic, options.since, sys.stderr)
    print(audit.as_json(found) if options.json else "\n".join(audit.as_text(found)))
    return OK if found.clean else CHECK_FAILED
