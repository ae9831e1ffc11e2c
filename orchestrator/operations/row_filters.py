"""Triggers and rules of others on tables of ours: they may leave rows out, and no error says so.

The processes count the rows and wait (outbox.RowsSkipped); here it is seen from outside.
"""

from collections.abc import Iterator
from typing import NamedTuple

from psycopg.rows import args_row

from outbox import Connection, query
from outbox.admin import OUTBOX_TABLES

FIND_FILTERS = """
    SELECT 'trigger ' || pg_catalog.quote_ident(tgname) AS name, tgrelid::regclass::text AS table
      FROM pg_trigger
     WHERE tgrelid IN (SELECT pg_catalog.to_regclass(name)::oid
                         FROM pg_catalog.unnest(%(tables)s::text[]) AS name)
       AND NOT tgisinternal AND tgenabled IN ('O', 'A')
       AND tgtype::int & 3 = 3                                                -- BEFORE, FOR EACH ROW
 UNION ALL
    SELECT 'rule ' || pg_catalog.quote_ident(rulename), ev_class::regclass::text
      FROM pg_rewrite
     WHERE ev_class IN (SELECT pg_catalog.to_regclass(name)::oid
                          FROM pg_catalog.unnest(%(tables)s::text[]) AS name)
       AND ev_type <> '1' AND is_instead AND ev_enabled IN ('O', 'A')         -- not of SELECT
     ORDER BY 2, 1
"""


class RowFilter(NamedTuple):
    """A trigger or a rule, by its kind and name, and its table."""

    name: str
    table: str


def find_row_filters(conn: Connection) -> Iterator[str]:
    """Yield a line for each of them, with the remedy."""
    values = {"tables": [*OUTBOX_TABLES, "consumed_offsets", "dead_letters_handled", "repairs"]}
    for name, table in query(conn, args_row(RowFilter), FIND_FILTERS, values):
        yield (
            f"{name} of {table} may leave rows out, and then the processes wait: no other program"
            f" writes to this table: DROP {name} ON {table}"
        )
