"""The usual ways to write, by what the caller hands over: one INSERT, in the caller's transaction.

Invariant: the messages commit together with what they tell of. Where the driver would commit the
statement by itself it is not run. A write that is never awaited makes that transaction fail, since its
COMMIT would lose the messages in silence.

SQLAlchemy, Django and asyncpg are never imported: the object that the caller has brings them.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import psycopg
from psycopg.abc import AdaptContext
from psycopg.adapt import PyFormat
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from outbox.arrays import Array, ArrayDumper, bigints, byteas, texts, uuids
from outbox.columns import Columns
from outbox.errors import NotAwaited, NoTransaction
from outbox.postgres import hang_up

# The lane is decided here, unless the caller knows how many there are.
ENQUEUE = """
    INSERT INTO outbox (lane, topic, key, value, headers, aggregate_id)
    SELECT pg_catalog.mod(hash, coalesce($1::smallint, lanes))::smallint,
           topic, key, value, headers::json, aggregate_id
      FROM outbox_identity,
           unnest($2::bigint[], $3::text[], $4::bytea[], $5::bytea[], $6::text[], $7::uuid[])
           AS message (hash, topic, key, value, headers, aggregate_id)
"""
# The usual case: without arrays it takes a third less time.
ENQUEUE_ONE = """
    INSERT INTO outbox (lane, topic, key, value, headers, aggregate_id)
    SELECT pg_catalog.mod($1::bigint, coalesce($2::smallint, lanes))::smallint,
           $3::text, $4::bytea, $5::bytea, $6::text::json, $7::uuid
      FROM outbox_identity
"""


class Insert(NamedTuple):
    """A statement with its parameters."""

    statement: str
    parameters: tuple[object, ...]


def numbered(columns: Columns) -> Insert:
    """Return what inserts messages, for drivers that count parameters as $1 and take lists."""
    if len(columns.topics) > 1:
        return Insert(ENQUEUE, columns)
    return Insert(
        ENQUEUE_ONE, (columns.hashes[0], columns.lanes, *(column[0] for column in columns[2:]))
    )


def for_psycopg(columns: Columns, *, as_arrays: bool = True) -> Insert:
    """Return what inserts messages with psycopg; as_arrays: in binary, which client cursors cannot."""
    statement, parameters = numbered(columns)
    if as_arrays and statement is ENQUEUE:
        parameters = (
            columns.lanes,
            bigints(columns.hashes),
            texts(columns.topics),
            byteas(columns.keys),
            byteas(columns.values),
            texts(columns.headers),
            uuids(columns.aggregate_ids),
        )
    return Insert(PLACEHOLDERS[statement], parameters)


PLACEHOLDERS = {
    ENQUEUE: re.sub(r"\$\d", "%b", ENQUEUE),
    ENQUEUE_ONE: re.sub(r"\$\d", "%b", ENQUEUE_ONE),
}


class AsyncDriver(NamedTuple):
    """An asynchronous way to write. fail: make the transaction of the caller fail."""

    write: Callable[[Any, Columns], Awaitable[int]]
    fail: Callable[[Any], None]


def find_driver(conn: object) -> Callable[[Any, Columns], int]:
    """Return the synchronous way to write; it returns the number of rows. Raises TypeError."""
    kind = _kind_of(conn)
    if kind in DRIVERS:
        return DRIVERS[kind]
    hint = ": it is asynchronous: await enqueue_async(...)" if kind in ASYNC_DRIVERS else ""
    raise TypeError(
        "enqueue takes a Connection or Cursor of psycopg, a Session or Connection of SQLAlchemy, or"
        f" Django's connection, not {_name_of(conn)}{hint}"
    )


def find_async_driver(conn: object) -> AsyncDriver:
    """Return the asynchronous way to write. Raises TypeError."""
    kind = _kind_of(conn)
    if kind in ASYNC_DRIVERS:
        return ASYNC_DRIVERS[kind]
    hint = ": it is synchronous: call enqueue(...)" if kind in DRIVERS else ""
    raise TypeError(
        "enqueue_async takes an AsyncConnection or AsyncCursor of psycopg, an AsyncSession or"
        f" AsyncConnection of SQLAlchemy, or a connection of asyncpg, not {_name_of(conn)}{hint}"
    )


def _kind_of(conn: object) -> tuple[str, str]:
    """Return package and name of the listed class that an object is of, or inherits from."""
    for one in type(conn).__mro__:
        name = one.__module__.partition(".")[0], one.__name__
        if name in DRIVERS or name in ASYNC_DRIVERS:
            return name
    return "", ""


def _name_of(conn: object) -> str:
    return f"{type(conn).__module__}.{type(conn).__qualname__}"


# ---- psycopg --------------------------------------------------------------------------------------


def write_psycopg(conn: psycopg.Connection[Any] | psycopg.Cursor[Any], columns: Columns) -> int:
    """Write with psycopg, whatever cursors and rows the caller's connection makes."""
    statement, parameters = for_psycopg(columns)
    conn = conn.connection if isinstance(conn, psycopg.Cursor) else conn
    pipeline: AbstractContextManager[object] = conn.pipeline() if _in_pipeline(conn) else nullcontext()
    with pipeline:  # its end waits for the answer
        check_transaction(conn)
        use_arrays(conn)
        cursor = conn.cursor(row_factory=tuple_row)
        if not (may_prepare := _takes_arrays(conn)):
            cursor = psycopg.Cursor(conn, row_factory=tuple_row)
        cursor.execute(statement.encode(), parameters, prepare=may_prepare)
    return cursor.rowcount


