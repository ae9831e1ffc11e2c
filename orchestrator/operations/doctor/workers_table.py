"""The checks of `doctor` on the table `workers` as it was found, and on the sequences of ids."""

from orchestrator.contract.workers_catalog import read_columns
from orchestrator.contract.workers_table import (
    FoundTable,
    WorkersRefused,
    check_workers,
    find_tables,
)
from orchestrator.operations.doctor.check import Installation, Result, combine
from orchestrator.operations.id_sequences import find_sources, sequences_set_back

# The processes do without them.
READ_BY_COMMANDS = {"id": "serial", "process_pid": "integer", "created_at": "timestamp DEFAULT now()"}


def workers_table(installation: Installation) -> Result:
    """Check that the table has what the processes need, and that it is the platform's."""
    conn = installation.conn
    try:
        check_workers(conn)
    except WorkersRefused as error:
        return "failed", str(error)
    table, *others = find_tables(conn)
    columns = {column.name for column in read_columns(conn)}
    remarks: list[Result] = [("warning", describe_other(table, other)) for other in others]
    for name, definition in READ_BY_COMMANDS.items():
        if name not in columns:
            text = f"{table.name} has no column {name}, which status, explain or audit reads"
            add = f"ALTER TABLE {table.name} ADD COLUMN {name} {definition}"
            remarks.append(("warning", f"{text}: {add}"))
    return combine(remarks, f"{table.name} has what the processes need")


def describe_other(table: FoundTable, other: FoundTable) -> str:
    """Return what to do about a second table of that name."""
    return (
        f"{other.name} is another table workers, which the search_path does not show: if the platform"
        f" uses that one, have {other.schema} in the search_path instead of {table.schema}"
    )


def id_sequences(installation: Installation) -> Result:
    """Compare the sequences with the ids of their tables."""
    sources = find_sources(installation.conn)
    remarks: list[Result] = [
        ("failed", text) for text in sequences_set_back(installation.conn, sources)
    ]
    unseen = ", ".join(source.sequence for source in sources if not source.is_readable)
    hint = f"; this role may not see {unseen}" if unseen else ""
    return combine(remarks, f"beyond the ids of their tables{hint}")
