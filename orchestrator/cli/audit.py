"""`audit`: the output topic against the workers."""

import argparse
import sys
from collections.abc import Iterator

from orchestrator.cli.exit_codes import CHECK_FAILED, OK
from orchestrator.cli.session import operator_session
from orchestrator.cli.terminal import print_json, print_lines
from orchestrator.operations.audit.audit import FAULTS, Audit, audit, audit_fields
from orchestrator.operations.audit.comparison import Fault


def audit_topic(options: argparse.Namespace) -> int:
    """Compare both sides; print the counts, and examples of what is wrong."""
    with operator_session("audit") as (settings, conn):
        found = audit(conn, settings.kafka, settings.output_topic, options.since, sys.stderr)
    if options.json:
        print_json(audit_fields(found))
    else:
        print_lines(render_audit(found))
    return OK if found.passed else CHECK_FAILED


def why_moved(found: Audit) -> str:
    """Return why scenarios can be in several partitions."""
    if found.scattered:
        return "another partitioner (KAFKA_CONFIG_PARTITIONER) or another producer was at work"
    return "partitions were added to the topic"


def render_audit(found: Audit) -> Iterator[str]:
    """Yield the lines for an operator; the last one is the result."""
    if found.since:
        yield f"workers accepted since {found.since:%Y-%m-%d %H:%M:%S} UTC; older ones need no record"
    yield f"workers: {found.accepted:,} accepted, {found.deployed:,} deployed, {found.parked:,} parked"
    if found.deferred:
        yield f"{found.deferred:,} workers: published, and deployed later; see `orchestrator status`"
    yield f"records: {found.published:,} published, {found.waiting:,} waiting in the outbox"
    for kind, meaning in FAULTS.items():
        yield f"{kind:<10} {getattr(found, kind):>9,}  {meaning}"
        for example in found.examples.get(kind, ()):
            yield f"{'':<22}{_render_example(example)}"
    if found.moved:
        yield f"scenarios in several partitions, with no order between them: {found.moved:,}"
        yield f"{'':<22}{why_moved(found)}"
    yield "passed" if found.passed else "FAILED"


def _render_example(example: Fault) -> str:
    worker = "no deploy order" if example.worker_id is None else f"worker {example.worker_id}"
    if example.partition is None:
        return worker
    return f"{worker}, partition {example.partition}, offset {example.offset}"
