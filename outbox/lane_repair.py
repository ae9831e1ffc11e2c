"""A lane whose histories disagree, taken away from its owner to be repaired.

Invariant: who repairs a lane owns it as any owner does, under its advisory lock, with a new epoch and
after a fence. So nothing of the lane can be published, nor the lane row written, until the repair's
session ends; what was published by then is in the topics for good. The count starts again from the
marker in one Postgres transaction, and from then on both histories say `published`.

Which rows are in the topics already only their writer can know: it finds them between `seize` and
`restart`, and acknowledges them in the transaction of `restart`.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, cast
from uuid import UUID

import psycopg
from confluent_kafka import KafkaError, KafkaException

from outbox import store
from outbox.errors import OutboxError, OwnershipLost
from outbox.lane import Outcome, compare, disagreement
from outbox.membership import lock_class
from outbox.postgres import Connection
from outbox.publisher import RETRY_PAUSE_S, KafkaConfig, Marker, MarkerReader, Publisher
from outbox.store import LaneState

LOOK_S = 15.0  # for the marker; the brokers wait for a transaction that is still being decided


class LaneBusy(OutboxError):
    """The lane's owner does not let go of it."""


class Sight(NamedTuple):
    """How a lane stands. outcome: None if it moved on meanwhile, as a lane that works does."""

    lane: int
    batch_number: int
    marker: Marker | None
    outcome: Outcome | None

    @property
    def refusal(self) -> str | None:
        """Say in one line why the lane waits for a person, if it does."""
        if self.outcome is None or not self.outcome.refused:
            return None
        return disagreement(self.lane, self.outcome, self.marker, self.batch_number)


READ_LANES = "SELECT lane, batch_number, cardinality(inflight), epoch FROM outbox_lane ORDER BY lane"


def look(conn: Connection, markers: MarkerReader) -> list[Sight]:
    """Compare all lanes' markers and rows without touching either. Raises KafkaException.

    No fence, no lock: good for a first look, and not for a decision.
    """
    before = cast("list[tuple[int, int, int, int]]", conn.execute(READ_LANES).fetchall())
    found = read_patiently(markers, [lane for lane, *_ in before])
    after = set(conn.execute(READ_LANES).fetchall())
    sights = []
    for row in before:
        lane, batch_number, rows, _ = row
        outcome = compare(found[lane], batch_number, rows) if row in after else None
        sights.append(Sight(lane, batch_number, found[lane], outcome))
    return sights


# What a coordinator says for a moment that is just made, or moves to another broker.
COORDINATOR_MOVES = frozenset(
    {
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
    }
)


def read_patiently(markers: MarkerReader, lanes: Sequence[int]) -> dict[int, Marker | None]:
    """Return the lanes' markers; wait for their coordinator up to LOOK_S. Raises KafkaException."""
    limit = time.monotonic() + LOOK_S
    while True:
        try:
            return markers.read(lanes, LOOK_S)
        except KafkaException as error:
            if error.args[0].code() not in COORDINATOR_MOVES or time.monotonic() > limit:
                raise
        time.sleep(RETRY_PAUSE_S)


class SeizedLane(NamedTuple):
    """A lane that is ours, fenced. marker: the last word of Kafka."""

    lane: int
    epoch: int
    marker: Marker | None


# Longer than an owner backs off between two looks; all attempts together, longer than it takes
# Postgres to end the session of one that froze.
ATTEMPTS, ATTEMPT = 5, "6s"
SET_LOCK_TIMEOUT = "SELECT set_config('lock_timeout', %(timeout)s, false)"
WAIT_FOR_LOCK = "SELECT pg_advisory_lock(%(class)s, %(lane)s::int)"


def seize(
    conn: Connection, kafka: KafkaConfig, identity: UUID, markers: MarkerReader, lane: int
) -> SeizedLane:
    """Take the lane from its owner until the session of `conn` ends, and fence its producers.

    Raises LaneBusy or InDoubt.
    """
    _wait_for_lock(conn, identity, lane)
    epoch = store.take_lane(conn, lane)
    earlier = set(store.read_lanes(conn, {lane: epoch})[lane].senders(store.count_lanes(conn)))
    publisher = Publisher(kafka, identity, markers, lambda: None)
    try:
        list(publisher.fence(sorted(earlier - {lane})))
        publisher.start(lane)
        return SeizedLane(lane, epoch, publisher.read_markers([lane])[lane])
    finally:
        publisher.discard()


def _wait_for_lock(conn: Connection, identity: UUID, lane: int) -> None:
    """Drive the lane's owner out and take its place. Raises LaneBusy."""
    (usual,) = cast("tuple[str]", conn.execute("SHOW lock_timeout").fetchone())
    conn.execute(SET_LOCK_TIMEOUT, {"timeout": ATTEMPT})
    for _ in range(ATTEMPTS):
        store.take_lane(conn, lane)  # a refused owner finds this at its next look, and leaves
        with suppress(psycopg.errors.LockNotAvailable):  # or another owner came before us
            conn.execute(WAIT_FOR_LOCK, {"class": lock_class(identity), "lane": lane})
            conn.execute(SET_LOCK_TIMEOUT, {"timeout": usual})
            return
    raise LaneBusy(f"lane {lane}: its owner does not let go of it, try again")


def restart(conn: Connection, seized: SeizedLane) -> tuple[Outcome, LaneState, LaneState]:
    """Start the lane's count from the marker, unless it is not refused any more.

    Return why it was refused, and its state before and after. Without a marker the lane is as a new
    one: the next owner commits marker 0 before it claims. Raises OwnershipLost.
    """
    lane, epochs = seized.lane, {seized.lane: seized.epoch}
    before = store.lock_lanes(conn, epochs).get(lane)
    if before is None:
        raise OwnershipLost([lane])
    outcome = compare(seized.marker, before.batch_number, len(before.inflight))
    if not outcome.refused:
        return outcome, before, before
    after = LaneState(seized.marker.batch_number if seized.marker else 0, [], transactional_lane=lane)
    store.begin_batches(conn, epochs, {lane: after})
    return outcome, before, after
