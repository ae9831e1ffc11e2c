"""Every usual way to write into the outbox: in the caller's transaction, or not at all."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    suppress,
)
from typing import Any
from uuid import uuid4

import asyncpg  # type: ignore[import-untyped]
import django  # type: ignore[import-untyped]
import psycopg
import psycopg_pool
import pytest
import sqlalchemy as sa
from sqlalchemy.ext import asyncio as sa_async
from sqlalchemy.orm import Session

from outbox import (
    DatabaseNotReady,
    Message,
    NotAwaited,
    NoTransaction,
    connect,
    count_lanes,
    enqueue,
    enqueue_async,
    transaction,
)
from testkit.system import System
from tests.ways_to_write import (
    ASYNC_WAYS,
    WAYS,
    async_engine_of,
    async_psycopg,
    async_session,
    asyncpg_url,
    django_atomic,
    django_connection,
    engine_of,
    psycopg_way,
    sqlalchemy_session,
)

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


@pytest.mark.parametrize("messages", [MESSAGES, MESSAGES[:1]], ids=["many", "one"])
def test_without_a_number_of_lanes_nothing_is_written(system: System, messages: list[Message]) -> None:
    system.query("DELETE FROM outbox_identity")
    with psycopg_way(system.settings.database_url) as way:
        with pytest.raises(DatabaseNotReady, match="table outbox_identity is empty"):
            enqueue(way.conn, messages)
        enqueue(way.conn, [])
    assert system.query(ROWS) == []


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


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.filterwarnings("ignore:coroutine 'write_async' was never awaited")
def test_an_error_of_a_savepoint_does_not_end_the_refusal_of_its_transaction(
    system: System, driver: str
) -> None:
    async def forget(session: sa_async.AsyncSession) -> None:
        async with session.begin():
            await session.execute(sa.text("INSERT INTO deeds VALUES ('undone')"))
            enqueue_async(session, MESSAGES)  # type: ignore[unused-coroutine]
            with suppress(NotAwaited):
                async with session.begin_nested():
                    pass

    async def write() -> None:
        engine = async_engine_of(system.settings.database_url, driver)
        async with sa_async.AsyncSession(engine) as session:
            with pytest.raises(NotAwaited):
                await forget(session)
            async with session.begin():
                await session.execute(sa.text("INSERT INTO deeds VALUES ('done')"))

    system.query(CREATE_DEEDS)
    asyncio.run(write())
    assert system.query("SELECT deed FROM deeds") == [("done",)]


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
