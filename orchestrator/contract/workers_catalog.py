"""What Postgres's catalogs say of the table `workers` that our statements mean."""

from collections.abc import Sequence
from typing import NamedTuple

from psycopg.rows import args_row

from outbox import Connection, query, scalars


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
           ARRAY(SELECT pg_catalog.quote_ident(rulename) FROM pg_rewrite
                  WHERE ev_class = pg_class.oid AND ev_type IN ('2', '3') AND ev_enabled <> 'D'
                  ORDER BY 1),
           EXISTS (SELECT FROM pg_trigger
                    WHERE tgrelid = pg_class.oid AND NOT tgisinternal AND tgenabled IN ('O', 'A')
                      AND tgtype::int & 7 = 7)            -- BEFORE INSERT FOR EACH ROW
      FROM pg_class
     WHERE oid = pg_catalog.to_regclass('workers')::oid
"""


def read_kind(conn: Connection) -> TableKind:
    """Return what sort of relation it is; there must be one."""
    (kind,) = query(conn, args_row(TableKind), READ_KIND)
    return kind


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
    SELECT attname::text,
           pg_catalog.format_type(atttypid, atttypmod), pg_catalog.format_type(base.oid, NULL),
           base.typcategory::text,
           CASE WHEN base.typname IN ('varchar', 'bpchar')
                THEN nullif(greatest(atttypmod, own.typtypmod), -1) - 4 END,
           attnotnull OR own.typnotnull,
           atthasdef OR attidentity <> '' OR own.typdefault IS NOT NULL,
           attgenerated <> '' OR attidentity = 'a',
           coalesce(pg_catalog.pg_get_expr(adbin, adrelid), own.typdefault),
           ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = base.oid)
      FROM pg_attribute
      JOIN pg_type AS own ON own.oid = atttypid
      JOIN pg_type AS base ON base.oid = CASE own.typtype WHEN 'd' THEN own.typbasetype ELSE own.oid END
      LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
     WHERE attrelid = pg_catalog.to_regclass('workers')::oid AND attnum > 0 AND NOT attisdropped
     ORDER BY attnum
"""


def read_columns(conn: Connection) -> list[Column]:
    """Return the columns of the table."""
    return query(conn, args_row(Column), READ_COLUMNS)


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
           (SELECT pg_catalog.quote_ident(conname) FROM pg_constraint
             WHERE conindid = indexrelid AND contype IN ('p', 'u')),
           indisvalid AND indisready, indimmediate,
           indpred IS NULL AND indexprs IS NULL AND indnkeyatts = 1
      FROM pg_index
      JOIN pg_attribute ON attrelid = indrelid AND attname = 'worker_id' AND NOT attisdropped
     WHERE indrelid = pg_catalog.to_regclass('workers')::oid AND indisunique
       AND (attnum = ANY (indkey::int2[])
            OR pg_catalog.pg_get_expr(indexprs, indrelid) LIKE '%worker_id%')
     ORDER BY 1
"""


def read_unique_indexes(conn: Connection) -> list[UniqueIndex]:
    """Return the unique indexes with worker_id in them."""
    return query(conn, args_row(UniqueIndex), READ_UNIQUE_INDEXES)


READ_INSERT_TRIGGERS = """
    SELECT tgname::text
      FROM pg_trigger
     WHERE tgrelid = pg_catalog.to_regclass('workers')::oid
       AND NOT tgisinternal AND tgenabled IN ('O', 'A')
       AND tgtype::int & 4 = 4                            -- INSERT
     ORDER BY 1
"""


def insert_triggers(conn: Connection) -> list[str]:
    """Return the names of the triggers that run when a worker is inserted."""
    return scalars(conn, str, READ_INSERT_TRIGGERS)
