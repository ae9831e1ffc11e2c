"""A relay moved by hand, one step at a time: for tests and benchmarks, never in production.

Each step is the relay's own; what `Relay.run` adds is the order of the steps, the retries and the
pauses.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Event

from outbox.kafka_answers import KafkaAnswers
from outbox.kafka_calls import KafkaConfig
from outbox.lane import Lane
from outbox.lane_rows import read_identity
from outbox.membership import join, set_idle_timeout
from outbox.message import OutboxRow
from outbox.options import RelayOptions
from outbox.ownership import OwnedLanes
from outbox.postgres import Connection
from outbox.publisher import Publisher
from outbox.session import RelaySession


@dataclass(frozen=True)
class SteppedRelay:
    """A relay's session and its parts. stop: ends `session.run`."""

    session: RelaySession
    publisher: Publisher
    conn: Connection
    stop: Event

    def lane(self, number: int) -> Lane:
        """Return what the session knows of a lane."""
        return self.session.owned.lanes[number]

    def recover(self) -> None:
        """Decide what became of each lane's last batch: what every session begins with."""
        self.session.recovery.recover()

    def run_once(self) -> int:
        """Publish one batch and acknowledge the one before it; return the rows published."""
        return self.session.run_once()

    def claim(self, lane: int) -> list[OutboxRow]:
        """Do the Postgres half of a cycle alone: acknowledge a lane's batch, claim the next one."""
        return self.session.batches.acknowledge_and_claim([lane]).get(lane, [])

    def acknowledge(self) -> None:
        """Acknowledge what was published, and claim nothing."""
        self.session.finish()

    def drain(self) -> int:
        """Publish and acknowledge all that waits; return the rows published."""
        rows = 0
        while published := self.run_once():
            rows += published
        return rows


@contextmanager
def step_relay(
    conn: Connection,
    kafka: KafkaConfig,
    lanes: Sequence[int],
    options: RelayOptions,
    *,
    marker_topic: str,
    publisher: type[Publisher] = Publisher,
    is_owner: bool = True,
) -> Iterator[SteppedRelay]:
    """Give a relay that owns these lanes, while the block runs; `recover` comes first.

    publisher: one that leaves something out shows what that costs. is_owner=False: take the epochs
    without the advisory locks, as a successor does whose predecessor still believes that it is the
    owner.
    """
    identity, stop = read_identity(conn), Event()
    with ExitStack() as stack:
        made = publisher(kafka, identity, marker_topic, lambda: None, options.timings)
        stack.callback(made.discard)
        answers = KafkaAnswers(options.timings)
        owned = OwnedLanes(conn, identity, answers, options)
        session = RelaySession(conn, owned, made, answers, options, stop)
        if is_owner:
            join(conn, identity)
        set_idle_timeout(conn, options.timings.session_silence_s)
        take = session.owned.take if is_owner else session.owned.take_epoch
        for lane in lanes:
            take(lane)
        yield SteppedRelay(session, made, conn, stop)