async def write_psycopg_async(
    conn: psycopg.AsyncConnection[Any] | psycopg.AsyncCursor[Any], columns: Columns
) -> int:
    """Write with asynchronous psycopg."""
    statement, parameters = for_psycopg(columns)
    conn = conn.connection if isinstance(conn, psycopg.AsyncCursor) else conn
    pipeline: AbstractAsyncContextManager[object]
    pipeline = conn.pipeline() if _in_pipeline(conn) else nullcontext()
    async with pipeline:
        check_transaction(conn)
        use_arrays(conn)
        cursor = conn.cursor(row_factory=tuple_row)
        if not (may_prepare := _takes_arrays(conn)):
            cursor = psycopg.AsyncCursor(conn, row_factory=tuple_row)
        await cursor.execute(statement.encode(), parameters, prepare=may_prepare)
    return cursor.rowcount


AnyConnection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

# They write parameters into the statement, or count them as $1. The first are taken for poolers, too,
# on which a statement that was prepared is another's.
OTHER_CURSORS = (
    psycopg.ClientCursor,
    psycopg.AsyncClientCursor,
    psycopg.RawCursor,
    psycopg.AsyncRawCursor,
)


def _takes_arrays(conn: AnyConnection) -> bool:
    return not issubclass(conn.cursor_factory, OTHER_CURSORS)


def _in_pipeline(conn: AnyConnection) -> bool:
    return conn.pgconn.pipeline_status != PipelineStatus.OFF


def check_transaction(conn: AnyConnection) -> None:
    """Raise NoTransaction if the server would commit the next statement by itself."""
    if conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
        raise NoTransaction("with conn.transaction()")


def use_arrays(conn: AdaptContext) -> None:
    """Let a connection take arrays: it may have been opened before this package was imported."""
    adapters = conn.adapters
    if adapters.get_dumper(Array, PyFormat.BINARY) is not ArrayDumper:
        adapters.register_dumper(Array, ArrayDumper)


def fail_psycopg(conn: psycopg.AsyncConnection[Any] | psycopg.AsyncCursor[Any]) -> None:
    """Hang up: a connection that was closed would leave its block without an error."""
    hang_up(conn.connection if isinstance(conn, psycopg.AsyncCursor) else conn)


# ---- asyncpg --------------------------------------------------------------------------------------


async def write_asyncpg(conn: Any, columns: Columns) -> int:
    """Write with asyncpg, which commits each statement outside of a transaction."""
    if not conn.is_in_transaction():
        raise NoTransaction("async with conn.transaction()")
    statement, parameters = numbered(columns)
    answer: str = await conn.execute(statement, *parameters)
    return int(answer.rpartition(" ")[2])


# ---- SQLAlchemy -----------------------------------------------------------------------------------


