"""`audit`: the output topic against the workers."""

import argparse
import sys
from collections.abc import Iterator

from orchestrator.cli.exit_codes import CHECK_FAILED, OK
from orchestrator.cli.session import operator_session
from orchestrator.cli.terminal import print_json, print_lines
from orchestrator.operations.audit.audit import FAULTS, NOTICES, Audit, audit, audit_fields
from orchestrator.operations.audit.comparison import Fault
from orchestrator.operations.text import utc_text
from orchestrator.program import PROGRAM


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


def why_unknown(found: Audit) -> str:
    """Return what unknown records can be, as far as that was looked for."""
    if not found.inputs:
        return "of another producer, or of workers that were lost in a restore"
    inputs = ", ".join(found.inputs)
    return (
        "of another producer; or of workers that were lost in a restore, or deleted, and whose commands"
        f" are not (any more) in what was consumed of {inputs}"
    )


def render_audit(found: Audit) -> Iterator[str]:
    """Yield the lines for an operator; the last one is the result."""
    if found.since:
        yield f"workers accepted since {utc_text(found.since)} UTC; older ones need no record"
    yield f"workers: {found.accepted:,} accepted, {found.deployed:,} deployed, {found.parked:,} parked"
    if found.deferred:
        yield f"{found.deferred:,} workers: published, and deployed later; see `{PROGRAM} status`"
    yield f"records: {found.published:,} published, {found.waiting:,} waiting in the outbox"
    notices = {kind: meaning for kind, meaning in NOTICES.items() if getattr(found, kind)}
    for kind, meaning in (FAULTS | notices).items():
        yield f"{kind:<20} {getattr(found, kind):>9,}  {meaning}"
        for example in found.examples.get(kind, ()):
            yield f"{'':<32}{_render_example(example)}"
    if found.unknown:
        yield f"unknown: {why_unknown(found)}"
    if found.sent_late:
        yield f"{found.sent_late:,} records: sent late by `parked retry`, and left out of the order"
    if found.moved:
        yield f"scenarios in several partitions, with no order between them: {found.moved:,}"
        yield f"{'':<32}{why_moved(found)}"
    idle = found.waiting and not found.relays
    waits = f"; {found.waiting:,} rows still wait, and no relay runs" if idle else ""
    yield ("passed" if found.passed else "FAILED") + waits


def _render_example(example: Fault) -> str:
    worker = "no deploy order" if example.worker_id is None else f"worker {example.worker_id}"
    if example.partition is None:
        return worker
    return f"{worker}, partition {example.partition}, offset {example.offset}"
