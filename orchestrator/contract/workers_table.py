"""The table `workers` as it is found: the platform's own, adopted as it is if it has what is needed.

`setup` and each session of a process look at it before anything is written to it. What exactly once
needs and is not there is named, with the statement that mends it; what else differs does no harm.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from psycopg.rows import args_row

from outbox import Connection, DatabaseNotReady, query, scalars


class WorkersRefused(DatabaseNotReady):
    """The table `workers` is not what exactly once needs, or not where our role finds it."""


def check_workers(conn: Connection) -> None:
    """Raise WorkersRefused unless our role finds a table that we may write to."""
    if not adopt_workers(conn):
        path = ", ".join(scalars(conn, str, SEARCH_PATH))
        raise WorkersRefused(
            f"there is no table workers in a schema of the search_path ({path}): restore it, or create"
            " it with schema/001_workers.sql"
        )


def adopt_workers(conn: Connection) -> bool:
    """Return whether there is a table; False: there is none, and one may be created.

    Raises WorkersRefused if it is not the right one, or not the only one.
    """
    visible = find_visible(conn)
    if visible and (faults := [*find_faults(conn, visible)]):
        raise WorkersRefused("; ".join(faults))
    return visible is not None


# ---- where it is --------------------------------------------------------------------------------

SEARCH_PATH = "SELECT unnest(current_schemas(false))"

# Another program may have a table of that name: the platform's has one of these columns.
FIND_TABLES = """
    SELECT format('%%I.%%I', nspname, relname), quote_ident(nspname), quote_ident(current_user),
           pg_class.oid IS NOT DISTINCT FROM to_regclass('workers'),
           nspname = ANY (current_schemas(false)),
           has_schema_privilege(pg_namespace.oid, 'USAGE')
      FROM pg_class
      JOIN pg_namespace ON pg_namespace.oid = relnamespace
     WHERE relname = 'workers' AND relkind IN ('r', 'p', 'v', 'm', 'f')
       AND NOT pg_is_other_temp_schema(relnamespace)
       AND (pg_class.oid = to_regclass('workers')
            OR EXISTS (SELECT FROM pg_attribute
                        WHERE attrelid = pg_class.oid AND NOT attisdropped
                          AND attname = ANY(%(columns)s)))
     ORDER BY 4 DESC, nspname
"""
PLATFORM_COLUMNS = ["worker_id", "scenario_uuid"]


class FoundTable(NamedTuple):
    """A table `workers`. is_first: our statements mean it. is_usable: the role may use its schema."""

    name: str
    schema: str
    role: str
    is_first: bool
    is_on_path: bool
    is_usable: bool


def find_tables(conn: Connection) -> list[FoundTable]:
    """Return the tables of that name which may be the platform's, in all schemas; first ours."""
    return query(conn, args_row(FoundTable), FIND_TABLES, {"columns": PLATFORM_COLUMNS})


def find_visible(conn: Connection) -> str | None:
    """Return the name of the table that our statements mean; None: there is none at all.

    Raises WorkersRefused if there is another one that they may have to mean.
    """
    found = find_tables(conn)
    if not found:
        return None
    first = found[0]
    if not first.is_first:
        raise WorkersRefused(_not_on_path(first, scalars(conn, str, SEARCH_PATH)))
    if others := [table.name for table in found[1:] if table.is_on_path]:
        raise WorkersRefused(
            f"the search_path has more than one table workers: {first.name}, which would be used, and"
            f" {', '.join(others)}: keep the platform's alone: drop or rename the other, or take its"
            f" schema out of the search_path of role {first.role}"
        )
    return first.name


def _not_on_path(table: FoundTable, path: Sequence[str]) -> str:
    """Return what to do about a table that our role does not find, in place of a second one."""
    remedy = (
        f"ALTER ROLE {table.role} SET search_path = {', '.join([*path, table.schema])}"
        if table.is_usable
        else f"GRANT USAGE ON SCHEMA {table.schema} TO {table.role}, and have it in the search_path"
    )
    return (
        f"table {table.name} exists, and the search_path of role {table.role} ({', '.join(path)}) does"
        f" not show it: {remedy}; if it is another installation's, create ours with"
        " schema/001_workers.sql"
    )


# ---- what it is ---------------------------------------------------------------------------------


def find_faults(conn: Connection, table: str) -> Iterator[str]:
    """Yield what exactly once needs of the table and is not there, each with its remedy."""
    (kind,) = query(conn, args_row(TableKind), READ_KIND)
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
                f"{table} has no column {name}: ALTER TABLE {table} ADD COLUMN {name}"
                f" {needed.definition}"
            )
    if not kind.has_trigger:  # a trigger may fill them
        yield from _unfilled_faults(table, columns.values())
    if "worker_id" in columns:
        yield from _unique_faults(table, kind, query(conn, args_row(UniqueIndex), READ_UNIQUE_INDEXES))