def write_sqlalchemy(conn: Any, columns: Columns) -> int:
    """Write with a Session or a Connection of SQLAlchemy: its errors, events and log stay."""
    conn = conn.connection() if hasattr(conn, "get_bind") else conn
    if not (conn.dialect.name == "postgresql" and conn.dialect.driver in SQLALCHEMY_DRIVERS):
        raise TypeError(
            f"enqueue knows no {conn.dialect.name}+{conn.dialect.driver} of SQLAlchemy: take"
            " postgresql+psycopg, or postgresql+asyncpg"
        )
    if conn.connection.dbapi_connection.autocommit:
        raise NoTransaction("an isolation level other than AUTOCOMMIT")
    if conn.dialect.driver == "asyncpg":
        statement, parameters = numbered(columns)
    else:
        driver = conn.connection.driver_connection
        use_arrays(driver)
        statement, parameters = for_psycopg(columns, as_arrays=_takes_arrays(driver))
    return int(conn.exec_driver_sql(statement, parameters).rowcount)


SQLALCHEMY_DRIVERS = ("psycopg", "psycopg_async", "asyncpg")


async def write_sqlalchemy_async(conn: Any, columns: Columns) -> int:
    """Write with an AsyncSession or an AsyncConnection of SQLAlchemy."""
    return int(await conn.run_sync(write_sqlalchemy, columns))


def fail_sqlalchemy(conn: Any) -> None:
    """Refuse to commit the transaction: whatever is done with an error of a savepoint, and no other."""
    from sqlalchemy import event  # the caller's object comes from there

    session = getattr(conn, "sync_session", None)
    target = conn.sync_connection if session is None else session
    refused = target.get_transaction()  # None: not begun yet

    def refuse(*_: object) -> None:
        nonlocal refused
        refused = refused or target.get_transaction()
        if target.get_transaction() is refused:
            raise NotAwaited

    event.listen(target, "commit" if session is None else "before_commit", refuse)


def session_of(conn: Any) -> Any:
    """Return the session of this task, of an async_scoped_session: another task has another one."""
    return conn.registry() if hasattr(conn, "registry") else conn


# ---- Django ---------------------------------------------------------------------------------------


def write_django(conn: Any, columns: Columns) -> int:
    """Write with Django's connection, whose errors stay."""
    if conn.get_autocommit():
        raise NoTransaction("with transaction.atomic()")
    with conn.cursor() as cursor, conn.wrap_database_errors:
        driver = cursor.connection if conn.vendor == "postgresql" else None
        if not isinstance(driver, psycopg.Connection):
            raise TypeError(f"enqueue takes Django's PostgreSQL with psycopg 3, not {_name_of(driver)}")
        return write_psycopg(driver, columns)


DRIVERS: Mapping[tuple[str, str], Callable[[Any, Columns], int]] = {
    ("psycopg", "Connection"): write_psycopg,
    ("psycopg", "Cursor"): write_psycopg,
    ("sqlalchemy", "Session"): write_sqlalchemy,
    ("sqlalchemy", "scoped_session"): write_sqlalchemy,
    ("sqlalchemy", "Connection"): write_sqlalchemy,
    ("django", "ConnectionProxy"): write_django,
    ("django", "BaseDatabaseWrapper"): write_django,
}
ASYNC_DRIVERS: Mapping[tuple[str, str], AsyncDriver] = {
    ("psycopg", "AsyncConnection"): AsyncDriver(write_psycopg_async, fail_psycopg),
    ("psycopg", "AsyncCursor"): AsyncDriver(write_psycopg_async, fail_psycopg),
    ("asyncpg", "Connection"): AsyncDriver(write_asyncpg, lambda conn: conn.terminate()),
    ("asyncpg", "PoolConnectionProxy"): AsyncDriver(write_asyncpg, lambda conn: conn.terminate()),
    ("sqlalchemy", "AsyncSession"): AsyncDriver(write_sqlalchemy_async, fail_sqlalchemy),
    ("sqlalchemy", "async_scoped_session"): AsyncDriver(write_sqlalchemy_async, fail_sqlalchemy),
    ("sqlalchemy", "AsyncConnection"): AsyncDriver(write_sqlalchemy_async, fail_sqlalchemy),
}
