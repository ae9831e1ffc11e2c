"""A lane: what its owner knows of it, and what marker and lane row say of its batch."""

import enum
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol
from uuid import UUID

from outbox.markers import Marker
from outbox.message import OutboxRow


class Outcome(enum.Enum):
    """What became of a lane's last batch, decided from its marker, its row and the log."""

    NEW_LANE = "new_lane"
    PUBLISHED = "published"
    PARTLY_PUBLISHED = "partly_published"
    NOT_PUBLISHED = "not_published"
    MARKER_AHEAD = "marker_ahead"
    MARKER_BEHIND = "marker_behind"
    MARKER_MISSING = "marker_missing"
    MARKER_FOREIGN = "marker_foreign"
    LOG_UNUSABLE = "log_unusable"

    @property
    def refused(self) -> bool:
        """Say whether it cannot be decided without an operator, for whom the lane waits."""
        return self in REFUSED


REFUSED = frozenset(
    {
        Outcome.MARKER_AHEAD,
        Outcome.MARKER_BEHIND,
        Outcome.MARKER_MISSING,
        Outcome.MARKER_FOREIGN,
        Outcome.LOG_UNUSABLE,
    }
)


class LastBatch(Protocol):
    """What a lane row says of the last batch that was begun; see LaneRow."""

    @property
    def batch_number(self) -> int:
        """Return its number; 0: none was ever begun."""

    @property
    def token(self) -> UUID | None:
        """Return its token."""

    @property
    def marker_token(self) -> UUID | None:
        """Return the token of the marker before it."""

    @property
    def log_refusal(self) -> str | None:
        """Return why the log cannot tell what became of it."""


def compare(marker: Marker | None, batch: LastBatch) -> Outcome:
    """Decide from a lane's marker and its row whether both have the same history.

    Final only for a marker that was read behind a barrier, under the lane's row lock, and only while no
    rows are in flight: of those the log decides. MARKER_AHEAD: Postgres was restored to an earlier
    state. MARKER_BEHIND, MARKER_MISSING: the marker topic lost records. MARKER_FOREIGN: a copy of the
    database, or a second primary, published a batch of this number.
    """
    if batch.log_refusal:
        return Outcome.LOG_UNUSABLE
    if batch.batch_number == 0 and (marker is None or marker.batch_number == 0):
        return Outcome.NEW_LANE if marker is None or marker.token != batch.token else Outcome.PUBLISHED
    if marker is None:
        return Outcome.MARKER_MISSING
    if marker.token == batch.token:
        return Outcome.PUBLISHED
    if marker.token == batch.marker_token:
        return Outcome.NOT_PUBLISHED
    if marker.batch_number == batch.batch_number:
        return Outcome.MARKER_FOREIGN
    ahead = marker.batch_number > batch.batch_number
    return Outcome.MARKER_AHEAD if ahead else Outcome.MARKER_BEHIND


def describe_mismatch(marker: Marker | None, batch: LastBatch) -> str:
    """Say in one line why a lane is refused."""
    if batch.log_refusal:
        return f"what became of batch {batch.batch_number} cannot be found out: {batch.log_refusal}"
    if marker and marker.batch_number == batch.batch_number:
        return f"the batch {batch.batch_number} in Kafka is another one than that in Postgres"
    known = "missing" if marker is None else str(marker.batch_number)
    return f"the marker in Kafka is {known}, the batch in Postgres is {batch.batch_number}"


class LaneState(enum.Enum):
    """What a lane's owner is doing with it."""

    RECOVERING = "recovering"
    ACTIVE = "active"
    WAITING = "waiting"  # active, except for rows whose topic cannot be written to
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

    epoch: from `take_lane`. batch_number, token: of the batch known to be in Kafka, while the lane is
    active. unacknowledged: its rows may still be in the outbox. solo_failures: how often in a row it
    failed though it was sent alone. backoff_until: left out of the work until then, monotonic; 0: it is
    not. fenced: lanes under whose transactional ids no earlier owner of this one can publish any more.
    single_row_to_id: up to this id its rows are published one by one.
    """

    number: int
    epoch: int
    status: LaneStatus = RECOVERING
    batch_number: int = 0
    token: UUID | None = None
    unacknowledged: bool = True
    solo_failures: int = 0
    backoff_until: float = 0.0
    fenced: frozenset[int] = frozenset()
    single_row_to_id: int = 0

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

    def recovered(self, outcome: Outcome) -> "Lane":
        """Return it after a recovery; from now on its transactional id is ours."""
        status = self.status
        if outcome.refused:
            status = LaneStatus(LaneState.REFUSED, outcome.value)
        elif self.refused:
            status = RECOVERING
        return replace(self, status=status, fenced=frozenset())

    def with_fenced(self, transactional_lanes: Iterable[int]) -> "Lane":
        """Return it after a fence of these lanes' transactional ids."""
        return replace(self, fenced=self.fenced.union(transactional_lanes))

    def one_by_one(self, to_id: int) -> "Lane":
        """Return it with batches of one row, up to an id."""
        return replace(self, single_row_to_id=to_id)

    def without_backoff(self) -> "Lane":
        """Return it as part of the work again."""
        return replace(self, backoff_until=0.0)

    def at(self, batch_number: int, token: UUID | None, *, unacknowledged: bool) -> "Lane":
        """Return it with this batch begun, or with nothing in flight after it."""
        return replace(self, batch_number=batch_number, token=token, unacknowledged=unacknowledged)

    def published(self, rows: Sequence[OutboxRow]) -> "Lane":
        """Return it after a commit in Kafka of these rows and its marker."""
        last = rows[-1].id if rows else 0
        return replace(
            self,
            solo_failures=0,
            single_row_to_id=0 if last >= self.single_row_to_id else self.single_row_to_id,
        )

    def failed_alone(self, reason: str, backoff_s: float, allowed: int) -> "Lane":
        """Return it after a failure though it was sent alone; after so many it backs off."""
        failed = replace(self, solo_failures=self.solo_failures + 1)
        return failed if failed.solo_failures < allowed else failed.backing_off(reason, backoff_s)

    def backing_off(self, reason: str, backoff_s: float) -> "Lane":
        """Return it left out of the work for a while."""
        status, until = LaneStatus(LaneState.BACKING_OFF, reason), time.monotonic() + backoff_s
        return replace(self, status=status, backoff_until=until)
