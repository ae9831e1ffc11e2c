"""Parked rows, those that Kafka rejected: find them, retry or discard them.

Invariant: no row is retried whose record is in its topic. After a restore a parked row may be one that
was retried and published in the history that was lost, so each retry looks there first.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TextIO

from orchestrator.config.settings import Settings
from orchestrator.contract.workers import set_deployed
from orchestrator.operations.dead_letters.filter import RecordFilter
from orchestrator.operations.repair import published_rows
from orchestrator.operations.repair.log import log_repair
from orchestrator.operations.repair.published_rows import FoundRow
from outbox import Connection, retry_transaction, transaction
from outbox.admin import (
    ParkedRow,
    RowId,
    acknowledge_parked,
    check_session,
    defer,
    discard_parked,
    purge_parked,
    read_parked,
    retry_parked,
)

TARGET = "parked rows"  # of the table repairs


def find_parked_rows(
    conn: Connection, settings: Settings, chosen: RecordFilter, handled: bool
) -> Iterator[ParkedRow]:
    """Yield the rows that match, by lane and id. handled: discarded ones, too."""
    for row in read_parked(conn, settings.topics_of_relays()):
        if (
            (chosen.reason or "") in row.reason
            and chosen.matches(row.row_id, row.parked_at, row.key)
            and (handled or row.discarded_at is None)
        ):
            yield row


class LookUp(NamedTuple):
    """What the topics say of parked rows.

    sent: their records are there. unknown: they are not there, but the topic has lost records that are
    younger than the row.
    """

    sent: Sequence[FoundRow]
    unknown: Sequence[RowId]


def look_up(
    conn: Connection, settings: Settings, rows: Sequence[ParkedRow], progress: TextIO | None
) -> LookUp:
    """Read the topics of parked rows since the oldest of these was written."""
    check_session(conn)  # temporary tables belong to one session
    with published_rows.row_list(conn):
        published_rows.list_parked(conn, settings, rows)
        published_rows.look_up(conn, settings, progress, whole_topics=False)
        return LookUp(
            published_rows.read_published_parked(conn), published_rows.read_unknown_parked(conn)
        )


class Retried(NamedTuple):
    """How many rows are in the outbox now, and how many were acknowledged instead."""

    retried: int
    acknowledged: int


@retry_transaction
def retry_rows(
    conn: Connection, rows: Sequence[ParkedRow], sent: frozenset[RowId], command: str
) -> Retried:
    """One Postgres transaction: retry those still waiting, and acknowledge those that were sent."""
    workers = {row.row_id: row.aggregate_id for row in rows}
    with transaction(conn):
        acknowledged = acknowledge_parked(conn, sorted(sent))
        defer(conn, set_deployed(conn, [row.aggregate_id for row in acknowledged if row.aggregate_id]))
        retried = retry_parked(conn, sorted(workers.keys() - sent))
        done = sorted([*retried, *(RowId(row.lane, row.id) for row in acknowledged)])
        if done:
            log_repair(
                conn,
                command,
                TARGET,
                "retry",
                {"row_ids": done, "worker_ids": [workers[one] for one in done if workers[one]]},
                {},
                {"parked_rows": len(retried), "sent_before": len(acknowledged)},
            )
    return Retried(len(retried), len(acknowledged))


class Discarded(NamedTuple):
    """How many rows were discarded now, and of how many the content was deleted."""

    discarded: int
    purged: int


@retry_transaction
def discard_rows(
    conn: Connection, row_ids: Sequence[RowId], command: str, purge: bool = False
) -> Discarded:
    """One Postgres transaction: discard those still waiting; purge: delete the content of all."""
    with transaction(conn):
        done = discard_parked(conn, row_ids)
        purged = purge_parked(conn, row_ids) if purge else []
        if done or purged:
            counts = {"parked_rows": len(done)} | ({"purged": len(purged)} if purge else {})
            changed = {"row_ids": sorted({*done, *purged})}
            log_repair(conn, command, TARGET, "discard", changed, {}, counts)
    return Discarded(len(done), len(purged))
