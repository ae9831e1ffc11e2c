"""The checks of `doctor` on tables that fill up over time: vacuum, and the ids of `workers`."""

from typing import NamedTuple

from psycopg.rows import args_row

from orchestrator.contract.workers import read_id_sequence
from orchestrator.operations.doctor.check import Installation, Result, combine
from orchestrator.operations.text import duration
from outbox import query, scalar
from outbox.admin import BUSY_TABLES

OLD_S = 300.0  # a transaction that lasts longer keeps dead rows from vacuum
MANY_TRANSACTIONS = 100_000  # where the age in seconds is hidden; an hour of work at some rates
# Vacuum is due after 5,000 dead rows in outbox, and a busy minute leaves more than these. In a large
# table it is due later: then twice its share of the rows are too many.
DEAD_ROWS = 100_000
VACUUM_LATE_S = 600.0


class Holder(NamedTuple):
    """What keeps dead rows alive. is_hidden: this role may not see its age."""

    name: str
    advice: str
    age_s: float | None
    transactions: int | None
    is_hidden: bool | None


# What keeps vacuum from removing dead rows of this database. For sessions of other roles
# pg_stat_activity shows the age only to pg_read_all_stats, but everyone sees how many transactions they
# hold back. Their kind is hidden, too: an autovacuum, which ends by itself, is one without a user.
HOLDERS = """
    SELECT pg_catalog.format('session %s of %s', pid,
                             coalesce(nullif(application_name, ''), '(no name)')),
           'let it end, or end it: SELECT pg_terminate_backend(' || pid::text || ')',
           extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age_s,
           pg_catalog.age(backend_xmin) AS transactions,
           datname IS NOT NULL AND query = '<insufficient privilege>' AS is_hidden
      FROM pg_stat_activity
     WHERE pid <> pg_backend_pid()
       AND (datname = current_database() OR datname IS NULL)
       AND usesysid IS NOT NULL
 UNION ALL
    SELECT pg_catalog.format('prepared transaction %L', pg_catalog.left(gid, 40)),
           'let its owner commit it or roll it back',
           extract(epoch FROM clock_timestamp() - prepared)::float8,
           pg_catalog.age(transaction),
           false
      FROM pg_prepared_xacts
     WHERE database = current_database()
 UNION ALL
    SELECT pg_catalog.format('%s replication slot %s',
                             CASE WHEN active THEN 'active' ELSE 'idle' END, slot_name),
           'let its reader catch up, or drop it if it is not needed',
           NULL,
           pg_catalog.age(xmin),
           false
      FROM pg_replication_slots
     ORDER BY age_s DESC NULLS LAST, transactions DESC NULLS LAST
"""
MAX_HOLDERS_NAMED = 5


def long_transactions(installation: Installation) -> Result:
    """Find what keeps dead rows from vacuum: the relay's claim reads through them."""
    rows = query(installation.conn, args_row(Holder), HOLDERS)
    remarks: list[Result] = []
    for name, advice, age_s, transactions, _ in rows:
        if age_s is not None and age_s > OLD_S:
            remarks.append(("warning", f"{name} has been open for {duration(age_s)}: {advice}"))
        elif transactions is not None and transactions > MANY_TRANSACTIONS:
            remarks.append(("warning", f"{name} holds back {transactions:,} transactions: {advice}"))
    if len(remarks) > MAX_HOLDERS_NAMED:
        more = len(remarks) - MAX_HOLDERS_NAMED
        remarks = [*remarks[:MAX_HOLDERS_NAMED], ("warning", f"and {more} more")]
    if any(is_hidden for *_, is_hidden in rows):
        text = f"none that this role may see is older than {duration(OLD_S)}"
        return combine(remarks, f"{text}: pg_read_all_stats shows it all")
    return combine(remarks, f"none is older than {duration(OLD_S)}")


class TableVacuum(NamedTuple):
    """A table's dead rows. due: more than these are too many. since_s: the last vacuum."""

    table: str
    is_off: bool
    dead: int
    due: float
    since_s: float


AUTOVACUUM = """
    SELECT pg_catalog.current_setting('autovacuum')::bool
           AND pg_catalog.current_setting('track_counts')::bool
"""
TABLES = """
    SELECT relation.oid::regclass::text,
           EXISTS (SELECT FROM pg_catalog.pg_options_to_table(reloptions)
                    WHERE option_name = 'autovacuum_enabled' AND NOT option_value::bool),
           coalesce(n_dead_tup, 0),
           greatest(%(dead)s::float8, 2::float8 * greatest(reltuples, 0)::float8 * coalesce(
               (SELECT option_value FROM pg_catalog.pg_options_to_table(reloptions)
                 WHERE option_name = 'autovacuum_vacuum_scale_factor'),
               pg_catalog.current_setting('autovacuum_vacuum_scale_factor'))::float8),
           extract(epoch FROM clock_timestamp() - coalesce(
               greatest(last_vacuum, last_autovacuum), pg_postmaster_start_time()))::float8
      FROM pg_class AS relation
      LEFT JOIN pg_stat_user_tables AS counted ON counted.relid = relation.oid
     WHERE relation.oid IN (SELECT pg_catalog.to_regclass(name)::oid
                              FROM pg_catalog.unnest(%(tables)s::text[]) AS name)
     ORDER BY 1
"""


def autovacuum(installation: Installation) -> Result:
    """Check that dead rows are removed: each row of the outbox becomes one within seconds."""
    remarks: list[Result] = []
    if not scalar(installation.conn, bool, AUTOVACUUM):
        text = "off for the whole server, tables only grow: set autovacuum and track_counts to on"
        remarks.append(("failed", text))
    values = {"dead": DEAD_ROWS, "tables": [*BUSY_TABLES, "consumed_offsets", "workers"]}
    rows = query(installation.conn, args_row(TableVacuum), TABLES, values)
    for table, is_off, dead, due, since_s in rows:
        if is_off:
            text = f"off for table {table}, which only grows: set its autovacuum_enabled to true"
            remarks.append(("failed", text))
        if dead > due and since_s > VACUUM_LATE_S:
            text = f"{table} has {dead:,} dead rows and no vacuum for {duration(since_s)}: end long"
            text += f" transactions, give autovacuum more workers, or run VACUUM {table}"
            remarks.append(("warning", text))
    return combine(remarks, f"on for {', '.join(row.table for row in rows)}" if rows else "on")


HALF_USED, ALMOST_ALL_USED = 0.5, 0.9


def workers_id_sequence(installation: Installation) -> Result:
    """Check how many ids `workers` has left: SERIAL ends at 2^31, and then nothing is accepted."""
    ids = read_id_sequence(installation.conn)
    if ids is None:
        return "skipped", "there is no column workers.id"
    if ids.sequence is None:
        return "ok", f"workers.id ({ids.type}) has no sequence as its default"
    used = ids.used
    if used is None:
        return "skipped", f"the role may not read {ids.sequence}: see `postgres permissions`"
    text = f"{used:.1%} of {ids.capacity:,} ids of workers.id ({ids.type}) are used"
    if used <= HALF_USED:
        return "ok", text
    advice = (
        f"when {ids.sequence} ends no command is accepted: make the column and the sequence bigint,"
        " after seeing that the API and the Runner can read it; the change rewrites the table and locks"
        " it"
    )
    return "failed" if used > ALMOST_ALL_USED else "warning", f"{text}: {advice}"
