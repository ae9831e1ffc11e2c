"""`explain`: all that is known of a worker or a scenario, on both sides."""

from collections.abc import Sequence
from typing import NamedTuple, TextIO
from uuid import UUID

from orchestrator.config.settings import Settings
from orchestrator.operations.dead_letters.letters import DeadLetter
from orchestrator.operations.explain.search import forms_of, search_dead_letters, search_input
from orchestrator.operations.explain.worker_history import (
    SHOWN,
    Found,
    Life,
    Waiting,
    begin,
    find_worker,
    find_workers_of,
    look_in_kafka,
    waiting_of,
)
from outbox import Connection
from outbox.admin import count_rows, search_parked


class Story(NamedTuple):
    """What is known of an id: orders, and what mentions it but made no worker, or not yet.

    letters: dead letters. parked: rows set aside that are no orders, the latest SHOWN. unread: commands
    not yet consumed. more_...: those left out beyond SHOWN; of workers whether there are any.
    unpublished: dead letters in the outbox, about whatever. unsearched: records of the input that are
    not consumed and were not looked through, at most.
    """

    id: UUID
    lives: Sequence[Life]
    more_lives: bool = False
    letters: Sequence[DeadLetter] = ()
    more_letters: int = 0
    parked: Sequence[Waiting] = ()
    unread: Sequence[Found] = ()
    more_unread: int = 0
    unpublished: int = 0
    unsearched: int = 0

    @property
    def known(self) -> bool:
        """Say whether anybody knows the id."""
        return bool(self.lives or self.letters or self.parked or self.unread)

    @property
    def complete(self) -> bool:
        """Say whether all was looked at where the id could be."""
        return not (self.unpublished or self.unsearched)


def explain(settings: Settings, conn: Connection, wanted: UUID, talk: TextIO | None) -> Story:
    """Find out all about a worker or a scenario. Raises psycopg.Error, KafkaException, TopicMissing."""
    if worker := find_worker(conn, wanted):
        return Story(wanted, look_in_kafka(settings, [begin(conn, worker)], talk))
    # In the order of a command's way: what moves on meanwhile is met again where it comes to.
    unread, unsearched = search_input(settings, conn, wanted)
    unpublished = count_rows(conn, settings.dead_letter_topic)
    parked = [waiting_of(row) for row in reversed(search_parked(conn, forms_of(wanted), SHOWN))]
    letters, more_letters = search_dead_letters(settings, conn, wanted, talk)
    workers = find_workers_of(conn, wanted)
    lives = look_in_kafka(settings, [begin(conn, row) for row in reversed(workers[:SHOWN])], talk)
    consumed = {life.command and life.command[:3] for life in lives}
    unread = [place for place in unread if place[:3] not in consumed]
    return Story(
        wanted,
        lives,
        more_lives=len(workers) > SHOWN,
        letters=letters,
        more_letters=more_letters,
        parked=parked,
        unread=unread[:SHOWN],
        more_unread=len(unread[SHOWN:]),
        unpublished=unpublished,
        unsearched=unsearched,
    )


def as_fields(story: Story) -> dict[str, object]:
    """Return the story for a script; of dead letters all but their content."""
    return {
        "id": story.id,
        "known": story.known,
        "complete": story.complete,
        "orders": [
            {
                **life._asdict(),
                "command": life.command and life.command._asdict(),
                "waiting": life.waiting and life.waiting._asdict(),
                "order": life.order and life.order._asdict(),
                "duplicates": [place._asdict() for place in life.duplicates],
            }
            for life in story.lives
        ],
        "more_orders": story.more_lives,
        "dead_letters": [
            {
                **letter.record_id._asdict(),
                "at": letter.at,
                "reason": letter.reason,
                "origin": letter.origin,
                "action": letter.action,
            }
            for letter in story.letters
        ],
        "more_dead_letters": story.more_letters,
        "dead_letters_not_published": story.unpublished,
        "parked": [row._asdict() for row in story.parked],
        "not_yet_consumed": [place._asdict() for place in story.unread],
        "more_not_yet_consumed": story.more_unread,
        "not_searched": story.unsearched,
    }
