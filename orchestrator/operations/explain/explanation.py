"""`explain`: all that Postgres and Kafka know of a worker or a scenario."""

from collections.abc import Sequence
from typing import NamedTuple, TextIO
from uuid import UUID

from orchestrator.config.settings import Settings
from orchestrator.operations.dead_letters.letters import DeadLetter
from orchestrator.operations.explain.search import search_dead_letters, search_input, uuid_pattern
from orchestrator.operations.explain.worker_history import (
    MAX_SHOWN,
    FoundRecord,
    WorkerHistory,
    find_worker,
    find_workers_of_scenario,
    read_history,
)
from orchestrator.operations.explain.worker_records import add_records
from outbox import Connection
from outbox.admin import RowStatus, count_rows, search_parked


class Explanation(NamedTuple):
    """What is known of an id: its workers, and what mentions it and has no worker, or not yet.

    parked: rows about no worker. unread: commands that are not consumed yet. more_...: how many are
    left out beyond MAX_SHOWN; of workers, whether there are any. unpublished: dead letters in the
    outbox, about any id. unsearched: at most so many unconsumed records were not searched.
    """

    id: UUID
    workers: Sequence[WorkerHistory]
    more_workers: bool = False
    letters: Sequence[DeadLetter] = ()
    more_letters: int = 0
    parked: Sequence[RowStatus] = ()
    unread: Sequence[FoundRecord] = ()
    more_unread: int = 0
    unpublished: int = 0
    unsearched: int = 0

    @property
    def known(self) -> bool:
        """Return whether anything was found."""
        return bool(self.workers or self.letters or self.parked or self.unread)

    @property
    def complete(self) -> bool:
        """Return whether everything was searched that could mention the id."""
        return not (self.unpublished or self.unsearched)


def explain(settings: Settings, conn: Connection, wanted: UUID, progress: TextIO | None) -> Explanation:
    """Find out all about a worker or a scenario. Raises psycopg.Error, KafkaException, TopicMissing."""
    if worker := find_worker(conn, wanted):
        return Explanation(wanted, add_records(settings, [read_history(conn, worker)], progress))
    # In the order of a command's way: what moves on during the search is found again further on.
    unread, unsearched = search_input(settings, conn, wanted)
    unpublished = count_rows(conn, settings.dead_letter_topic)  # their content is not readable here
    parked = search_parked(conn, uuid_pattern(wanted), MAX_SHOWN)
    letters, more_letters = search_dead_letters(settings, conn, wanted, progress)
    latest = find_workers_of_scenario(conn, wanted, MAX_SHOWN + 1)
    histories = [read_history(conn, worker) for worker in reversed(latest[:MAX_SHOWN])]
    workers = add_records(settings, histories, progress)
    consumed = {history.command and history.command[:3] for history in workers}
    unread = [record for record in unread if record[:3] not in consumed]
    return Explanation(
        wanted,
        workers,
        more_workers=len(latest) > MAX_SHOWN,
        letters=letters,
        more_letters=more_letters,
        parked=parked[::-1],
        unread=unread[:MAX_SHOWN],
        more_unread=len(unread[MAX_SHOWN:]),
        unpublished=unpublished,
        unsearched=unsearched,
    )


def explanation_fields(found: Explanation) -> dict[str, object]:
    """Return the explanation for a script; of dead letters all but their content."""
    return {
        "id": found.id,
        "known": found.known,
        "complete": found.complete,
        "workers": [_history_fields(history) for history in found.workers],
        "more_workers": found.more_workers,
        "dead_letters": [
            {
                **letter.record_id._asdict(),
                "at": letter.at,
                "reason": letter.reason,
                "origin": letter.origin and letter.origin.name,
                "state": letter.state,
            }
            for letter in found.letters
        ],
        "more_dead_letters": found.more_letters,
        "dead_letters_not_published": found.unpublished,
        "parked": [row._asdict() for row in found.parked],
        "not_yet_consumed": [record._asdict() for record in found.unread],
        "more_not_yet_consumed": found.more_unread,
        "not_searched": found.unsearched,
    }


def _history_fields(history: WorkerHistory) -> dict[str, object]:
    return {
        **history.worker._asdict(),
        "command_time": history.command_time,
        "command": history.command and history.command._asdict(),
        "unsearched_offsets": history.unsearched_offsets,
        "row": history.row and history.row._asdict(),
        "deferred": history.deferred,
        "order": history.order and history.order._asdict(),
        "duplicates": [record._asdict() for record in history.duplicates],
    }
