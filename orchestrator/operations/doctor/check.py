"""What a check of `doctor` is given, and what it answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from confluent_kafka import Node
from confluent_kafka.admin import TopicDescription  # type: ignore[attr-defined]  # public

from orchestrator.config.settings import Settings
from orchestrator.kafka.topics import Admin
from outbox import Connection

State = Literal["ok", "warning", "failed", "unreachable", "skipped"]
GRAVITY: Sequence[State] = ("skipped", "ok", "warning", "failed", "unreachable")
SHOWN = 8  # partitions named in one line


class Finding(NamedTuple):
    """One check. text: what was seen and, unless that is good, what to do; no secret in it."""

    check: str
    state: State
    text: str


Answer = tuple[State, str]  # of a check: how it is, and what was seen


class Away(Exception):
    """A server that a check needs was not reached."""


POSTGRES_AWAY, KAFKA_AWAY = (f"not looked at: {one} is unreachable" for one in ("Postgres", "Kafka"))


@dataclass
class Site:
    """The installation, as far as the checks have come.

    connection, client: None as long as the server was not reached. brokers, topics: what Kafka said
    of itself. hidden: topics that it does not let us see.
    """

    settings: Settings
    connection: Connection | None = None
    client: Admin | None = None
    brokers: Sequence[Node] = ()
    topics: dict[str, TopicDescription] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)

    @property
    def conn(self) -> Connection:
        """Return the session on Postgres. Raises Away."""
        if self.connection is None:
            raise Away(POSTGRES_AWAY)
        return self.connection

    @property
    def admin(self) -> Admin:
        """Return the client for Kafka. Raises Away."""
        if self.client is None:
            raise Away(KAFKA_AWAY)
        return self.client

    @property
    def kafka(self) -> Mapping[str, str]:
        """Return what opens another client for a Kafka that was reached. Raises Away."""
        if self.client is None:
            raise Away(KAFKA_AWAY)
        return self.settings.kafka

    def close(self) -> None:
        """End the session on Postgres, if there is one."""
        if self.connection is not None:
            self.connection.close()

    def topic(self, name: str) -> TopicDescription:
        """Return what Kafka said of a topic. Raises Away."""
        if self.client is None:
            raise Away(KAFKA_AWAY)
        if name not in self.topics:
            raise Away(f"not looked at: topic {name} was not found: see `kafka topics`")
        return self.topics[name]


Check = Callable[[Site], Answer]


def all_of(remarks: Sequence[Answer], if_none: str) -> Answer:
    """Make one answer of many: as grave as the gravest of them."""
    if not remarks:
        return "ok", if_none
    states, texts = zip(*remarks, strict=True)
    return max(states, key=GRAVITY.index), "; ".join(texts)


def partitions(ids: Sequence[int]) -> str:
    """Return numbers of partitions in words, not too many."""
    shown = ", ".join(map(str, ids[:SHOWN])) + (", ..." if len(ids) > SHOWN else "")
    return f"partition{'s' * (len(ids) > 1)} {shown}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
