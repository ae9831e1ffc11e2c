"""Which records of the input operators have dealt with, as dead letters (`orchestrator dlq`)."""

from collections.abc import Sequence
from uuid import UUID

from outbox import Connection, arrays, scalars

FIND_HANDLED = (
    "SELECT DISTINCT origin FROM dead_letters_handled WHERE origin = ANY(%(origins)b::uuid[])"
)


def find_handled(conn: Connection, origins: Sequence[UUID]) -> list[UUID]:
    """Return those of the records, by the id of their dead letters, that were retried or discarded."""
    return scalars(conn, UUID, FIND_HANDLED, {"origins": arrays.uuids(origins)})
