"""What the evidence says of the batches in hand, and what is done in Postgres about it.

Invariant: markers are compared with lane rows only after a fence, and under the rows' locks. What is to
be published again was in `inflight` before: never other rows under the same number.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from outbox import store
from outbox.crashpoints import reached
from outbox.errors import RecordRefused
from outbox.lane import Lane, Verdict, compare
from outbox.message import OutboxRow
from outbox.ownership import Ownership
from outbox.postgres import Connection, transaction, transaction_again
from outbox.publisher import Marker
from outbox.store import LaneState


class Refusal(NamedTuple):
    """Kafka refused a record. lane: whose, None if it was in a transaction of several."""

    lane: int | None
    error: RecordRefused


class Decision(NamedTuple):
    """What was decided of a lane.

    rows: to be published under the state's number. parked: the row and subject that were set aside.
    """

    verdict: Verdict
    state: LaneState
    rows: Sequence[OutboxRow] = ()
    parked: tuple[int, UUID | None] | None = None

    @property
    def sends(self) -> bool:
        """Say whether the batch, or a new lane's first marker, is still to go out."""
        return self.verdict in (Verdict.NOT_PUBLISHED, Verdict.NEW_LANE)


@transaction_again
def decide(
    conn: Connection,
    owned: Ownership,
    markers: Mapping[int, Marker | None],
    carrier: int,
    refusal: Refusal | None,
) -> dict[int, Decision]:
    """Compare markers and lane rows in one transaction; write what all will go out under.

    carrier: the lane whose transactional id has just been fenced, for us.
    """
    with transaction(conn):
        before = owned.lock(markers)
        decisions = {}
        for number, state in before.items():
            refused = refusal.error if refusal and refusal.lane == number else None
            state = state._replace(carrier=carrier, foreign=False)
            decisions[number] = _decide(conn, owned.lanes[number], markers[number], state, refused)
        begun = {n: one.state for n, one in decisions.items() if one.state != before[n]}
        store.begin_batches(conn, owned.epochs(begun), begun)
        if any(state.inflight != before[number].inflight for number, state in begun.items()):
            reached("relay.narrowed")
    return decisions


def _decide(
    conn: Connection,
    lane: Lane,
    marker: Marker | None,
    state: LaneState,
    refused: RecordRefused | None,
) -> Decision:
    verdict = compare(marker, state.seq, len(state.inflight))
    if verdict is not Verdict.NOT_PUBLISHED:
        return Decision(verdict, state)
    if refused and state.inflight:
        return _narrow(conn, lane, state, refused)
    return Decision(verdict, state, store.load(conn, lane.number, state.inflight))


def _narrow(conn: Connection, lane: Lane, state: LaneState, refused: RecordRefused) -> Decision:
    """Narrow a batch that Kafka refused, durably and under the same number.

    A batch of several rows shrinks to its first, and those after it go out one by one; a row that was
    refused alone is parked.
    """
    row, *more = state.inflight
    if more:
        lane.alone_until = max(more)
        rows = store.load(conn, lane.number, [row])
        return Decision(Verdict.NOT_PUBLISHED, state._replace(inflight=[row]), rows)
    subject = store.park(conn, lane.number, row, str(refused))
    empty = state._replace(inflight=[])
    return Decision(Verdict.NOT_PUBLISHED, empty, parked=(row, subject))
