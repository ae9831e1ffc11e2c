"""The writer's side: messages into the outbox, in the transaction that decides them."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import psycopg
from psycopg.rows import args_row
from psycopg.sql import SQL, Identifier

from outbox.columns import Columns, columns_of
from outbox.drivers import AsyncDriver, find_async_driver, find_driver, session_of
from outbox.errors import DatabaseNotReady, RowsSkipped
from outbox.pending_write import PendingWrite
from outbox.postgres import Connection, query

if TYPE_CHECKING:
    from sqlalchemy import Connection as SqlalchemyConnection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    from outbox.message import Message


class DjangoConnection(Protocol):
    """`django.db.connection`, or one of `django.db.connections`."""

    @property
    def in_atomic_block(self) -> bool:
        """Say whether it is in `atomic`."""


class AsyncpgConnection(Protocol):
    """`asyncpg.Connection`, or one of a pool."""

    def is_in_transaction(self) -> bool:
        """Say whether a transaction was begun."""


Writer: TypeAlias = (
    "psycopg.Connection[Any] | psycopg.Cursor[Any] | Session | scoped_session[Any]"
    " | SqlalchemyConnection | DjangoConnection"
)
AsyncWriter: TypeAlias = (
    "psycopg.AsyncConnection[Any] | psycopg.AsyncCursor[Any] | AsyncSession | async_scoped_session[Any]"
    " | AsyncConnection | AsyncpgConnection"
)


def enqueue(conn: Writer, messages: Message | Iterable[Message], lanes: int | None = None) -> None:
    """Insert messages, or one, into the outbox, in their order, inside the caller's transaction.

    conn: what the caller writes its own rows with. lanes: `count_lanes(conn)`, read once at start;
    None: the statement looks up how many there are. One statement for all messages.

    Raises TypeError for what it does not take, as an asynchronous connection; NoTransaction where the
    driver would commit the statement by itself; TypeError or ValueError, with the message's index and
    the field's name, for what cannot be sent; RowsSkipped if the table leaves a row out.
    """
    write = find_driver(conn)
    if (columns := columns_of(messages, lanes)).topics:
        check_inserted(columns, write(conn, columns))


def enqueue_async(
    conn: AsyncWriter, messages: Message | Iterable[Message], lanes: int | None = None
) -> Coroutine[Any, Any, None]:
    """Insert messages as `enqueue` does, with an asynchronous connection: to be awaited.

    If it is not, the transaction fails: nothing of it is committed without its messages. What is wrong
    with the arguments is raised at the call.
    """
    driver = find_async_driver(conn)
    conn, columns = session_of(conn), columns_of(messages, lanes)
    return PendingWrite(write_async(driver, conn, columns), partial(driver.fail, conn))


async def write_async(driver: AsyncDriver, conn: AsyncWriter, columns: Columns) -> None:
    """Insert the rows."""
    if columns.topics:
        check_inserted(columns, await driver.write(conn, columns))


def check_inserted(columns: Columns, inserted: int) -> None:
    """Raise DatabaseNotReady unless all rows were inserted."""
    if not inserted and columns.lanes is None:
        raise DatabaseNotReady(
            "no message was inserted: table outbox_identity is empty, or row-level security hides its"
            " row, or a trigger or a rule of outbox skips rows"
        )
    if inserted != len(columns.topics):
        raise RowsSkipped("INSERT", "outbox", len(columns.topics) - inserted)


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
