"""Search by text for what mentions an id but has no worker, or not yet: commands and dead letters.

What could not be searched is counted: `explain` says that an id is unknown only if that is known.
"""

import re
from functools import lru_cache
from operator import attrgetter
from typing import TextIO
from uuid import UUID

from orchestrator.config.settings import Settings
from orchestrator.consumer import offsets
from orchestrator.consumer.offsets import Position
from orchestrator.consumer.refusals import find_refusal
from orchestrator.kafka import topics
from orchestrator.kafka.reader import OffsetRange, find_ranges, read_ranges
from orchestrator.operations.dead_letters.filter import RecordFilter
from orchestrator.operations.dead_letters.letters import (
    DeadLetter,
    LetterState,
    find_dead_letters,
    read_dead_letters,
)
from orchestrator.operations.explain.worker_history import MAX_SHOWN, FoundRecord, found_record
from outbox import Connection

MAX_SEARCHED = 100_000  # unconsumed records that are searched, in all partitions together


def uuid_pattern(wanted: UUID) -> str:
    """Return a regular expression for how a command may write the id; ignore the case."""
    return f"{wanted}|{wanted.hex}"


def mentions(wanted: UUID, key: bytes | None, value: bytes | None) -> bool:
    """Return whether a record has the id in its key or value, even if it is not valid JSON."""
    search = _compile_pattern(wanted).search
    return bool(search(key or b"") or search(value or b""))


@lru_cache(maxsize=1)  # all records of a search are compared with one id
def _compile_pattern(wanted: UUID) -> re.Pattern[bytes]:
    return re.compile(uuid_pattern(wanted).encode(), re.IGNORECASE)


def search_input(settings: Settings, conn: Connection, wanted: UUID) -> tuple[list[FoundRecord], int]:
    """Return the unconsumed commands that mention the id, and how many records were not searched.

    Each partition that has unconsumed records gets its share of MAX_SEARCHED.
    """
    admin, topic = topics.Admin(settings.kafka), settings.input_topic
    # Before the logs: a position must not be ahead of its high watermark.
    positions = offsets.read_positions(conn, topic)
    topic_id, logs = topics.read_topic_id(admin, topic), find_ranges(admin, topic)
    unread = {p: _unconsumed(positions.get(p), topic_id, log) for p, log in logs.items()}
    share = MAX_SEARCHED // max(sum(one.length > 0 for one in unread.values()), 1)
    searched = {p: OffsetRange(one.first, min(one.end, one.first + share)) for p, one in unread.items()}
    unsearched = sum(one.end - searched[p].end for p, one in unread.items())
    found = [
        found_record(record)
        for chunk in read_ranges(settings.kafka, topic, searched)
        for record in chunk
        if mentions(wanted, record.key(), record.value())
    ]
    return found, unsearched


def _unconsumed(position: Position | None, topic_id: UUID, log: OffsetRange) -> OffsetRange:
    """Return what is not consumed of a log: all of it, if the position belongs to another one."""
    if position is None or find_refusal(position, topic_id, log):
        return log
    return OffsetRange(position.next_offset, log.end)


def search_dead_letters(
    settings: Settings, conn: Connection, wanted: UUID, progress: TextIO | None
) -> tuple[list[DeadLetter], int]:
    """Return the latest of our dead letters that mention the id, and the number of earlier ones."""
    everything = RecordFilter()
    latest: list[DeadLetter] = []
    found = 0
    topic = find_dead_letters(settings, everything)
    for chunk in read_dead_letters(conn, topic, everything, progress):
        about = [
            letter
            for letter in chunk
            if letter.state is not LetterState.FOREIGN and mentions(wanted, letter.key, letter.value)
        ]
        found += len(about)
        latest = sorted([*latest, *about], key=attrgetter("at"))[-MAX_SHOWN:]
    return latest, found - len(latest)
