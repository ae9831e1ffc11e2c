"""The checks of `doctor` on the work: do processes run, and what waits for one or for the operator?"""

from collections.abc import Iterable

from orchestrator.kafka.topics import count_members
from orchestrator.operations.doctor.check import Installation, Result, combine, counted
from orchestrator.operations.status import problems
from orchestrator.operations.status.input import count_dead_letters
from orchestrator.operations.status.status import count_consumers
from outbox import read_deferred_backlog
from outbox.admin import (
    count_backlog,
    count_parked,
    count_relays,
    list_relays_without_kafka,
    read_deferred_reasons,
    read_first_parked,
)


def failed(found: Iterable[str], if_none: str) -> Result:
    """Return a result that is failed if there is a problem."""
    return combine([("failed", problem) for problem in found], if_none)


def processes(installation: Installation) -> Result:
    """Count the processes that work, and find relays that Kafka does not answer."""
    consumers, relays = count_consumers(installation.conn), count_relays(installation.conn)
    group = installation.settings.consumer_group
    client = installation.client
    members = None if client is None else count_members(client, group)
    found = [
        *problems.missing_processes(consumers, members, relays),
        *problems.relays_cut_off(list_relays_without_kafka(installation.conn)),
    ]
    return failed(found, f"{counted(consumers, 'consumer')}, {counted(relays, 'relay')} connected")


def waiting_rows(installation: Installation) -> Result:
    """Look at the oldest row of each lane."""
    backlogs = count_backlog(installation.conn, at_most=1)
    found = problems.old_rows({one.lane: one.oldest_s for one in backlogs})
    return failed(found, f"none is older than {problems.OLD_S:.0f} s")


def parked_rows(installation: Installation) -> Result:
    """Count the rows that Kafka rejected."""
    parked = {one.reason: one.rows for one in count_parked(installation.conn)}
    return failed(problems.parked_rows(parked, read_first_parked(installation.conn)), "none")


def waiting_letters(installation: Installation) -> Result:
    """Count the dead letters of our input that wait."""
    installation.topic(installation.settings.dead_letter_topic)
    letters = count_dead_letters(installation.settings, installation.conn)
    return failed(problems.dead_letters(*letters), "none")


def deferred_workers(installation: Installation) -> Result:
    """Look for workers that are published and could not be set to deployed."""
    rows = read_deferred_backlog(installation.conn).rows
    found = problems.deferred_workers(read_deferred_reasons(installation.conn))
    return failed(found, f"{rows:,} just now" if rows else "none")
