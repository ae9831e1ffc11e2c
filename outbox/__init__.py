"""A transactional outbox for Postgres and Kafka, exactly once and in order per key.

Write messages in the transaction that decides them; a relay, in any number of processes, publishes
them in Kafka transactions. A `read_committed` reader sees each message exactly once:

    from outbox import Message, Relay, connect, count_lanes, enqueue, transaction

    with connect(conninfo, "my service") as conn:
        lanes = count_lanes(conn)
        with transaction(conn):
            conn.execute("UPDATE orders SET state = 'paid' WHERE id = %s", [order_id])
            enqueue(conn, [Message("paid", key=b"4711", value=b"...", aggregate_id=order_id)], lanes)

    relay = Relay(conninfo, {"bootstrap.servers": "kafka:9092"}, on_published=mark_announced)
    relay.run(stop)  # until the threading.Event is set; see Relay for its parameters

The tables, the topic that it needs and how to take it into a service: README.md beside this file.
"""

from outbox import arrays
from outbox.backoff import Backoff
from outbox.crash_points import crash_point
from outbox.deferred_rows import LOCKED, DeferredBacklog, read_deferred_backlog
from outbox.enqueue import check_id_sequence, count_lanes, enqueue, enqueue_async
from outbox.errors import (
    DatabaseNotReady,
    InDoubt,
    NotAwaited,
    NoTransaction,
    OutboxError,
    OwnershipLost,
    RecordRejected,
    RolledBack,
    RowsSkipped,
    Stopped,
    error_text,
    is_server_away,
)
from outbox.kafka_config import DEFAULTS as KAFKA_DEFAULTS
from outbox.kafka_config import property_refusal
from outbox.lane import LaneState, LaneStatus, Outcome
from outbox.membership import RELAY_SESSION
from outbox.message import MESSAGE_ID_HEADER, Headers, Message, OutboxRow, is_topic_name
from outbox.observer import Observer
from outbox.outbox_rows import read_backlog
from outbox.output_topics import is_thin, refusal_of, topic_id_of
from outbox.pacing import AdaptivePause
from outbox.postgres import (
    Connection,
    Session,
    SyncCommitMonitor,
    begin_session,
    connect,
    hang_up_after,
    query,
    read_standby_wait,
    retry_transaction,
    scalar,
    scalars,
    session_options,
    transaction,
)
from outbox.relay import Relay
from outbox.timings import Timings, read_overrides, with_overrides

__all__ = [
    "KAFKA_DEFAULTS",
    "LOCKED",
    "MESSAGE_ID_HEADER",
    "RELAY_SESSION",
    "AdaptivePause",
    "Backoff",
    "Connection",
    "DatabaseNotReady",
    "DeferredBacklog",
    "Headers",
    "InDoubt",
    "LaneState",
    "LaneStatus",
    "Message",
    "NoTransaction",
    "NotAwaited",
    "Observer",
    "OutboxError",
    "OutboxRow",
    "Outcome",
    "OwnershipLost",
    "RecordRejected",
    "Relay",
    "RolledBack",
    "RowsSkipped",
    "Session",
    "Stopped",
    "SyncCommitMonitor",
    "Timings",
    "arrays",
    "begin_session",
    "check_id_sequence",
    "connect",
    "count_lanes",
    "crash_point",
    "enqueue",
    "enqueue_async",
    "error_text",
    "hang_up_after",
    "is_server_away",
    "is_thin",
    "is_topic_name",
    "property_refusal",
    "query",
    "read_backlog",
    "read_deferred_backlog",
    "read_overrides",
    "read_standby_wait",
    "refusal_of",
    "retry_transaction",
    "scalar",
    "scalars",
    "session_options",
    "topic_id_of",
    "transaction",
    "with_overrides",
]
