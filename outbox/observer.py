"""What a relay reports: override what you want to count."""

from collections.abc import Sequence

from outbox.lane import Outcome
from outbox.message import OutboxRow


class Observer:
    """Called by the relay's thread, once a batch or less often, but for `tick`.

    Methods must be quick and never raise.
    """

    def tick(self) -> None:
        """The relay's loop is alive. It ticks while it waits for a server, too."""

    def idle(self) -> None:
        """The lanes were polled and are empty."""

    def claimed(self, rows: int, seconds: float) -> None:
        """A claim took so long: the statement, and loading large rows."""

    def transaction(self, server: str, seconds: float) -> None:
        """One transaction took so long; server: `postgres` (acknowledge and claim) or `kafka`."""

    def published(self, rows: Sequence[OutboxRow], oldest_s: float, took_s: float) -> None:
        """A batch is in Kafka.

        oldest_s: from the enqueueing transaction to now, of its oldest row. took_s: of the Kafka
        transaction, which ends now.
        """

    def recovered(self, outcome: Outcome) -> None:
        """A recovery found what became of a lane's batch."""

    def parked(self) -> None:
        """A row that Kafka rejects was parked."""

    def lanes_owned(self, lanes: frozenset[int]) -> None:
        """The set of lanes owned by this relay changed."""
