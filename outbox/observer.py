"""What a relay tells the outside: override what you want to count."""

from collections.abc import Sequence

from outbox.message import OutboxRow


class Observer:
    """Called by the relay's thread, once a batch or rarer, but for `tick`.

    Methods must be quick and never raise.
    """

    def tick(self) -> None:
        """The relay's loop is alive. It ticks while it waits for a server, too."""

    def idle(self) -> None:
        """The lanes were looked at and are empty."""

    def phase(self, name: str, seconds: float) -> None:
        """One transaction took so long; name: `postgres` (acknowledge and claim) or `kafka`."""

    def published(self, rows: int, oldest_s: float) -> None:
        """A batch is in Kafka; oldest_s: from the enqueueing transaction to now, of its oldest row."""

    def sent(self, rows: Sequence[OutboxRow], took_s: float) -> None:
        """The same batch, row by row, for tracing; took_s: of the Kafka transaction that just ended."""

    def recovered(self, outcome: str) -> None:
        """A recovery came to a outcome; see `Outcome`."""

    def parked(self) -> None:
        """A row was set aside."""

    def lanes_owned(self, lanes: frozenset[int]) -> None:
        """The set of lanes worked by this relay changed."""
