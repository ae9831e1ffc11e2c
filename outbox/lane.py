"""A lane: what its owner remembers of it, and what the evidence says of its batch in hand."""

import enum
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from outbox.low_water import LowWater
from outbox.message import OutboxRow
from outbox.publisher import Marker

RECOVERING, WORKING = "recovering", "working"  # states of a lane


class Verdict(enum.Enum):
    """What the evidence says of batch `seq`."""

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


REFUSED = frozenset({Verdict.MARKER_AHEAD, Verdict.MARKER_BEHIND, Verdict.MARKER_MISSING})


def compare(marker: Marker | None, seq: int, rows: int) -> Verdict:
    """Decide from the marker in Kafka and the batch in Postgres. rows: of it, and not yet settled.

    Sound only after a fence and under the lane row's lock. Ahead: Postgres went back in time, maybe to
    before the batch was narrowed. Behind or missing: the marker expired, was deleted, or is another
    outbox's.
    """
    if marker is None:
        return Verdict.MARKER_MISSING if seq else Verdict.NEW_LANE
    if marker.seq == seq:
        same = not rows or marker.rows in {None, rows}
        return Verdict.PUBLISHED if same else Verdict.MARKER_AHEAD
    if marker.seq == seq - 1:
        return Verdict.NOT_PUBLISHED
    return Verdict.MARKER_AHEAD if marker.seq > seq else Verdict.MARKER_BEHIND


def disagreement(lane: int, verdict: Verdict, marker: Marker | None, seq: int) -> str:
    """Say in one line why a lane is refused."""
    known = "missing" if marker is None else str(marker.seq)
    if marker and marker.seq == seq:
        known += f" with {marker.rows} rows"
    why = f"the marker in Kafka is {known}, the batch in Postgres is {seq}"
    return f"lane {lane}: {verdict.value}: {why}"


@dataclass
class Lane:
    """A lane while this relay owns it.

    epoch: from `take_lane`. state: for people: `recovering`, `working`, or why it waits or is refused.
    seq, rows: the batch known to be in Kafka, once it works. unsettled: its rows may still be there.
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
    seq: int = 0
    rows: int | None = None
    unsettled: bool = True
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
