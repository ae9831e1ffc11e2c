"""Statements recorded from a session, and run again by plain libpq calls, without psycopg's work."""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import psycopg
from psycopg import pq
from psycopg._queries import PostgresQuery
from psycopg.abc import Params
from psycopg.adapt import Transformer

from outbox import Connection


class Call(NamedTuple):
    """A statement with its parameters in the format of the wire protocol. names: of the parameters."""

    query: bytes
    params: Sequence[pq.abc.Buffer]
    types: tuple[int, ...]
    formats: Sequence[pq.Format]
    names: Sequence[str]

    def with_array(self, name: str, array: bytes) -> "Call":
        """Return the call with another array as a parameter."""
        params = list(self.params)
        params[self.names.index(name)] = array
        return self._replace(params=params)


def record(conn: Connection) -> list[Call]:
    """Return a list that gets all statements of a session from now on."""
    calls: list[Call] = []

    class RecordingCursor(psycopg.Cursor[Any]):
        def execute(self, query: Any, params: Params | None = None, **options: Any) -> Self:
            encoded = PostgresQuery(Transformer(conn))
            encoded.convert(query, params)
            calls.append(
                Call(
                    encoded.query,
                    [value for value in encoded.params or [] if value is not None],
                    encoded.types,
                    encoded.formats or [],
                    encoded._order or [],
                )
            )
            return super().execute(query, params, **options)

    conn.cursor_factory = RecordingCursor
    return calls


class Plain:
    """Runs prepared statements without psycopg's own work."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn.pgconn
        self._names: dict[tuple[bytes, tuple[int, ...]], bytes] = {}

    def run(self, sql: bytes) -> None:
        """Run a statement without parameters."""
        check(self._conn.exec_(sql))

    def call(self, call: Call) -> pq.abc.PGresult:
        """Run a statement, which is prepared the first time; the result is binary."""
        kind = (call.query, call.types)
        if (name := self._names.get(kind)) is None:
            name = self._names[kind] = b"bench_%d" % len(self._names)
            check(self._conn.prepare(name, call.query, call.types))
        return check(self._conn.exec_prepared(name, call.params, call.formats, pq.Format.BINARY))


def check(result: pq.abc.PGresult) -> pq.abc.PGresult:
    """Return the result. Raises RuntimeError if the statement failed."""
    if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
        raise RuntimeError(result.get_error_message())
    return result


def column(result: pq.abc.PGresult, number: int) -> list[bytes]:
    """Return one column, in the format of the wire protocol."""
    values = (result.get_value(row, number) for row in range(result.ntuples))
    return [value for value in values if value is not None]


def array_of(oid: int, values: Sequence[bytes]) -> bytes:
    """Return an array in the format of the wire protocol."""
    head = struct.pack(">iiIii", 1, 0, oid, len(values), 1)
    length = struct.pack(">i", len(values[0])) if values else b""
    return head + b"".join(length + value for value in values)
