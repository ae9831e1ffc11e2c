"""Parked rows, those that Kafka rejected: find them, retry or discard them."""

from collections.abc import Iterator, Sequence

from orchestrator.operations.dead_letters.filter import RecordFilter
from orchestrator.operations.repair.log import log_repair
from outbox import Connection, retry_transaction, transaction
from outbox.admin import ParkedRow, RowId, discard_parked, read_parked, retry_parked


def find_parked_rows(conn: Connection, chosen: RecordFilter, handled: bool) -> Iterator[ParkedRow]:
    """Yield the rows that match, by lane and id. handled: discarded ones, too."""
    for row in read_parked(conn):
        if (
            (chosen.reason or "") in row.reason
            and chosen.matches(row.row_id, row.parked_at, row.key)
            and (handled or row.discarded_at is None)
        ):
            yield row


@retry_transaction
def handle_parked_rows(
    conn: Connection, row_ids: Sequence[RowId], action: str, command: str
) -> Sequence[RowId]:
    """One Postgres transaction: `retry` or `discard` those still waiting; return them."""
    with transaction(conn):
        done = (retry_parked if action == "retry" else discard_parked)(conn, row_ids)
        if done:
            counts = {"parked_rows": len(done)}
            log_repair(conn, command, "parked rows", action, {"row_ids": done}, {}, counts)
    return done
