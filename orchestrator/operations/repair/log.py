"""The table `repairs`: what people decided where the evidence did not."""

import json
from collections.abc import Mapping

from outbox import Connection

WRITE_DOWN = """
    INSERT INTO repairs (command, target, reason, before, after, counts)
    VALUES (%(command)s, %(target)s, %(reason)s,
            %(before)s::jsonb, %(after)s::jsonb, %(counts)s::jsonb)
"""

State = Mapping[str, object]


def write_down(
    conn: Connection,
    command: str,
    target: str,
    reason: str,
    before: State,
    after: State,
    counts: State,
) -> None:
    """Leave a trace of what was done, in the transaction that does it. command: with its options."""
    conn.execute(
        WRITE_DOWN,
        {
            "command": command,
            "target": target,
            "reason": reason,
            "before": json.dumps(before, default=str),
            "after": json.dumps(after, default=str),
            "counts": json.dumps(counts, default=str),
        },
    )
