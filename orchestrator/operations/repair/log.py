"""The table `repairs`: what operators changed, and what it was before."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from psycopg.rows import args_row

from outbox import Connection, query

INSERT_REPAIR = """
    INSERT INTO repairs (command, target, reason, before, after, counts)
    VALUES (%(command)s, %(target)s, %(reason)s,
            %(before)s::jsonb, %(after)s::jsonb, %(counts)s::jsonb)
"""

Facts = Mapping[str, object]


def log_repair(
    conn: Connection,
    command: str,
    target: str,
    reason: str,
    before: Facts,
    after: Facts,
    counts: Facts,
) -> None:
    """Insert a row about a change, in the transaction that makes it. command: with its options."""
    conn.execute(
        INSERT_REPAIR,
        {
            "command": command,
            "target": target,
            "reason": reason,
            "before": json.dumps(before, default=str),
            "after": json.dumps(after, default=str),
            "counts": json.dumps(counts, default=str),
        },
    )


class LoggedRepair(NamedTuple):
    """A change by an operator. repaired_by: the login; command: with its options; counts: of what."""

    repaired_at: datetime
    repaired_by: str
    command: str
    target: str
    reason: str
    before: Facts
    after: Facts
    counts: Facts


READ_REPAIRS = """
    SELECT repaired_at, repaired_by, command, target, reason, before, after, counts
      FROM (SELECT id, repaired_at, repaired_by, command, target, reason, before, after, counts
              FROM repairs
             WHERE %(since)s::timestamptz IS NULL OR repaired_at >= %(since)s::timestamptz
             ORDER BY id DESC
             LIMIT %(limit)s) AS latest
     ORDER BY id
"""


def read_repairs(conn: Connection, since: datetime | None, limit: int) -> list[LoggedRepair]:
    """Return the latest changes, the latest last."""
    return query(conn, args_row(LoggedRepair), READ_REPAIRS, {"since": since, "limit": limit})
