"""A lane: what its owner remembers of it, and what the evidence says of its batch in hand."""

import enum
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from outbox.message import OutboxRow
from outbox.publisher import Marker
from outbox.watermark import LowWater

RECOVERING, WORKING = "recovering", "working"  # states of a lane


class Outcome(enum.Enum):
    """What the evidence says of batch `batch_number`."""

    NEW_LANE = "new_lane"
    PUBLISHED = "published"
    NOT_PUBLISHED = "not_published"
    MARKER_AHEAD = "marker_ahead"
    MARKER_BEHIND = "marker_behind"
    MARKER_MISSING = "marker_missing"

    @property
    def refused(self) -> bool:
        """Say whether the lane waits for a person: its histories disagree."""
        return self in REFUSED


REFUSED = frozenset({Outcome.MARKER_AHEAD, Outcome.MARKER_BEHIND, Outcome.MARKER_MISSING})


def compare(marker: Marker | None, batch_number: int, rows: int) -> Outcome:
    """Decide from the marker in Kafka and the batch in Postgres. rows: of it, and not yet acknowledged.

    Sound only after a fence and under the lane row's lock. Ahead: Postgres went back in time, maybe to
    before the batch was narrowed. Behind or missing: the marker expired, was deleted, or is another
    outbox's.
    """
    if marker is None:
        return Outcome.MARKER_MISSING if batch_number else Outcome.NEW_LANE
    if marker.batch_number == batch_number:
        same = not rows or marker.rows in {None, rows}
        return Outcome.PUBLISHED if same else Outcome.MARKER_AHEAD
    if marker.batch_number == batch_number - 1:
        return Outcome.NOT_PUBLISHED
    return Outcome.MARKER_AHEAD if marker.batch_number > batch_number else Outcome.MARKER_BEHIND


def disagreement(lane: int, outcome: Outcome, marker: Marker | None, batch_number: int) -> str:
    """Say in one line why a lane is refused."""
    known = "missing" if marker is None else str(marker.batch_number)
    if marker and marker.batch_number == batch_number:
        known += f" with {marker.rows} rows"
    why = f"the marker in Kafka is {known}, the batch in Postgres is {batch_number}"
    return f"lane {lane}: {outcome.value}: {why}"


@dataclass
class Lane:
    """A lane while this relay owns it.

    epoch: from `take_lane`. state: for people: `recovering`, `working`, or why it waits or is refused.
    batch_number, rows: the batch known to be in Kafka, once it works. unacknowledged: its rows may still be there.
    failures: how often in a row it could not be sent though it was alone. rests_until: monotonic; it is
    left out until then, 0: it is not.
    fenced: lanes under whose transactional ids no earlier owner of it can send any more.
    alone_until: up to this id its rows go out one by one. marked_at: when its marker was last sent,
    monotonic.
    """

    number: int
    epoch: int
    state: str = RECOVERING
    refused: bool = False
    batch_number: int = 0
    rows: int | None = None
    unacknowledged: bool = True
    failures: int = 0
    rests_until: float = 0.0
    fenced: set[int] = field(default_factory=set)
    alone_until: int = 0
    marked_at: float = -math.inf
    low_water: LowWater = field(default_factory=LowWater)

    def published(self, rows: Sequence[OutboxRow]) -> None:
        """Take in that the batch in hand is in Kafka, or the marker once more."""
        self.marked_at = time.monotonic()
        self.failures = 0
        if rows and rows[-1].id >= self.alone_until:
            self.alone_until = 0
