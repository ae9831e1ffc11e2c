"""What the evidence says of the batches in hand, and what is done in Postgres about it.

Invariant: markers are compared with lane rows only after a fence, and under the rows' locks. What is to
be published again was in `inflight` before: never other rows under the same number.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from outbox import store
from outbox.crash_points import crash_point
from outbox.errors import RecordRejected
from outbox.lane import Lane, Outcome, compare
from outbox.message import OutboxRow
from outbox.ownership import Ownership
from outbox.postgres import Connection, retry_transaction, transaction
from outbox.publisher import Marker
from outbox.store import LaneState


class Refusal(NamedTuple):
    """Kafka refused a record. lane: whose, None if it was in a transaction of several."""

    lane: int | None
    error: RecordRejected


class Decision(NamedTuple):
    """What was decided of a lane.

    rows: to be published under the state's number. parked: the row and aggregate_id that were set aside.
    """

    outcome: Outcome
    state: LaneState
    rows: Sequence[OutboxRow] = ()
    parked: tuple[int, UUID | None] | None = None

    @property
    def sends(self) -> bool:
        """Say whether the batch, or a new lane's first marker, is still to go out."""
        return self.outcome in (Outcome.NOT_PUBLISHED, Outcome.NEW_LANE)


@retry_transaction
def decide(
    conn: Connection,
    owned: Ownership,
    markers: Mapping[int, Marker | None],
    transactional_lane: int,
    refusal: Refusal | None,
) -> dict[int, Decision]:
    """Compare markers and lane rows in one transaction; write what all will go out under.

    transactional_lane: the lane whose transactional id has just been fenced, for us.
    """
    with transaction(conn):
        before = owned.lock(markers)
        decisions = {}
        for number, state in before.items():
            refused = refusal.error if refusal and refusal.lane == number else None
            state = state._replace(transactional_lane=transactional_lane, maybe_restored=False)
            decisions[number] = _decide(conn, owned.lanes[number], markers[number], state, refused)
        begun = {n: one.state for n, one in decisions.items() if one.state != before[n]}
        store.begin_batches(conn, owned.epochs(begun), begun)
        if any(state.inflight != before[number].inflight for number, state in begun.items()):
            crash_point("relay.narrowed")
    return decisions


def _decide(
    conn: Connection,
    lane: Lane,
    marker: Marker | None,
    state: LaneState,
    refused: RecordRejected | None,
) -> Decision:
    outcome = compare(marker, state.batch_number, len(state.inflight))
    if outcome is not Outcome.NOT_PUBLISHED:
        return Decision(outcome, state)
    if refused and state.inflight:
        return _narrow(conn, lane, state, refused)
    return Decision(outcome, state, store.load(conn, lane.number, state.inflight))


def _narrow(conn: Connection, lane: Lane, state: LaneState, refused: RecordRejected) -> Decision:
    """Narrow a batch that Kafka refused, durably and under the same number.

    A batch of several rows shrinks to its first, and those after it go out one by one; a row that was
    refused alone is parked.
    """
    row, *more = state.inflight
    if more:
        lane.alone_until = max(more)
        rows = store.load(conn, lane.number, [row])
        return Decision(Outcome.NOT_PUBLISHED, state._replace(inflight=[row]), rows)
    aggregate_id = store.park(conn, lane.number, row, str(refused))
    empty = state._replace(inflight=[])
    return Decision(Outcome.NOT_PUBLISHED, empty, parked=(row, aggregate_id))
