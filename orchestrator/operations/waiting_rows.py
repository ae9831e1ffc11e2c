"""Rows that wait in the outbox, and parking some of them by hand."""

from collections.abc import Sequence

from orchestrator.operations.repair.log import log_repair
from outbox import Connection, retry_transaction, transaction
from outbox.admin import RowId, park_waiting

TARGET = "waiting rows"  # of the table repairs


@retry_transaction
def park_rows(conn: Connection, row_ids: Sequence[RowId], reason: str, command: str) -> list[RowId]:
    """One Postgres transaction: park those that still wait and are not in flight; return them."""
    with transaction(conn):
        done = park_waiting(conn, row_ids, f"parked by an operator: {reason}")
        if done:
            log_repair(conn, command, TARGET, "park", {"row_ids": done}, {}, {"rows": len(done)})
    return done
