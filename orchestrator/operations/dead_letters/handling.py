"""Dead letters: retry their commands, or discard them.

Invariant: a command is retried at most once, however many dead letters hold it, and never if its record
became a worker. That it was handled, its line in `repairs` and, for a retry, the command in the outbox
are one Postgres transaction; the relay then publishes the command to the input topic exactly once, like
everything in the outbox. So neither a crash nor a second operator retries anything twice. A retried
command names the record that it was at first, and its worker has that record's id: whatever a restore
lets the consumer read again, and in whatever order, it becomes one worker.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple
from uuid import UUID

from psycopg.rows import args_row

from orchestrator.config.settings import Settings
from orchestrator.contract.records import RETRY_ORIGIN
from orchestrator.operations.dead_letters.headers import RETRY_OF, added_by_us, encode_place
from orchestrator.operations.dead_letters.letters import (
    DeadLetter,
    DeadLetterTopic,
    RecordId,
    letter_columns,
)
from orchestrator.operations.repair.log import log_repair
from outbox import (
    Connection,
    Message,
    count_lanes,
    crash_point,
    enqueue,
    query,
    retry_transaction,
    transaction,
)


class Handled(NamedTuple):
    """How many dead letters were handled.

    done: retried or discarded now. sent_before: noted as retried, since they have an order already.
    """

    done: int = 0
    sent_before: int = 0


# Operators handle dead letters one after the other: what one does counts for all letters of a record.
LOCK_HANDLED = "LOCK TABLE dead_letters_handled IN SHARE ROW EXCLUSIVE MODE"

INSERT_HANDLED = """
    INSERT INTO dead_letters_handled (topic_id, partition, record_offset, action, origin)
    SELECT %(topic_id)s, partition, record_offset, %(action)s, origin
      FROM unnest(%(partitions)s::int[], %(offsets)s::bigint[], %(origin_ids)s::uuid[],
                  %(worker_ids)s::uuid[])
           AS letter (partition, record_offset, origin, worker_id)
     WHERE NOT EXISTS (SELECT FROM dead_letters_handled AS done WHERE done.origin = letter.origin)
       AND NOT EXISTS (SELECT FROM workers WHERE workers.worker_id = letter.worker_id)
        ON CONFLICT DO NOTHING
 RETURNING partition, record_offset
"""


@retry_transaction
def handle_dead_letters(
    conn: Connection,
    topic: DeadLetterTopic,
    letters: Sequence[DeadLetter],
    action: str,
    command: str,
    ordered: Collection[UUID] = (),
) -> Handled:
    """One Postgres transaction: `retry` or `discard` those that still wait.

    ordered: workers that have an order already; their commands are not sent again.
    """
    settings = topic.settings
    with transaction(conn):
        conn.execute(LOCK_HANDLED)
        values = letter_columns(topic, letters) | {"action": action}
        inserted = set(query(conn, args_row(RecordId), INSERT_HANDLED, values))
        ours = [letter for letter in letters if letter.record_id in inserted]
        done = [letter for letter in ours if topic.worker_of(letter) not in ordered]
        if action == "retry":
            commands = [retry_message(settings, topic.topic_id, letter) for letter in done]
            enqueue(conn, commands, count_lanes(conn))
        counts = Handled(len(done), len(ours) - len(done))
        if ours:
            log_repair(
                conn,
                command,
                f"dead letters of {settings.dead_letter_topic}",
                action,
                {"topic_id": topic.topic_id, "record_ids": [letter.record_id for letter in ours]},
                {},
                {"dead_letters": counts.done, "sent_before": counts.sent_before},
            )
        crash_point("dlq.handled")
    crash_point("dlq.committed")
    return counts


def retry_message(settings: Settings, topic_id: UUID, letter: DeadLetter) -> Message:
    """Return the record that a dead letter was, byte for byte, and headers that name it."""
    added = added_by_us(letter.headers)
    own = [header for header, is_ours in zip(letter.headers, added, strict=True) if not is_ours]
    names = [(RETRY_OF, f"{topic_id}:{letter.record_id}".encode())]
    if letter.first:
        names.append((RETRY_ORIGIN, encode_place(letter.first)))
    return Message(settings.input_topic, letter.key, letter.value, [*own, *names])
