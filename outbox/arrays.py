"""Arrays as Postgres takes them in binary: a statement writes all rows of a batch with a few of them.

psycopg's own lists ask each element for its type and dumper; these know it, in a third of the time.
`int.to_bytes` is what `UUID.bytes` calls, without the property.
The statement names the type (`%b::uuid[]`). Wire format: PostgreSQL, array_recv.
"""

import struct
from collections.abc import Iterable, Sequence
from uuid import UUID

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

ARRAY_HEADER = struct.Struct(
    ">iiIii"
).pack  # dimensions, flags, type of the elements, length, lower bound
INT4 = struct.Struct(">i").pack
NULL, UUID_LENGTH = INT4(-1), INT4(16)
INT2_ELEMENT, INT8_ELEMENT = (
    struct.Struct(">ih").pack,
    struct.Struct(">iq").pack,
)  # each with its length before it
BYTEA_OID, INT8_OID, INT2_OID, TEXT_OID, UUID_OID = 17, 20, 21, 25, 2950


class Array(bytes):
    """An array parameter, ready for the wire."""


class ArrayDumper(Dumper):
    """Hands an Array on as it is."""

    format = Format.BINARY

    def dump(self, obj: Array) -> Array:
        """Return what goes to the server."""
        return obj


psycopg.adapters.register_dumper(Array, ArrayDumper)


def uuids(values: Iterable[UUID | None]) -> Array:
    """Return a uuid[]."""
    return _array(
        UUID_OID, [NULL if v is None else UUID_LENGTH + v.int.to_bytes(16, "big") for v in values]
    )


def texts(values: Iterable[str | None]) -> Array:
    """Return a text[], for a session in UTF-8."""
    return byteas([None if v is None else v.encode() for v in values], TEXT_OID)


def byteas(values: Iterable[bytes | None], element: int = BYTEA_OID) -> Array:
    """Return a bytea[]."""
    return _array(element, [NULL if v is None else INT4(len(v)) + v for v in values])


def bigints(values: Iterable[int]) -> Array:
    """Return a bigint[]."""
    return _array(INT8_OID, [INT8_ELEMENT(8, v) for v in values])


def smallints(values: Iterable[int]) -> Array:
    """Return a smallint[]."""
    return _array(INT2_OID, [INT2_ELEMENT(2, v) for v in values])


def _array(element: int, values: Sequence[bytes]) -> Array:
    return Array(ARRAY_HEADER(1, 0, element, len(values), 1) + b"".join(values))
