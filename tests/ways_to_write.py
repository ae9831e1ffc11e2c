"""Every usual way in which a service writes its own rows, as a block that commits or rolls back."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from functools import partial
from typing import Any, NamedTuple
from uuid import uuid4

import asyncpg  # type: ignore[import-untyped]
import django  # type: ignore[import-untyped]
import psycopg
import psycopg_pool
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

from outbox import arrays, connect, transaction


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
