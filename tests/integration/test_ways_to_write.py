"""Every usual way to write into the outbox: in the caller's transaction, or not at all."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from functools import partial
from typing import Any, NamedTuple
from uuid import uuid4

import asyncpg  # type: ignore[import-untyped]
import django  # type: ignore[import-untyped]
import psycopg
import psycopg_pool
import pytest
import sqlalchemy as sa
from django.conf import settings as django_settings  # type: ignore[import-untyped]
from django.db import connections  # type: ignore[import-untyped]
from django.db import transaction as django_transaction
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row, scalar_row
from psycopg.types.string import BytesBinaryDumper
from sqlalchemy.ext import asyncio as sa_async
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from outbox import (
    Message,
    NotAwaited,
    NoTransaction,
    arrays,
    connect,
    count_lanes,
    enqueue,
    enqueue_async,
    transaction,
)
from testkit.system import System

MESSAGES = [
    Message("paid", b"4711", b"\0\xff", [("größe\0", b"\xff"), ("none", None)], uuid4()),
    Message("paid", None, None),
    Message("paid", None, b"no key", (("n", b""),)),
    Message("paid", b"", b""),
]
ROWS = "SELECT lane, topic, key, value, headers::text, aggregate_id FROM outbox ORDER BY id"
CREATE_DEEDS = "CREATE TABLE deeds (deed text)"


class UndoneError(Exception):
    """Rolls a block back."""


class Way(NamedTuple):
    """What a service writes with. execute: a statement of the service; savepoint: a nested block."""

    conn: Any
    execute: Callable[[Any], Any]
    savepoint: Callable[[], Any]


Ways = Callable[[str], AbstractContextManager[Way]]
AsyncWays = Callable[[str], AbstractAsyncContextManager[Way]]

# ---- synchronous ----------------------------------------------------------------------------------


@contextmanager
def psycopg_way(url: str, **options: Any) -> Iterator[Way]:
    with psycopg.connect(url, **options) as conn:
        yield Way(conn, conn.execute, conn.transaction)


@contextmanager
def psycopg_block(url: str, **options: Any) -> Iterator[Way]:
    with psycopg.connect(url, autocommit=True, **options) as conn, conn.transaction():
        yield Way(conn, conn.execute, conn.transaction)


@contextmanager
def psycopg_pipeline(url: str) -> Iterator[Way]:
    with psycopg_block(url) as way, way.conn.pipeline():
        yield way


@contextmanager
def psycopg_cursor(url: str, **options: Any) -> Iterator[Way]:
    with psycopg.connect(url) as conn, conn.cursor(**options) as cursor:
        yield Way(cursor, conn.execute, conn.transaction)


@contextmanager
def psycopg_pool_way(url: str) -> Iterator[Way]:
    with psycopg_pool.ConnectionPool(url, min_size=1) as pool, pool.connection() as conn:
        yield Way(conn, conn.execute, conn.transaction)


@contextmanager
def opened_before_the_import(url: str) -> Iterator[Way]:
    """Yield a connection that knows no type of ours."""
    adapters = psycopg.adapt.AdaptersMap(psycopg.adapters)
    adapters.register_dumper(arrays.Array, BytesBinaryDumper)  # that of its base
    with psycopg_way(url, context=adapters) as way:
        yield way


@contextmanager
def own_connect(url: str) -> Iterator[Way]:
    with connect(url, "a service") as conn, transaction(conn):
        yield Way(conn, conn.execute, partial(transaction, conn))


def address_of(conninfo: str, driver: str = "") -> sa.URL:
    """Return the address of a database as a URL."""
    parts = conninfo_to_dict(conninfo)
    return sa.URL.create(
        f"postgresql+{driver}" if driver else "postgresql",
        username=str(parts["user"]),
        password=str(parts["password"]),
        host=str(parts["host"]),
        port=int(str(parts["port"])),
        database=str(parts["dbname"]),
    )


def engine_of(url: str, driver: str = "psycopg", **options: Any) -> sa.Engine:
    return sa.create_engine(address_of(url, driver), poolclass=NullPool, **options)


def executed(conn: Any, statement: str) -> Any:
    return conn.execute(sa.text(statement))


@contextmanager
def sqlalchemy_session(url: str, **options: Any) -> Iterator[Way]:
    with Session(engine_of(url, **options)) as session, session.begin():
        yield Way(session, partial(executed, session), session.begin_nested)


@contextmanager
def sqlalchemy_scoped(url: str) -> Iterator[Way]:
    sessions = scoped_session(sessionmaker(engine_of(url)))
    try:
        with sessions.begin():
            yield Way(sessions, partial(executed, sessions), sessions.begin_nested)
    finally:
        sessions.remove()


@contextmanager
def sqlalchemy_connection(url: str) -> Iterator[Way]:
    with engine_of(url).begin() as conn:
        yield Way(conn, partial(executed, conn), conn.begin_nested)


def django_connection(url: str, **options: Any) -> Any:
    """Return a connection of Django's with default settings, but for these options."""
    if not django_settings.configured:
        django_settings.configure(DATABASES={})
        django.setup()
    address, alias = address_of(url), uuid4().hex
    configured = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": address.database,
        "USER": address.username,
        "PASSWORD": address.password,
        "HOST": address.host,
        "PORT": address.port,
        "OPTIONS": options,
    }
    both = {"default": dict[str, Any](), alias: configured}
    connections.settings[alias] = connections.configure_settings(both)[alias]
    return connections[alias]


