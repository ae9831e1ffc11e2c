"""What the user of a relay may choose, as its parts get it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from outbox.observer import Observer
from outbox.postgres import Connection
from outbox.timings import PRODUCTION, Timings

# Returns what it could not do: the ids, or a mapping of them to the reasons.
OnPublished = Callable[[Connection, Sequence[UUID]], Mapping[UUID, str] | Collection[UUID] | None]


@dataclass(frozen=True)
class RelayOptions:
    """See Relay for what each means."""

    on_published: OnPublished
    batch_size: int = 1000
    strict_fencing: bool = False
    observer: Observer = field(default_factory=Observer)
    timings: Timings = PRODUCTION
    repair_command: Callable[[int], str] = "repair lane {}".format
    topics: Collection[str] | None = None
