"""A lane: what its owner knows of it, and what marker and lane row say of its batch."""

import enum
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from outbox.markers import Marker
from outbox.message import OutboxRow


class Outcome(enum.Enum):
    """What became of a lane's last batch, decided from the marker in Kafka and the lane row."""

    NEW_LANE = "new_lane"
    PUBLISHED = "published"
    NOT_PUBLISHED = "not_published"
    MARKER_AHEAD = "marker_ahead"
    MARKER_BEHIND = "marker_behind"
    MARKER_MISSING = "marker_missing"

    @property
    def refused(self) -> bool:
        """Say whether the two histories disagree: the lane waits for an operator."""
        return self in REFUSED


REFUSED = frozenset({Outcome.MARKER_AHEAD, Outcome.MARKER_BEHIND, Outcome.MARKER_MISSING})


def compare(marker: Marker | None, batch_number: int, rows: int) -> Outcome:
    """Decide from the marker in Kafka and the batch in Postgres. rows: of it, not yet acknowledged.

    Valid only after fencing and while holding the lane's row lock. MARKER_AHEAD: Postgres was restored
    to an earlier state, possibly before the batch was shrunk. MARKER_BEHIND, MARKER_MISSING: the marker
    expired, was deleted, or belongs to another outbox.
    """
    if marker is None:
        return Outcome.MARKER_MISSING if batch_number else Outcome.NEW_LANE
    if marker.batch_number == batch_number:
        same = not rows or marker.rows in {None, rows}
        return Outcome.PUBLISHED if same else Outcome.MARKER_AHEAD
    if marker.batch_number == batch_number - 1:
        return Outcome.NOT_PUBLISHED
    ahead = marker.batch_number > batch_number
    return Outcome.MARKER_AHEAD if ahead else Outcome.MARKER_BEHIND


def describe_mismatch(marker: Marker | None, batch_number: int) -> str:
    """Say in one line why a lane is refused."""
    known = "missing" if marker is None else str(marker.batch_number)
    if marker and marker.batch_number == batch_number:
        known += f" with {marker.rows} rows"
    return f"the marker in Kafka is {known}, the batch in Postgres is {batch_number}"


class LaneState(enum.Enum):
    """What a lane's owner is doing with it."""

    RECOVERING = "recovering"
    ACTIVE = "active"
    IN_DOUBT = "in_doubt"  # a Kafka transaction failed, or its outcome is unknown: recovery decides
    BACKING_OFF = "backing_off"  # failed alone: retried later, so that it does not block the others
    REFUSED = "refused"  # marker and lane row disagree: waits for an operator


class LaneStatus(NamedTuple):
    """A lane's state, and why it is not active: an error's text, or the outcome of a refusal."""

    state: LaneState
    reason: str | None = None


RECOVERING = LaneStatus(LaneState.RECOVERING)


@dataclass(frozen=True)
class Lane:
    """What an owner knows of a lane. A value: each method returns the lane after a step.

    epoch: from `take_lane`. batch_number, batch_rows: the batch known to be in Kafka, while the lane is
    active. unacknowledged: its rows may still be in the outbox. solo_failures: how often in a row it
    failed though it was sent alone. backoff_until: left out of the work until then, monotonic; 0: it is
    not. fenced: lanes under whose transactional ids no earlier owner of this one can publish any more.
    single_row_to_id: up to this id its rows are published one by one. marker_sent_at: monotonic.
    """

    number: int
    epoch: int
    status: LaneStatus = RECOVERING
    batch_number: int = 0
    batch_rows: int | None = None
    unacknowledged: bool = True
    solo_failures: int = 0
    backoff_until: float = 0.0
    fenced: frozenset[int] = frozenset()
    single_row_to_id: int = 0
    marker_sent_at: float = -math.inf

    @property
    def refused(self) -> bool:
        """Say whether it waits for an operator."""
        return self.status.state is LaneState.REFUSED

    @property
    def working(self) -> bool:
        """Say whether it is neither refused nor backing off."""
        return not (self.refused or self.backoff_until)

    def with_status(self, state: LaneState, reason: str | None = None) -> "Lane":
        """Return it in another state."""
        return replace(self, status=LaneStatus(state, reason))

    def recovered(self, outcome: Outcome, batch_number: int, batch_rows: int | None) -> "Lane":
        """Return it after a recovery; from now on its transactional id is ours."""
        status = self.status
        if outcome.refused:
            status = LaneStatus(LaneState.REFUSED, outcome.value)
        elif self.refused:
            status = RECOVERING
        return replace(
            self,
            status=status,
            batch_number=batch_number,
            batch_rows=batch_rows,
            unacknowledged=True,
            fenced=frozenset(),
        )

    def with_fenced(self, transactional_lanes: Iterable[int]) -> "Lane":
        """Return it after a fence of these lanes' transactional ids."""
        return replace(self, fenced=self.fenced.union(transactional_lanes))

    def one_by_one(self, to_id: int) -> "Lane":
        """Return it with batches of one row, up to an id."""
        return replace(self, single_row_to_id=to_id)

    def without_backoff(self) -> "Lane":
        """Return it as part of the work again."""
        return replace(self, backoff_until=0.0)

    def begun(self, batch_number: int, rows: int) -> "Lane":
        """Return it with a batch of so many rows begun."""
        return replace(self, batch_number=batch_number, batch_rows=rows, unacknowledged=True)

    def acknowledged(self, batch_number: int) -> "Lane":
        """Return it with nothing in flight."""
        return replace(self, batch_number=batch_number, unacknowledged=False)

    def published(self, rows: Sequence[OutboxRow]) -> "Lane":
        """Return it after a commit in Kafka of these rows and its marker; no rows: the marker again."""
        last = rows[-1].id if rows else 0
        return replace(
            self,
            marker_sent_at=time.monotonic(),
            solo_failures=0,
            single_row_to_id=0 if last >= self.single_row_to_id else self.single_row_to_id,
        )

    def failed_alone(self, reason: str, backoff_s: float, allowed: int) -> "Lane":
        """Return it after a failure though it was sent alone; after so many it backs off."""
        failures = self.solo_failures + 1
        if failures < allowed:
            return replace(self, solo_failures=failures)
        return replace(
            self,
            solo_failures=failures,
            backoff_until=time.monotonic() + backoff_s,
            status=LaneStatus(LaneState.BACKING_OFF, reason),
        )
