"""The sequences of ids beside the ids of their tables: one that was set back gives ids that there are.

So it is on a logical replica that was promoted: sequences are not replicated.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from psycopg.rows import args_row

from orchestrator.contract.workers import read_id_sequence
from outbox import Connection, DatabaseNotReady, check_id_sequence, query, scalar
from outbox.admin import read_highest_id, read_next_id


class IdSource(NamedTuple):
    """The sequence of a table's ids. sequence: its name as SQL has it, in its schema.

    is_readable: our role may look at it, and at the ids.
    """

    table: str
    sequence: str
    schema: str
    name: str
    lowest: int
    highest: int
    is_readable: bool


READ_SOURCE = """
    SELECT %(table)s, pg_catalog.format('%%I.%%I', nspname, relname), nspname::text, relname::text,
           seqmin, seqmax,
           pg_catalog.has_sequence_privilege(seqrelid, 'SELECT')
               AND pg_catalog.has_column_privilege(pg_catalog.to_regclass(%(table)s), 'id', 'SELECT')
      FROM pg_sequence
      JOIN pg_class ON pg_class.oid = seqrelid
      JOIN pg_namespace ON pg_namespace.oid = relnamespace
     WHERE seqrelid = pg_catalog.to_regclass(%(sequence)s)::oid AND seqincrement > 0
"""
READ_SERIAL = "SELECT pg_catalog.pg_get_serial_sequence(%(table)s, 'id')"
# By table, whose sequence it is. What waits in the outbox the consumer compares (outbox.enqueue).
OUR_TABLES = {"outbox_parked": "outbox", "outbox_deferred": "outbox_deferred", "repairs": "repairs"}


def find_sources(conn: Connection) -> list[IdSource]:
    """Return the sequences of all tables whose ids come from one."""
    ids = read_id_sequence(conn)  # of an adopted table it may be another one than SERIAL's
    sequences = {"workers": ids and ids.sequence}
    for table, owner in OUR_TABLES.items():
        sequences[table] = scalar(conn, str, READ_SERIAL, {"table": owner})
    return [
        source
        for table, sequence in sequences.items()
        for source in query(
            conn, args_row(IdSource), READ_SOURCE, {"table": table, "sequence": sequence}
        )
    ]


def sequences_set_back(conn: Connection, sources: Sequence[IdSource]) -> Iterator[str]:
    """Yield a line for each sequence whose next id is given already, with its remedy."""
    for source in sources:
        if source.is_readable:
            next_id = read_next_id(conn, source.schema, source.name)
            highest = _highest_id(conn, source)
            if highest is not None and next_id <= highest:
                yield (
                    f"sequence {source.sequence} gives id {next_id:,} next, and {source.table} has"
                    f" ids up to {highest:,}: SELECT setval({source.sequence!r}, {highest})"
                )


def outbox_set_back(conn: Connection) -> Iterator[str]:
    """Yield a line if the outbox's own gives ids that come before rows that wait."""
    try:
        check_id_sequence(conn)
    except DatabaseNotReady as error:
        yield str(error)


# Those that another sequence gave before, or none, are no matter.
HIGHEST_WORKER_ID = "SELECT max(id) FROM workers WHERE id BETWEEN %(lowest)s AND %(highest)s"
HIGHEST_REPAIR_ID = "SELECT max(id) FROM repairs"


def _highest_id(conn: Connection, source: IdSource) -> int | None:
    """Return the highest id that the table has; None: it has none."""
    match source.table:
        case "workers":
            limits = {"lowest": source.lowest, "highest": source.highest}
            return scalar(conn, int, HIGHEST_WORKER_ID, limits)
        case "repairs":
            return scalar(conn, int, HIGHEST_REPAIR_ID)
        case table:
            return read_highest_id(conn, table)
