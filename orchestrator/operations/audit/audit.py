"""The audit: what a read_committed reader of the output topic sees, against workers and outbox.

Exactly once means: every deployed worker has one record, no record is without a worker, and the records
of a scenario are in one partition, in the order in which its workers were accepted.

It may run while all processes work. Only workers that were deployed before the topic's high watermarks
were read must have a record below them, and a worker that has a record below them was accepted before.
Postgres holds the topic's records in a temporary table and does the comparison, so memory is bounded.
No transaction stays open while Kafka is read, so vacuum is not held up.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, TextIO

from orchestrator.kafka import topics
from orchestrator.kafka.partitioners import DEFAULT_PARTITIONER
from orchestrator.kafka.reader import MAX_CLOCK_SKEW, complete_since, find_ranges
from orchestrator.operations.audit.comparison import (
    Fault,
    copy_topic,
    count_faults,
    count_sent_late,
    count_workers,
    find_faults,
    read_examples,
    temporary_tables,
)
from orchestrator.operations.audit.deleted import find_deleted
from orchestrator.operations.audit.scattered import find_scattered
from orchestrator.program import PROGRAM
from outbox import Connection, scalar
from outbox.admin import check_session, count_relays

EXAMPLES = 5  # of each fault

FAULTS = {
    "lost": "workers with neither a record nor an outbox row",
    "duplicated": "records of a worker that has an earlier one",
    "published_and_parked": f"records whose row is parked: `{PROGRAM} parked retry` acknowledges it",
    "unknown": "records of no worker",
    "reordered": "records behind a later one of their scenario",
    "scattered": "records in another partition of the topic than their scenario belongs to",
}
NOTICES = {
    "deleted": "records of workers that the platform has deleted: no fault",
    "not_ours": "workers that the platform made itself, without an order: no fault",
}
KINDS = (*FAULTS, *NOTICES)


class Audit(NamedTuple):
    """Counts: of workers accepted, deployed, parked; of outbox rows waiting; of records; of faults.

    moved: scenarios with records in several partitions, between which there is no order. That is no
    fault if added partitions explain it.
    deferred: workers whose record is published and that could not yet be set to deployed.
    sent_late: records that `parked retry` sent: behind later ones, and left out of the order.
    deleted: records whose worker the platform has deleted, which is no fault. not_ours: workers that it
    made itself. relays: how many are connected. inputs: the topics in
    which the commands of unknown records were looked for; None: there were none.
    since: workers accepted earlier need no record; None: all were compared.
    """

    accepted: int
    deployed: int
    deferred: int
    waiting: int
    parked: int
    published: int
    lost: int
    duplicated: int
    published_and_parked: int
    unknown: int
    reordered: int
    scattered: int
    deleted: int
    not_ours: int
    relays: int
    sent_late: int
    moved: int
    inputs: Sequence[str] | None
    since: datetime | None
    examples: Mapping[str, Sequence[Fault]]

    @property
    def passed(self) -> bool:
        """Return whether there is no fault."""
        return not any(getattr(self, kind) for kind in FAULTS)


NOW = "SELECT clock_timestamp()"


def audit(
    conn: Connection,
    kafka: Mapping[str, str],
    topic: str,
    since: datetime | None = None,
    progress: TextIO | None = None,
) -> Audit:
    """Read the topic up to its high watermarks and compare it with the workers.

    conn: in no transaction. since: leave out older records and workers. progress: where to write how
    far the reading is. Raises DatabaseNotReady, TopicMissing, KafkaException or psycopg.Error.
    """
    check_session(conn)  # temporary tables belong to one session
    admin = topics.Admin(kafka)
    started = scalar(conn, datetime, NOW)  # before the high watermarks
    earliest = None if since is None else int((since - MAX_CLOCK_SKEW).timestamp() * 1000)
    ranges = find_ranges(admin, topic, earliest)
    with temporary_tables(conn):
        copied = copy_topic(conn, kafka, topic, ranges, progress)
        # A record that retention deleted is no fault. Of a partition from which it deleted all, only
        # `since` says from when on records must be there.
        kept = complete_since(admin, topic, ranges, copied.oldest, None if since else started)
        since = max((time for time in (since, kept) if time), default=None)
        find_faults(conn, started, since)
        inputs = find_deleted(conn, kafka, progress)
        moved = find_scattered(conn, kafka.get("partitioner", DEFAULT_PARTITIONER), len(ranges))
        workers, counts = count_workers(conn, since), count_faults(conn)
        sent_late = count_sent_late(conn)
        examples = read_examples(conn, EXAMPLES)
    return Audit(
        *workers,
        published=copied.records,
        **{kind: counts.get(kind, 0) for kind in KINDS},
        relays=count_relays(conn),
        sent_late=sent_late,
        moved=moved,
        inputs=inputs,
        since=since,
        examples={kind: [fault for fault in examples if fault.kind == kind] for kind in KINDS},
    )


def audit_fields(found: Audit) -> dict[str, object]:
    """Return the audit for a script."""
    examples = {
        kind: [
            {"worker_id": one.worker_id, "partition": one.partition, "offset": one.offset}
            for one in faults
        ]
        for kind, faults in found.examples.items()
    }
    return {"passed": found.passed, **found._asdict(), "examples": examples}
