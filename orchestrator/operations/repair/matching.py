"""What a row of the outbox and its record have in common, whatever happened in between.

A deploy order is matched by its worker, a dead letter by the topic, offset and time of the record that
it was, a retried command by the dead letter that it was. So a command that is read again after a
restore, which gets a new row, is still found. Other rows have their message id alone, which a new row
would not have: that is enough for a parked row, which stays the same row.

A database may have several inputs, each with a consumer and settings of its own. Their rows are told by
what is in the database: the workers, and the inputs.
"""

import enum
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from confluent_kafka import Message as Record

from orchestrator.config.settings import Settings
from orchestrator.contract import workers
from orchestrator.contract.messages import order_ids, record_time_ms
from orchestrator.contract.records import LATEST_MS, hash_parts, headers_of
from orchestrator.kafka.reader import datetime_from_ms
from orchestrator.operations.dead_letters.headers import RETRY_OF, Header, origin_of
from orchestrator.operations.repair.inputs import read_inputs
from outbox import MESSAGE_ID_HEADER, Connection, Headers
from outbox.admin import ParkedRow


class Kind(enum.StrEnum):
    """What a row and its record are matched by."""

    ORDER = "order"
    LETTER = "letter"
    COMMAND = "command"
    MESSAGE = "message"


class Match(NamedTuple):
    """What a row and its record have in common, and when that was made."""

    kind: Kind
    key: UUID
    created_at: datetime


class Row(Protocol):
    """A row of the outbox, or a parked one."""

    @property
    def aggregate_id(self) -> UUID | None:
        """Whom it is about."""
        ...

    @property
    def headers(self) -> Headers:
        """Those of its message, in order."""
        ...


class Matcher:
    """Finds what the rows of a database can be matched by."""

    def __init__(self, conn: Connection, settings: Settings) -> None:
        self._conn = conn
        self._settings = settings
        self._inputs = {settings.input_topic, *read_inputs(conn)}

    def is_usual(self, topic: str, has_aggregate_id: bool) -> bool:
        """Return whether consumers and commands with our settings write such rows, or for an input."""
        if topic == self._settings.output_topic:
            return has_aggregate_id
        return topic == self._settings.dead_letter_topic or topic in self._inputs

    def match_rows(self, topic: str, rows: Collection[Row]) -> list[Match | None]:
        """Return for each row what it is matched by; None: it does not say what it was."""
        known = self._find_workers(topic, rows)
        return [self._match_row(topic, row, known) for row in rows]

    def _find_workers(self, topic: str, rows: Iterable[Row]) -> set[UUID]:
        """Return the workers that rows are about. Rows for another topic may be about anything."""
        ids = [row.aggregate_id for row in rows if row.aggregate_id]
        if topic == self._settings.output_topic:
            return set(ids)
        return workers.find_existing(self._conn, ids) if ids else set()

    def _match_row(self, topic: str, row: Row, known: Collection[UUID]) -> Match | None:
        if row.aggregate_id and row.aggregate_id in known:
            return match_order(row.aggregate_id)
        if topic in self._inputs:
            return match_command(row.headers)
        if topic == self._settings.dead_letter_topic or input_of(row.headers) in self._inputs:
            return match_letter(row.headers)
        return None


def match_order(worker: UUID) -> Match:
    """Match a deploy order by its worker, whose id begins with the command's time."""
    return Match(Kind.ORDER, worker, datetime_from_ms(record_time_ms(worker)))


def match_letter(headers: Iterable[Header]) -> Match | None:
    """Match a dead letter by the record that it was; None if its headers do not say.

    Whatever the group: an input is consumed once.
    """
    origin = origin_of(headers)
    if origin is None:
        return None
    parts = [origin.topic, origin.partition, origin.offset, origin.timestamp]
    return Match(Kind.LETTER, hash_parts(parts), origin.created_at)


def input_of(headers: Iterable[Header]) -> str | None:
    """Return the topic of the record that a dead letter was."""
    origin = origin_of(headers)
    return None if origin is None else origin.topic.decode("utf-8", "replace")


def match_command(headers: Iterable[Header]) -> Match | None:
    """Match a retried command by the dead letter that it was; None: it was none, the API sent it."""
    retry_of = dict(headers).get(RETRY_OF)
    if not isinstance(retry_of, bytes):
        return None
    return Match(Kind.COMMAND, hash_parts([retry_of]), datetime_from_ms(LATEST_MS))


def match_parked(row: ParkedRow, found: Match | None) -> Match:
    """Match a parked row, which has a message id at least. found: what it says that it was."""
    kind, key = (found.kind, found.key) if found else (Kind.MESSAGE, row.message_id)
    return Match(kind, key, row.created_at)


def key_of(kind: Kind, record: Record) -> UUID | None:
    """Return what a record would be matched by, as a row of this kind; None: it is none."""
    match kind:
        case Kind.ORDER:
            return order_ids(record).worker_id
        case Kind.LETTER:
            found = match_letter(headers_of(record))
        case Kind.COMMAND:
            found = match_command(headers_of(record))
        case Kind.MESSAGE:
            return message_id_of(headers_of(record))
    return found and found.key


def message_id_of(headers: Iterable[Header]) -> UUID | None:
    """Return the message id of a record: the last header of its name, which the relay adds."""
    found = dict(headers).get(MESSAGE_ID_HEADER)
    try:
        return UUID(found.decode()) if isinstance(found, bytes) else None
    except ValueError:  # another writer's
        return None
