"""What mentions an id but made no worker, or not yet: commands, dead letters, rows set aside.

It is found by its text, wherever it lies. What could not be looked through is counted: nobody is told
that nothing is there when that is not known.
"""

import re
from functools import lru_cache
from operator import attrgetter
from typing import TextIO
from uuid import UUID

from orchestrator.config.settings import Settings
from orchestrator.consumer import offsets
from orchestrator.consumer.offsets import Position
from orchestrator.kafka import topics
from orchestrator.kafka.reader import OffsetRange, find_ranges, read_ranges
from orchestrator.operations.dead_letters.filter import RecordFilter
from orchestrator.operations.dead_letters.letters import (
    DeadLetter,
    find_dead_letters,
    read_dead_letters,
)
from orchestrator.operations.explain.worker_history import SHOWN, Found, place_of
from orchestrator.operations.repair.partition import fault_of
from outbox import Connection

UNREAD = 100_000  # records not yet consumed that are looked through, in all partitions together


def forms_of(wanted: UUID) -> str:
    """Return a pattern of what a command may write for the id: with hyphens or without, in any case."""
    return f"{wanted}|{wanted.hex}"


def mentions(wanted: UUID, key: bytes | None, value: bytes | None) -> bool:
    """Say whether a record is about the id, however broken it may be."""
    found = _pattern_of(wanted).search
    return bool(found(key or b"") or found(value or b""))


@lru_cache(maxsize=1)  # of many records the same is asked
def _pattern_of(wanted: UUID) -> re.Pattern[bytes]:
    return re.compile(forms_of(wanted).encode(), re.IGNORECASE)


def search_input(settings: Settings, conn: Connection, wanted: UUID) -> tuple[list[Found], int]:
    """Find commands about the id that are not consumed yet; and how many were not looked through.

    Of UNREAD records each partition that has any gets its share.
    """
    admin, topic = topics.Admin(settings.kafka), settings.input_topic
    positions = offsets.read_positions(
        conn, settings.consumer_group, topic
    )  # before the ends: never behind them
    topic_id, logs = topics.topic_id(admin, topic), find_ranges(admin, topic)
    unread = {p: _unread_of(positions.get(p), topic_id, log) for p, log in logs.items()}
    share = UNREAD // max(sum(span.length > 0 for span in unread.values()), 1)
    spans = {
        p: OffsetRange(span.first, min(span.end, span.first + share)) for p, span in unread.items()
    }
    unsearched = sum(span.end - spans[p].end for p, span in unread.items())
    found = [
        place_of(record)
        for chunk in read_ranges(settings.kafka, topic, spans)
        for record in chunk
        if mentions(wanted, record.key(), record.value())
    ]
    return found, unsearched


def _unread_of(position: Position | None, topic_id: UUID, log: OffsetRange) -> OffsetRange:
    """Return what is left to consume: all, if the position says nothing of this log."""
    if position is None or fault_of(position, topic_id, log):
        return log
    return OffsetRange(position.next_offset, log.end)


def search_dead_letters(
    settings: Settings, conn: Connection, wanted: UUID, talk: TextIO | None
) -> tuple[list[DeadLetter], int]:
    """Find the latest dead letters that mention the id; and how many earlier ones there are."""
    everything = RecordFilter()
    latest: list[DeadLetter] = []
    found = 0
    topic = find_dead_letters(settings, everything)
    for chunk in read_dead_letters(conn, topic, everything, talk):
        about = [letter for letter in chunk if mentions(wanted, letter.key, letter.value)]
        found += len(about)
        latest = sorted([*latest, *about], key=attrgetter("at"))[-SHOWN:]
    return latest, found - len(latest)
