"""What a check of `doctor` is given, and what it returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from confluent_kafka import Node
from confluent_kafka.admin import TopicDescription  # type: ignore[attr-defined]  # public

from orchestrator.config.settings import Settings
from orchestrator.kafka.topics import Admin
from outbox import Connection

CheckState = Literal["ok", "warning", "failed", "unreachable", "skipped"]
SEVERITY: Sequence[CheckState] = ("skipped", "ok", "warning", "failed", "unreachable")

Result = tuple[CheckState, str]  # of a check: its state, and what was found


class Finding(NamedTuple):
    """One check. text: what was found and, unless that is good, what to do; without secrets."""

    check: str
    state: CheckState
    text: str


class Unreachable(Exception):
    """A server that the check needs could not be reached."""


POSTGRES_UNREACHABLE = "not checked: Postgres is unreachable"
KAFKA_UNREACHABLE = "not checked: Kafka is unreachable"


@dataclass
class Installation:
    """The installation, as far as the checks know it yet.

    connection, client: None as long as the server was not reached. brokers, topics: from Kafka's
    metadata. hidden_topics: those that this user may not see.
    """

    settings: Settings
    connection: Connection | None = None
    client: Admin | None = None
    brokers: Sequence[Node] = ()
    topics: dict[str, TopicDescription] = field(default_factory=dict)
    hidden_topics: set[str] = field(default_factory=set)

    @property
    def conn(self) -> Connection:
        """Return the session on Postgres. Raises Unreachable."""
        if self.connection is None:
            raise Unreachable(POSTGRES_UNREACHABLE)
        return self.connection

    @property
    def admin(self) -> Admin:
        """Return the client for Kafka. Raises Unreachable."""
        if self.client is None:
            raise Unreachable(KAFKA_UNREACHABLE)
        return self.client

    @property
    def kafka(self) -> Mapping[str, str]:
        """Return the configuration for another client, once Kafka was reached. Raises Unreachable."""
        if self.client is None:
            raise Unreachable(KAFKA_UNREACHABLE)
        return self.settings.kafka

    def close(self) -> None:
        """Close the session on Postgres, if there is one."""
        if self.connection is not None:
            self.connection.close()

    def topic(self, name: str) -> TopicDescription:
        """Return Kafka's description of a topic. Raises Unreachable."""
        if self.client is None:
            raise Unreachable(KAFKA_UNREACHABLE)
        if name not in self.topics:
            raise Unreachable(f"not checked: topic {name} was not found: see `kafka topics`")
        return self.topics[name]


Check = Callable[[Installation], Result]


def combine(remarks: Sequence[Result], if_none: str) -> Result:
    """Return one result for several remarks, as severe as the most severe one."""
    if not remarks:
        return "ok", if_none
    states, texts = zip(*remarks, strict=True)
    return max(states, key=SEVERITY.index), "; ".join(texts)


MAX_NAMED = 8  # partitions in one line


def name_partitions(ids: Sequence[int]) -> str:
    """Return partition numbers as text, not too many."""
    shown = ", ".join(map(str, ids[:MAX_NAMED])) + (", ..." if len(ids) > MAX_NAMED else "")
    return f"partition{'s' * (len(ids) > 1)} {shown}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