class TableKind(NamedTuple):
    """What sort of relation it is. rules: those that rewrite what we write.

    children: tables that inherit from it. has_trigger: one before a row is inserted.
    """

    name: str
    is_other: bool
    is_partitioned: bool
    persistence: str
    children: Sequence[str]
    rules: Sequence[str]
    has_trigger: bool


READ_KIND = """
    SELECT CASE relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
                        WHEN 'f' THEN 'foreign table' ELSE 'table' END,
           relkind IN ('v', 'm', 'f'), relkind = 'p', relpersistence::text,
           ARRAY(SELECT inhrelid::regclass::text FROM pg_inherits
                  WHERE inhparent = pg_class.oid AND relkind = 'r' ORDER BY 1),
           ARRAY(SELECT quote_ident(rulename) FROM pg_rewrite
                  WHERE ev_class = pg_class.oid AND ev_type IN ('2', '3') AND ev_enabled <> 'D'
                  ORDER BY 1),
           EXISTS (SELECT FROM pg_trigger
                    WHERE tgrelid = pg_class.oid AND NOT tgisinternal AND tgenabled IN ('O', 'A')
                      AND tgtype & 7 = 7)                 -- BEFORE INSERT FOR EACH ROW
      FROM pg_class
     WHERE oid = to_regclass('workers')
"""


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


class Column(NamedTuple):
    """A column. base: its type without a length, that of a domain below it. labels: of an enum.

    length: the most characters it holds. is_required: NOT NULL; is_filled: it has a default.
    """

    name: str
    type: str
    base: str
    category: str
    length: int | None
    is_required: bool
    is_filled: bool
    is_generated: bool
    default: str | None
    labels: Sequence[str]


READ_COLUMNS = """
    SELECT attname::text, format_type(atttypid, atttypmod), format_type(base.oid, NULL),
           base.typcategory::text,
           CASE WHEN base.typname IN ('varchar', 'bpchar')
                THEN nullif(greatest(atttypmod, own.typtypmod), -1) - 4 END,
           attnotnull OR own.typnotnull,
           atthasdef OR attidentity <> '' OR own.typdefault IS NOT NULL,
           attgenerated <> '' OR attidentity = 'a',
           coalesce(pg_get_expr(adbin, adrelid), own.typdefault),
           ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = base.oid)
      FROM pg_attribute
      JOIN pg_type AS own ON own.oid = atttypid
      JOIN pg_type AS base ON base.oid = CASE own.typtype WHEN 'd' THEN own.typbasetype ELSE own.oid END
      LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
     WHERE attrelid = to_regclass('workers') AND attnum > 0 AND NOT attisdropped
     ORDER BY attnum
"""


def read_columns(conn: Connection) -> list[Column]:
    """Return the columns of the table."""
    return query(conn, args_row(Column), READ_COLUMNS)


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
            f" USING {column.name}::{wanted}"
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


class UniqueIndex(NamedTuple):
    """A unique index with worker_id in it. is_plain: of nothing else, and of all rows."""

    name: str
    constraint: str | None
    is_valid: bool
    is_immediate: bool
    is_plain: bool


# ON CONFLICT takes each index of exactly this column, and fails if one of them is deferrable.
READ_UNIQUE_INDEXES = """
    SELECT indexrelid::regclass::text,
           (SELECT quote_ident(conname) FROM pg_constraint
             WHERE conindid = indexrelid AND contype IN ('p', 'u')),
           indisvalid AND indisready, indimmediate,
           indpred IS NULL AND indexprs IS NULL AND indnkeyatts = 1
      FROM pg_index
      JOIN pg_attribute ON attrelid = indrelid AND attname = 'worker_id' AND NOT attisdropped
     WHERE indrelid = to_regclass('workers') AND indisunique
       AND (attnum = ANY (indkey::int2[]) OR pg_get_expr(indexprs, indrelid) LIKE '%worker_id%')
     ORDER BY 1
"""


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


# ---- what else writes to it ---------------------------------------------------------------------

READ_INSERT_TRIGGERS = """
    SELECT tgname::text
      FROM pg_trigger
     WHERE tgrelid = to_regclass('workers') AND NOT tgisinternal AND tgenabled IN ('O', 'A')
       AND tgtype & 4 = 4                                 -- INSERT
     ORDER BY 1
"""


def insert_triggers(conn: Connection) -> list[str]:
    """Return the names of the triggers that run when a worker is inserted."""
    return scalars(conn, str, READ_INSERT_TRIGGERS)
