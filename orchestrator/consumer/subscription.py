"""The boundary between consuming, which knows no meaning of a record, and the service, which does."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar
from uuid import UUID

import psycopg
from confluent_kafka import Message as Record

from orchestrator.contract.records import Decided, RefusedRow
from outbox import Connection, Headers, Message

T = TypeVar("T")
Insert = Callable[[Connection, Sequence[T]], Sequence[UUID]]


@dataclass(frozen=True)
class Subscription(Generic[T]):
    """What is consumed, and what a service makes of it: the half that knows what a record means.

    kafka: librdkafka properties. check(conn): in every new session; raises DatabaseNotReady.
    parse(record, topic_id): the row that a record asks for, and the message about it; raises
    InvalidRecord, before it reads the record's headers. insert(conn, rows): writes them, in the
    transaction that moves the positions, and returns the aggregate ids of the messages to send; raises
    UniqueViolation if a row exists. Then records are read again, and `insert_ignoring_existing` returns
    the ids of the new rows. Both raise RefusedRow if the database left a row out without an error.
    explain_refusal(conn, error): what is wrong with a row; raises DatabaseNotReady if it is the table.
    aggregate_id(record, topic_id, headers): the id that a row of this record has.
    find_existing(conn, ids): those of them that have a row. repair_command(partition): the command that
    repairs a refused partition.
    """

    kafka: Mapping[str, str] = field(repr=False)  # it may hold a password
    group: str
    topic: str
    dead_letter_topic: str
    batch_size: int
    check: Callable[[Connection], None]
    parse: Callable[[Record, UUID], tuple[T, Message]]
    insert: Insert[T]
    insert_ignoring_existing: Insert[T]
    explain_refusal: Callable[[Connection, psycopg.Error], RefusedRow]
    aggregate_id: Callable[[Record, UUID, Headers], UUID]
    find_existing: Callable[[Connection, Sequence[UUID]], Collection[UUID]]
    repair_command: Callable[[int], str]


class ConsumerObserver(Protocol):
    """What a consumer reports, once a batch or rarer."""

    def tick(self) -> None:
        """Record that the loop is alive."""

    def consumed(
        self,
        accepted: int,
        duplicates: int,
        dead: Mapping[str, int],
        seconds: float,
        messages: Sequence[Message],
    ) -> None:
        """Count a committed batch. dead: dead letters by reason; seconds: of its transaction."""

    def decided(self, few: Sequence[Decided], accepted: int, dead: int) -> None:
        """Tell what became of the records of a committed batch. few: of each; none if it was large."""
