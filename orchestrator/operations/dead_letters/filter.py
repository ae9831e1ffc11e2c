"""Which dead letters or parked rows an operator chooses."""

from dataclasses import dataclass
from datetime import datetime

Id = tuple[int, int]  # PARTITION:OFFSET of a dead letter, LANE:ID of a parked row


@dataclass(frozen=True)
class RecordFilter:
    """All conditions must match; one that is not set matches everything.

    reason: of a dead letter the whole reason, of a parked row a part of Kafka's. since, until: when it
    was written to the topic, or parked. key: the record's whole key.
    """

    ids: frozenset[Id] = frozenset()
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    key: bytes | None = None

    @property
    def is_empty(self) -> bool:
        """Return whether no condition is set."""
        return self == RecordFilter()

    def matches(self, record_id: Id, at: datetime, key: bytes | None) -> bool:
        """Return whether all conditions but the reason match."""
        return (
            (not self.ids or record_id in self.ids)
            and (self.since is None or at >= self.since)
            and (self.until is None or at < self.until)
            and (self.key is None or key == self.key)
        )

    def to_arguments(self) -> list[str]:
        """Return it as command-line arguments, for the table `repairs`; the key is masked."""
        arguments = [f"{first}:{second}" for first, second in sorted(self.ids)]
        arguments += ["--reason", self.reason] if self.reason else []
        arguments += ["--since", self.since.isoformat()] if self.since else []
        arguments += ["--until", self.until.isoformat()] if self.until else []
        return arguments + (["--key", "***"] if self.key is not None else [])
