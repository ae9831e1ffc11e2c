"""The outbox from outside, for its operators: lanes, rows, parked rows, take-over, permissions, trials.

With `outbox` itself this is all that is public; every other module is the library's own. All functions
take the connection first; those that change rows never commit.
"""

from outbox.admin.lanes import (
    LaneBacklog,
    LaneCheck,
    LaneSummary,
    check_lanes,
    count_backlog,
    count_relays,
    count_sessions,
    list_lanes,
    list_relays_without_kafka,
    read_search_starts,
)
from outbox.admin.parked import (
    AcknowledgedRow,
    ParkedCount,
    ParkedRow,
    RowId,
    acknowledge_parked,
    count_parked,
    discard_parked,
    purge_parked,
    read_first_parked,
    read_parked,
    read_parked_value,
    retry_parked,
)
from outbox.admin.permissions import (
    BUSY_TABLES,
    OUTBOX_TABLES,
    RELAY_PERMISSIONS,
    WRITER_PERMISSIONS,
    TablePermission,
)
from outbox.admin.rows import (
    FaultyRow,
    RowCount,
    RowStatus,
    WaitingRow,
    count_lane_rows,
    count_rows,
    create_deferred_aggregates,
    create_unpublished_messages,
    find_faulty_rows,
    find_row,
    read_highest_id,
    read_last_id,
    read_waiting,
    search_parked,
    snapshot,
)
from outbox.admin.stepping import SteppedRelay, step_relay
from outbox.admin.take_over import BatchReset, LaneBusy, LockedLane, reset_batch_number, take_over
from outbox.admin.trials import TransactionalIdTrial, try_session_lock, try_transactional_id
from outbox.admin.waiting import (
    ListedRow,
    RowFilter,
    TopicBacklog,
    count_by_topic,
    list_rows,
    park_waiting,
)
from outbox.deferred_rows import DeferredReason, defer, find_deferred, read_deferred_reasons
from outbox.enqueue import read_next_id
from outbox.evidence import Evidence, Search
from outbox.kafka_calls import KafkaConfig
from outbox.lane import Lane
from outbox.lane_rows import read_identity
from outbox.markers import Marker, marker_key
from outbox.migrations import Migration, lock_runner, read_migration_files, set_lanes
from outbox.options import RelayOptions
from outbox.outbox_rows import acknowledge
from outbox.pooler import TransactionPoolingDetected, check_session
from outbox.producers import DEFAULT_CONFIG, try_producers
from outbox.publisher import Publisher

__all__ = [
    "BUSY_TABLES",
    "DEFAULT_CONFIG",
    "OUTBOX_TABLES",
    "RELAY_PERMISSIONS",
    "WRITER_PERMISSIONS",
    "AcknowledgedRow",
    "BatchReset",
    "DeferredReason",
    "Evidence",
    "FaultyRow",
    "KafkaConfig",
    "Lane",
    "LaneBacklog",
    "LaneBusy",
    "LaneCheck",
    "LaneSummary",
    "ListedRow",
    "LockedLane",
    "Marker",
    "Migration",
    "ParkedCount",
    "ParkedRow",
    "Publisher",
    "RelayOptions",
    "RowCount",
    "RowFilter",
    "RowId",
    "RowStatus",
    "Search",
    "SteppedRelay",
    "TablePermission",
    "TopicBacklog",
    "TransactionPoolingDetected",
    "TransactionalIdTrial",
    "WaitingRow",
    "acknowledge",
    "acknowledge_parked",
    "check_lanes",
    "check_session",
    "count_backlog",
    "count_by_topic",
    "count_lane_rows",
    "count_parked",
    "count_relays",
    "count_rows",
    "count_sessions",
    "create_deferred_aggregates",
    "create_unpublished_messages",
    "defer",
    "discard_parked",
    "find_deferred",
    "find_faulty_rows",
    "find_row",
    "list_lanes",
    "list_relays_without_kafka",
    "list_rows",
    "lock_runner",
    "marker_key",
    "park_waiting",
    "purge_parked",
    "read_deferred_reasons",
    "read_first_parked",
    "read_highest_id",
    "read_identity",
    "read_last_id",
    "read_migration_files",
    "read_next_id",
    "read_parked",
    "read_parked_value",
    "read_search_starts",
    "read_waiting",
    "reset_batch_number",
    "retry_parked",
    "search_parked",
    "set_lanes",
    "snapshot",
    "step_relay",
    "take_over",
    "try_producers",
    "try_session_lock",
    "try_transactional_id",
]
