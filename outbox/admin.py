"""The outbox from outside, for its operators: look at lanes and rows, repair, and step a relay by hand.

With `outbox` itself this is all that is public; every other module is the library's own.
"""

from outbox.lane import REFUSED, Lane, compare, disagreement
from outbox.lane_repair import COORDINATOR_MOVES, LaneBusy, SeizedLane, Sight, look, restart, seize
from outbox.membership import (
    MEMBER,
    TransactionPoolingDetected,
    check_session,
    join,
    limit_silence,
    lock_class,
    server_process,
)
from outbox.message import decode_headers, encode_headers, lane_of
from outbox.parked import ParkedRow, Places, discard, read_parked, read_value, unpark
from outbox.publisher import (
    PRODUCER,
    RETRY_PAUSE_S,
    SLICE_S,
    KafkaConfig,
    Marker,
    MarkerReader,
    Publisher,
    fault_of,
    marker_group,
)
from outbox.session import MARKER_REFRESH_S, Tenure
from outbox.store import Claim, acknowledge, claim, read_backlog, read_identity, take_lane

__all__ = [
    "COORDINATOR_MOVES",
    "MARKER_REFRESH_S",
    "MEMBER",
    "PRODUCER",
    "REFUSED",
    "RETRY_PAUSE_S",
    "SLICE_S",
    "Claim",
    "KafkaConfig",
    "Lane",
    "LaneBusy",
    "Marker",
    "MarkerReader",
    "ParkedRow",
    "Places",
    "Publisher",
    "SeizedLane",
    "Sight",
    "Tenure",
    "TransactionPoolingDetected",
    "acknowledge",
    "check_session",
    "claim",
    "compare",
    "decode_headers",
    "disagreement",
    "discard",
    "encode_headers",
    "fault_of",
    "join",
    "lane_of",
    "limit_silence",
    "lock_class",
    "look",
    "marker_group",
    "read_backlog",
    "read_identity",
    "read_parked",
    "read_value",
    "restart",
    "seize",
    "server_process",
    "take_lane",
    "unpark",
]
