"""The writer's side: messages into the outbox, in the transaction that decides them."""

from collections.abc import Sequence
from typing import NamedTuple

from psycopg.rows import args_row
from psycopg.sql import SQL, Identifier

from outbox import arrays
from outbox.errors import DatabaseNotReady, RowsSkipped
from outbox.message import Message, encode_headers, is_topic_name, lane_of
from outbox.postgres import Connection, query

ENQUEUE = """
    INSERT INTO outbox (lane, topic, key, value, headers, aggregate_id)
    SELECT lane, topic, key, value, headers::json, aggregate_id
      FROM unnest(%b::smallint[], %b::text[], %b::bytea[], %b::bytea[], %b::text[], %b::uuid[])
           AS message (lane, topic, key, value, headers, aggregate_id)
"""


def enqueue(conn: Connection, messages: Sequence[Message], lanes: int) -> None:
    """Insert messages into the outbox, in their order, inside the caller's transaction.

    lanes: `count_lanes(conn)`, read once at start. One statement for all messages. Raises ValueError if
    Kafka can have no such topic, RowsSkipped if the table leaves a row out.
    """
    if not messages:
        return
    for topic in {message.topic for message in messages}:
        if not is_topic_name(topic):
            raise ValueError(f"Kafka allows no topic of the name {topic!r}")
    headers = [encode_headers(m.headers) for m in messages]
    inserted = conn.execute(
        ENQUEUE,
        (
            arrays.smallints(
                lane_of_message(m.key, m.value, text, lanes)
                for m, text in zip(messages, headers, strict=True)
            ),
            arrays.texts(m.topic for m in messages),
            arrays.byteas(m.key for m in messages),
            arrays.byteas(m.value for m in messages),
            arrays.texts(headers),
            arrays.uuids(m.aggregate_id for m in messages),
        ),
        prepare=True,
    ).rowcount
    if inserted != len(messages):
        raise RowsSkipped("INSERT", "outbox", len(messages) - inserted)


def lane_of_message(key: bytes | None, value: bytes | None, headers: str | None, lanes: int) -> int:
    """Return the lane of a message; headers: as they are stored.

    Without a key only the content decides, nothing that this process remembers: a message that is
    written again after a restore must come to the lane that knows whether it was published.
    """
    return lane_of((headers or "").encode() + (value or b"") if key is None else key, lanes)


class Lanes(NamedTuple):
    """How many lanes there must be, and those that this session sees."""

    expected: int
    visible: list[int]


READ_LANES = """
    SELECT lanes, ARRAY(SELECT lane FROM outbox_lane ORDER BY lane)::int[]
      FROM outbox_identity
"""


def count_lanes(conn: Connection) -> int:
    """Return the number of lanes; it is fixed when the schema is made.

    Raises DatabaseNotReady if the rows of some are missing, or hidden from this session: a key would
    come to another lane.
    """
    for expected, visible in query(conn, args_row(Lanes), READ_LANES):
        check_lanes_visible(expected, visible)
        return expected
    raise DatabaseNotReady("table outbox_identity is empty: run the migration first")


def check_lanes_visible(expected: int, visible: Sequence[int]) -> None:
    """Raise DatabaseNotReady unless these are all lanes."""
    if list(visible) != list(range(expected)):
        missing = ", ".join(map(str, sorted(set(range(expected)).difference(visible)))) or "none"
        raise DatabaseNotReady(
            f"outbox_lane has {len(visible)} rows for {expected} lanes, missing: {missing}: they were"
            " deleted, or row-level security or the search_path hides them: see the runbook, Lanes"
            " missing"
        )


class IdSequence(NamedTuple):
    """Where the ids of the outbox come from. highest: id of a row; None if there is none."""

    schema: str
    name: str
    highest: int | None


FIND_ID_SEQUENCE = """
    SELECT nspname::text, relname::text,
           (SELECT max((SELECT max(id) FROM outbox WHERE outbox.lane = outbox_lane.lane))
              FROM outbox_lane)
      FROM pg_class
      JOIN pg_namespace ON pg_namespace.oid = relnamespace
     WHERE pg_class.oid = pg_catalog.pg_get_serial_sequence('outbox', 'id')::regclass::oid
"""
# numeric: beyond a bigint after the last.
NEXT_ID = SQL("SELECT last_value::numeric + is_called::int::numeric FROM {}")


def read_next_id(conn: Connection, schema: str, sequence: str) -> int:
    """Return the id that a sequence gives next."""
    ((next_id,),) = conn.execute(NEXT_ID.format(Identifier(schema, sequence))).fetchall()
    return int(str(next_id))


def check_id_sequence(conn: Connection) -> None:
    """Raise DatabaseNotReady if new rows would get ids of rows that wait, or come before them."""
    for schema, name, highest in query(conn, args_row(IdSequence), FIND_ID_SEQUENCE):
        next_id = read_next_id(conn, schema, name)
        if highest is not None and next_id <= highest:
            raise DatabaseNotReady(
                f"the sequence {name} was set back: it gives {next_id} next, and the outbox has ids up"
                f" to {highest}: SELECT setval('{schema}.{name}', {highest})"
            )
