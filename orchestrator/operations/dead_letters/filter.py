"""Which dead letters or parked rows a person means."""

from dataclasses import dataclass
from datetime import datetime

Place = tuple[int, int]  # partition and offset of a dead letter, lane and id of a parked row


@dataclass(frozen=True)
class Selection:
    """All that holds of each one that is meant; what is empty says nothing.

    places: these alone. reason: of a letter, exactly; of a parked row a part of Kafka's word for it.
    since, until: when it was written to the topic, or parked. key: of the record, exactly.
    """

    places: frozenset[Place] = frozenset()
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    key: bytes | None = None

    @property
    def means_all(self) -> bool:
        """Say whether nothing was said at all."""
        return self == Selection()

    def takes(self, place: Place, at: datetime, key: bytes | None) -> bool:
        """Say whether one is meant, but for its reason."""
        return (
            (not self.places or place in self.places)
            and (self.since is None or at >= self.since)
            and (self.until is None or at < self.until)
            and (self.key is None or key == self.key)
        )

    def words(self) -> list[str]:
        """Return it as it was said, for the table `repairs`; a key stays untold."""
        said = [f"{first}:{second}" for first, second in sorted(self.places)]
        said += ["--reason", self.reason] if self.reason else []
        said += ["--since", self.since.isoformat()] if self.since else []
        said += ["--until", self.until.isoformat()] if self.until else []
        return said + (["--key", "***"] if self.key is not None else [])
