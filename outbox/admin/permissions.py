"""The permissions in Postgres that a login needs, to write messages or to run a relay.

As in schema/roles.sql; tests/acceptance/test_roles.py sees that these are enough, and that none is left
over.
"""

from collections.abc import Sequence
from typing import NamedTuple


class TablePermission(NamedTuple):
    """A permission on a table.

    columns: it suffices on these; none: it is needed on the table. exclusive: no other kind of login
    needs it, so who has it is of this kind.
    """

    table: str
    privilege: str
    columns: Sequence[str] = ()
    exclusive: bool = False


MESSAGE_COLUMNS = ("lane", "topic", "key", "value", "headers", "aggregate_id")

WRITER_PERMISSIONS = (
    TablePermission("outbox", "INSERT", MESSAGE_COLUMNS),
    TablePermission("outbox", "SELECT", ("lane", "id")),  # is the sequence ahead of them?
    TablePermission("outbox_lane", "SELECT", ("lane",)),
    TablePermission("outbox_identity", "SELECT", ("lanes",)),  # how many there are
)
RELAY_PERMISSIONS = (
    TablePermission("outbox", "SELECT"),
    TablePermission("outbox", "UPDATE", ("created_at",)),  # FOR UPDATE asks for it on some column
    TablePermission("outbox", "DELETE", exclusive=True),
    TablePermission("outbox_lane", "SELECT"),
    TablePermission(
        "outbox_lane",
        "UPDATE",
        (
            "epoch",
            "batch_number",
            "inflight",
            "transactional_lane",
            "token",
            "marker_token",
            "search_start",
            "log_refusal",
            "server_run",
        ),
        exclusive=True,
    ),
    TablePermission(
        "outbox_parked",
        "INSERT",
        ("lane", "id", *MESSAGE_COLUMNS[1:], "message_id", "created_at", "reason"),
        exclusive=True,
    ),
    TablePermission("outbox_parked", "SELECT", ("lane", "id", "reason", "discarded_at")),
    TablePermission("outbox_deferred", "SELECT"),
    TablePermission("outbox_deferred", "INSERT", ("aggregate_id", "reason"), exclusive=True),
    TablePermission("outbox_deferred", "UPDATE", ("reason", "attempts", "last_attempt_at")),
    TablePermission("outbox_deferred", "DELETE", exclusive=True),
    TablePermission("outbox_identity", "SELECT", ("identity", "lanes")),
)

# Each batch leaves dead rows in them: vacuum has to follow.
BUSY_TABLES = ("outbox", "outbox_lane")
OUTBOX_TABLES = (*BUSY_TABLES, "outbox_parked", "outbox_deferred", "outbox_identity")
