"""The table `repairs`: what operators changed, and what it was before."""

import json
from collections.abc import Mapping

from outbox import Connection

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
