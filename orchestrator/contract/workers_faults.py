"""What exactly once needs of the table `workers` and is not there, with the statement that mends it."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from orchestrator.contract.workers_catalog import (
    Column,
    TableKind,
    UniqueIndex,
    read_columns,
    read_kind,
    read_unique_indexes,
)
from outbox import Connection


def find_faults(conn: Connection, table: str) -> Iterator[str]:
    """Yield what exactly once needs of the table and is not there, each with its remedy."""
    kind = read_kind(conn)
    if kind.is_other:
        yield (
            f"{table} is a {kind.name}, and must be a table: have the platform's table itself as"
            " workers in the search_path"
        )
        return
    yield from _kind_faults(table, kind)
    columns = {one.name: one for one in read_columns(conn)}
    for name, needed in NEEDED.items():
        if name in columns:
            yield from _column_faults(table, columns[name], needed)
        else:
            yield (
                f"{table} has no column {name}, which is needed: ALTER TABLE {table} ADD COLUMN {name}"
                f" {needed.definition}"
            )
    if not kind.has_trigger:  # a trigger may fill them
        yield from _unfilled_faults(table, columns.values())
    if "worker_id" in columns:
        yield from _unique_faults(table, kind, read_unique_indexes(conn))


def _kind_faults(table: str, kind: TableKind) -> Iterator[str]:
    if kind.persistence == "u":
        yield f"{table} is UNLOGGED, a crash empties it: ALTER TABLE {table} SET LOGGED"
    if kind.persistence == "t":
        yield f"{table} is a temporary table, left in a session of a pooler: DROP TABLE {table}"
    for child in kind.children:
        yield (
            f"table {child} inherits from {table}, and no UNIQUE constraint sees both: ALTER TABLE"
            f" {child} NO INHERIT {table}"
        )
    for rule in kind.rules:
        yield f"rule {rule} of {table} rewrites what we write: DROP RULE {rule} ON {table}"


class NeededColumn(NamedTuple):
    """What a column must be. bases: its type; none: any sort of text."""

    definition: str
    bases: Sequence[str]


TEXT, ENUM = "S", "E"  # pg_type.typcategory
TIMESTAMPS = ("timestamp without time zone", "timestamp with time zone")
# What the processes write or compare; the operator's commands read more.
NEEDED = {
    "worker_id": NeededColumn("uuid UNIQUE", ["uuid"]),
    "scenario_uuid": NeededColumn("uuid", ["uuid"]),
    "camera_url": NeededColumn("text", []),
    "status": NeededColumn("varchar(50) NOT NULL DEFAULT 'pending'", []),
    "updated_at": NeededColumn("timestamp DEFAULT now()", TIMESTAMPS),
}
WRITTEN = ("worker_id", "scenario_uuid", "camera_url")  # of a new row; the others have their defaults
STATUSES = ("pending", "deployed")


def _column_faults(table: str, column: Column, needed: NeededColumn) -> Iterator[str]:
    alter = f"ALTER TABLE {table} ALTER COLUMN {column.name}"
    is_status = column.name == "status"
    if not _is_right_type(column, needed):
        wanted = needed.bases[0] if needed.bases else "text"
        yield (
            f"{table}.{column.name} is {column.type}, and must be {wanted}: {alter} TYPE {wanted}"
            f" USING CAST({column.name} AS {wanted})"
        )
    if column.is_generated:
        yield f"{table}.{column.name} is generated, and we write it: {alter} DROP EXPRESSION"
    if is_status and column.length is not None and column.length < max(map(len, STATUSES)):
        yield f"{table}.status is {column.type}, too short for 'deployed': {alter} TYPE varchar(50)"
    if is_status and column.category == ENUM:
        for status in STATUSES:
            if status not in column.labels:
                yield (
                    f"{table}.status is {column.type} without '{status}': ALTER TYPE {column.type} ADD"
                    f" VALUE '{status}'"
                )


def _is_right_type(column: Column, needed: NeededColumn) -> bool:
    if needed.bases:
        return column.base in needed.bases
    return (column.category == TEXT and column.base != "name") or (
        column.name == "status" and column.category == ENUM
    )


def _unfilled_faults(table: str, columns: Collection[Column]) -> Iterator[str]:
    """Yield the columns of a new row that we leave to their defaults, and that lack one."""
    for column in columns:
        alter = f"ALTER TABLE {table} ALTER COLUMN {column.name}"
        if column.name == "status":
            if "'pending'" not in (column.default or ""):
                yield f"{table}.status has not the default 'pending': {alter} SET DEFAULT 'pending'"
        elif column.is_required and not column.is_filled and column.name not in WRITTEN:
            yield (
                f"{table}.{column.name} is NOT NULL without a default, and we do not write it: {alter}"
                f" SET DEFAULT ..., or {alter} DROP NOT NULL"
            )


def _unique_faults(table: str, kind: TableKind, indexes: Sequence[UniqueIndex]) -> Iterator[str]:
    """Yield why a command that is read again could become a second worker."""
    plain = [one for one in indexes if one.is_plain]
    for one in plain:
        if not one.is_immediate:
            yield (
                f"constraint {one.constraint} of {table} is DEFERRABLE, too late for us: ALTER TABLE"
                f" {table} DROP CONSTRAINT {one.constraint}, ADD UNIQUE (worker_id)"
            )
        if not one.is_valid:
            yield (
                f"the unique index {one.name} of {table} is not valid: REINDEX INDEX CONCURRENTLY"
                f" {one.name}, after deleting workers that have the worker_id of another one"
            )
    if plain:
        return
    others = ", ".join(one.name for one in indexes)
    found = f" ({others}: partial, of an expression, or of more columns)" if others else ""
    remedy = (
        "no partitioned table can have that unless worker_id alone is its partition key"
        if kind.is_partitioned
        else f"ALTER TABLE {table} ADD UNIQUE (worker_id)"
    )
    yield f"{table}.worker_id has no UNIQUE constraint{found}: {remedy}"
