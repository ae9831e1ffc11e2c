"""A relay moved by hand, one step at a time: for tests and benchmarks, never in production.

Each step is the relay's own; what `Relay.run` adds is the order of the steps, the retries and the pauses.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from threading import Event

from outbox.lane import Lane
from outbox.membership import join, limit_silence
from outbox.message import OutboxRow
from outbox.observer import Observer
from outbox.postgres import Connection
from outbox.publisher import KafkaConfig, Marker, MarkerReader, Publisher
from outbox.session import OnPublished, Tenure
from outbox.store import read_identity, take_lane

MARKER_READ_S = 5.0


@dataclass(frozen=True)
class SteppedRelay:
    """A relay's session and its parts."""

    session: Tenure
    publisher: Publisher
    markers: MarkerReader
    conn: Connection

    def recover(self) -> None:
        """Decide what became of each lane's last batch: what every session begins with."""
        self.session._recover()

    def run_once(self) -> int:
        """Publish one batch and acknowledge the one before it; return the rows published."""
        return self.session.run_once()

    def claim(self, lane: int) -> list[OutboxRow]:
        """Do the Postgres half of a cycle alone: acknowledge a lane's batch, claim the next one."""
        return self.session._acknowledge_and_claim([lane]).get(lane, [])

    def acknowledge(self) -> None:
        """Acknowledge what was published, and claim nothing."""
        self.session._acknowledge()

    def drain(self) -> int:
        """Publish and acknowledge all that waits; return the rows published."""
        rows = 0
        while published := self.run_once():
            rows += published
        return rows

    def read_marker(self, lane: int) -> Marker | None:
        """Return a lane's marker in Kafka."""
        return self.markers.read([lane], MARKER_READ_S)[lane]


@contextmanager
def step_relay(
    conn: Connection,
    kafka: KafkaConfig,
    lanes: Sequence[int],
    on_published: OnPublished,
    *,
    marker_topic: str,
    batch_size: int = 1000,
    observer: Observer | None = None,
    publisher: type[Publisher] = Publisher,
    is_owner: bool = True,
) -> Iterator[SteppedRelay]:
    """Give a relay that owns these lanes, while the block runs; `recover` comes first.

    publisher: one that leaves something out shows what that costs. is_owner=False: take the epochs
    without the advisory locks, as a successor does whose predecessor still believes that it is the owner.
    """
    limit_silence(conn)
    identity = read_identity(conn)
    with ExitStack() as stack:
        markers = stack.enter_context(closing(MarkerReader(kafka, identity, marker_topic)))
        made = publisher(kafka, identity, markers, lambda: None)
        stack.callback(made.discard)
        session = Tenure(
            conn, identity, made, on_published, batch_size, Event(), observer or Observer()
        )
        if is_owner:
            join(conn, identity)
        for lane in lanes:
            if is_owner:
                session.owned.take(lane)
            else:
                session.owned.lanes[lane] = Lane(lane, take_lane(conn, lane))
        yield SteppedRelay(session, made, markers, conn)