@contextmanager
def django_atomic(url: str, **options: Any) -> Iterator[Way]:
    conn = django_connection(url, **options)

    def execute(statement: str) -> None:
        with conn.cursor() as cursor:
            cursor.execute(statement)

    try:
        with django_transaction.atomic(conn.alias):
            yield Way(conn, execute, partial(django_transaction.atomic, conn.alias))
    finally:
        conn.close()


WAYS: dict[str, Ways] = {
    "psycopg": psycopg_way,
    "psycopg, autocommit and a block": psycopg_block,
    "psycopg, pipeline": psycopg_pipeline,
    "psycopg, rows as dictionaries": partial(psycopg_way, row_factory=dict_row),
    "psycopg, client cursors": partial(psycopg_way, cursor_factory=psycopg.ClientCursor),
    "psycopg, raw cursors": partial(psycopg_way, cursor_factory=psycopg.RawCursor),
    "psycopg, no prepared statements": partial(psycopg_way, prepare_threshold=None),
    "psycopg, LATIN1": partial(psycopg_way, client_encoding="latin1"),
    "psycopg, cursor": psycopg_cursor,
    "psycopg, cursor of scalars": partial(psycopg_cursor, row_factory=scalar_row),
    "psycopg, server cursor": partial(psycopg_cursor, name="named"),
    "psycopg, pool": psycopg_pool_way,
    "psycopg, older connection": opened_before_the_import,
    "outbox.connect": own_connect,
    "SQLAlchemy Session": sqlalchemy_session,
    "SQLAlchemy Session, client cursors": partial(
        sqlalchemy_session, connect_args={"cursor_factory": psycopg.ClientCursor}
    ),
    "SQLAlchemy scoped_session": sqlalchemy_scoped,
    "SQLAlchemy Connection": sqlalchemy_connection,
    "Django atomic": django_atomic,
    "Django atomic, binding by the server": partial(django_atomic, server_side_binding=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_messages_commit_with_what_they_tell_of(system: System, way: str) -> None:
    system.query(CREATE_DEEDS)
    for deed in ("done", "undone"):
        with (
            suppress(UndoneError),
            WAYS[way](system.settings.database_url) as (conn, execute, savepoint),
        ):
            execute(f"INSERT INTO deeds VALUES ('{deed}')")  # noqa: S608
            enqueue(conn, MESSAGES)
            for message in MESSAGES:
                enqueue(conn, message)
            with suppress(UndoneError), savepoint():
                enqueue(conn, MESSAGES * 2)
                raise UndoneError
            if deed == "undone":
                raise UndoneError
    assert system.query("SELECT deed FROM deeds") == [("done",)]
    assert_enqueued(system, MESSAGES * 2)


def assert_enqueued(system: System, messages: list[Message]) -> None:
    """Compare the rows with those of a writer that gives the number of lanes."""
    written = system.query(ROWS)
    with connect(system.settings.database_url, "a service") as conn, transaction(conn):
        enqueue(conn, messages, count_lanes(conn))
    assert written == system.query(ROWS)[len(written) :]


def alone_in_sqlalchemy(url: str) -> Iterator[Any]:
    with engine_of(url, isolation_level="AUTOCOMMIT").connect() as conn:
        yield conn
        with Session(conn) as session:
            yield session


def alone_in_psycopg(url: str) -> Iterator[Any]:
    with psycopg.connect(url, autocommit=True) as conn:
        yield conn
        yield conn.cursor()
        with conn.pipeline():
            conn.execute("SELECT 1")
            yield conn
        with conn.transaction():
            pass
        yield conn


def alone_in_django(url: str) -> Iterator[Any]:
    conn = django_connection(url)
    yield conn
    conn.close()


def alone_in_outbox(url: str) -> Iterator[Any]:
    with connect(url, "a service") as conn:
        yield conn


ALONE = [alone_in_psycopg, alone_in_outbox, alone_in_sqlalchemy, alone_in_django]


@pytest.mark.parametrize("alone", ALONE)
def test_a_statement_that_would_commit_by_itself_is_an_error(
    system: System, alone: Callable[[str], Iterator[Any]]
) -> None:
    for conn in alone(system.settings.database_url):
        with pytest.raises(NoTransaction, match="in the transaction of what they tell of"):
            enqueue(conn, MESSAGES)
    assert system.query(ROWS) == []


def test_errors_are_those_of_the_callers_library(system: System) -> None:
    system.query("DROP TABLE outbox")
    url = system.settings.database_url
    with pytest.raises(sa.exc.ProgrammingError), sqlalchemy_session(url) as way:
        enqueue(way.conn, MESSAGES)
    with pytest.raises(django.db.utils.ProgrammingError), django_atomic(url) as way:
        enqueue(way.conn, MESSAGES)
    with pytest.raises(psycopg.errors.UndefinedTable), psycopg_way(url) as way:
        enqueue(way.conn, MESSAGES)


def test_a_transaction_within_the_callers_is_a_savepoint(system: System) -> None:
    with connect(system.settings.database_url, "a service") as conn:
        with suppress(UndoneError), conn.transaction():
            with transaction(conn):
                enqueue(conn, MESSAGES)
            raise UndoneError
        assert system.query(ROWS) == []
        with conn.transaction():
            with suppress(UndoneError), transaction(conn):
                enqueue(conn, MESSAGES * 2)
                raise UndoneError
            enqueue(conn, MESSAGES)
    assert_enqueued(system, MESSAGES)


# ---- asynchronous ---------------------------------------------------------------------------------


@asynccontextmanager
async def async_psycopg(url: str, **options: Any) -> AsyncIterator[Way]:
    async with await psycopg.AsyncConnection.connect(url, **options) as conn:
        yield Way(conn, conn.execute, conn.transaction)


@asynccontextmanager
async def async_psycopg_block(url: str) -> AsyncIterator[Way]:
    async with async_psycopg(url, autocommit=True) as way, way.savepoint():
        yield way


@asynccontextmanager
async def async_psycopg_pipeline(url: str) -> AsyncIterator[Way]:
    async with async_psycopg_block(url) as way, way.conn.pipeline():
        yield way


@asynccontextmanager
async def async_psycopg_cursor(url: str) -> AsyncIterator[Way]:
    async with async_psycopg(url) as way, way.conn.cursor(row_factory=scalar_row) as cursor:
        yield way._replace(conn=cursor)


@asynccontextmanager
async def async_psycopg_pool(url: str) -> AsyncIterator[Way]:
    pool = psycopg_pool.AsyncConnectionPool(url, min_size=1, open=False)
    async with pool, pool.connection() as conn:
        yield Way(conn, conn.execute, conn.transaction)


def asyncpg_url(url: str) -> str:
    return address_of(url).render_as_string(hide_password=False)


@asynccontextmanager
async def asyncpg_block(url: str, **options: Any) -> AsyncIterator[Way]:
    conn = await asyncpg.connect(asyncpg_url(url), **options)
    try:
        async with conn.transaction():
            yield Way(conn, conn.execute, conn.transaction)
    finally:
        await conn.close()


@asynccontextmanager
async def asyncpg_pool(url: str) -> AsyncIterator[Way]:
    pool = asyncpg.create_pool(asyncpg_url(url), min_size=1)
    async with pool, pool.acquire() as conn, conn.transaction():
        yield Way(conn, conn.execute, conn.transaction)


def async_engine_of(url: str, driver: str, **options: Any) -> sa_async.AsyncEngine:
    return sa_async.create_async_engine(address_of(url, driver), poolclass=NullPool, **options)


@asynccontextmanager
async def async_session(url: str, driver: str) -> AsyncIterator[Way]:
    async with sa_async.AsyncSession(async_engine_of(url, driver)) as session, session.begin():
        yield Way(session, partial(executed, session), session.begin_nested)


@asynccontextmanager
async def async_scoped(url: str) -> AsyncIterator[Way]:
    made = sa_async.async_sessionmaker(async_engine_of(url, "asyncpg"))
    sessions = sa_async.async_scoped_session(made, asyncio.current_task)
    try:
        async with sessions.begin():
            yield Way(sessions, partial(executed, sessions), sessions.begin_nested)
    finally:
        await sessions.remove()


@asynccontextmanager
async def async_connection(url: str, driver: str) -> AsyncIterator[Way]:
    async with async_engine_of(url, driver).begin() as conn:
        yield Way(conn, partial(executed, conn), conn.begin_nested)


ASYNC_WAYS: dict[str, AsyncWays] = {
    "psycopg": async_psycopg,
    "psycopg, autocommit and a block": async_psycopg_block,
    "psycopg, pipeline": async_psycopg_pipeline,
    "psycopg, rows as dictionaries": partial(async_psycopg, row_factory=dict_row),
    "psycopg, client cursors": partial(async_psycopg, cursor_factory=psycopg.AsyncClientCursor),
    "psycopg, raw cursors": partial(async_psycopg, cursor_factory=psycopg.AsyncRawCursor),
    "psycopg, cursor": async_psycopg_cursor,
    "psycopg, pool": async_psycopg_pool,
    "asyncpg": asyncpg_block,
    "asyncpg, no prepared statements": partial(asyncpg_block, statement_cache_size=0),
    "asyncpg, pool": asyncpg_pool,
    "SQLAlchemy AsyncSession, psycopg": partial(async_session, driver="psycopg"),
    "SQLAlchemy AsyncSession, asyncpg": partial(async_session, driver="asyncpg"),
    "SQLAlchemy async_scoped_session": async_scoped,
    "SQLAlchemy AsyncConnection, psycopg": partial(async_connection, driver="psycopg"),
    "SQLAlchemy AsyncConnection, asyncpg": partial(async_connection, driver="asyncpg"),
}
async_ways = pytest.mark.parametrize("way", ASYNC_WAYS)


@async_ways
def test_messages_commit_with_what_they_tell_of_async(system: System, way: str) -> None:
    async def write(deed: str) -> None:
        with suppress(UndoneError):
            async with ASYNC_WAYS[way](system.settings.database_url) as (conn, execute, savepoint):
                await execute(f"INSERT INTO deeds VALUES ('{deed}')")  # noqa: S608
                await asyncio.create_task(enqueue_async(conn, MESSAGES))
                for message in MESSAGES:
                    await enqueue_async(conn, message)
                with suppress(UndoneError):
                    async with savepoint():
                        await enqueue_async(conn, MESSAGES * 2)
                        raise UndoneError
                if deed == "undone":
                    raise UndoneError

    system.query(CREATE_DEEDS)
    for deed in ("done", "undone"):
        asyncio.run(write(deed))
    assert system.query("SELECT deed FROM deeds") == [("done",)]
    assert_enqueued(system, MESSAGES * 2)


@async_ways
@pytest.mark.filterwarnings("ignore:coroutine 'write_async' was never awaited")
def test_a_write_that_is_not_awaited_commits_nothing(
    system: System, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def write() -> None:
        async with ASYNC_WAYS[way](system.settings.database_url) as (conn, execute, _):
            await execute("INSERT INTO deeds VALUES ('done')")
            enqueue_async(conn, MESSAGES)  # type: ignore[unused-coroutine]

    system.query(CREATE_DEEDS)
    with pytest.raises(Exception, match=r"(?i)not awaited|closed|terminated|connection"):
        asyncio.run(write())
    gc.collect()
    assert "messages not enqueued" in caplog.messages
    assert system.query("SELECT deed FROM deeds") == []
    assert system.query(ROWS) == []


async def alone_in_async_psycopg(url: str) -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        yield conn
        async with conn.pipeline():
            yield conn


async def alone_in_asyncpg(url: str) -> AsyncIterator[Any]:
    async with asyncpg.create_pool(asyncpg_url(url), min_size=1) as pool, pool.acquire() as conn:
        yield conn


async def alone_in_async_sqlalchemy(url: str) -> AsyncIterator[Any]:
    for driver in ("psycopg", "asyncpg"):
        engine = async_engine_of(url, driver, isolation_level="AUTOCOMMIT")
        async with engine.connect() as conn, sa_async.AsyncSession(conn) as session:
            yield conn
            yield session


@pytest.mark.parametrize("alone", [alone_in_async_psycopg, alone_in_asyncpg, alone_in_async_sqlalchemy])
def test_an_async_statement_that_would_commit_by_itself_is_an_error(
    system: System, alone: Callable[[str], AsyncIterator[Any]]
) -> None:
    async def write() -> None:
        async for conn in alone(system.settings.database_url):
            with pytest.raises(NoTransaction, match="in the transaction of what they tell of"):
                await enqueue_async(conn, MESSAGES)

    asyncio.run(write())
    assert system.query(ROWS) == []


# ---- what is not taken ----------------------------------------------------------------------------


def test_other_objects_are_refused_by_name(system: System) -> None:
    url = system.settings.database_url
    engine = engine_of(url)
    with psycopg_pool.ConnectionPool(url, min_size=1) as pool:
        for other in (pool, engine, url, None):
            with pytest.raises(TypeError, match=r"takes a Connection or Cursor of psycopg, .*, not "):
                enqueue(other, MESSAGES)  # type: ignore[arg-type]
    with psycopg.connect(url) as conn, pytest.raises(TypeError, match="call enqueue"):
        asyncio.run(enqueue_async(conn, MESSAGES))  # type: ignore[arg-type]

    async def mix() -> None:
        async with async_psycopg(url) as way, async_session(url, "asyncpg") as other:
            for conn in (way.conn, other.conn):
                with pytest.raises(TypeError, match="await enqueue_async"):
                    enqueue(conn, MESSAGES)

    asyncio.run(mix())
    with sa.create_engine("sqlite://").connect() as lite, pytest.raises(TypeError, match="sqlite"):
        enqueue(lite, MESSAGES)
    assert NotAwaited.__doc__
