"""Rows whose topic cannot be written to wait in the outbox; all others of their lane go on.

Invariant: while a topic cannot be written to, none of its rows is claimed, however late it came. So the
rows of a key keep their order in each topic.
"""

import time
from collections.abc import Collection, Mapping

from outbox import outbox_rows
from outbox.message import OutboxRow
from outbox.output_topics import OutputTopics
from outbox.postgres import Connection
from outbox.watermark import next_time

MAX_NAMED = 3  # topics of a lane


class WaitingRows:
    """Which rows are left out of the claims of a session.

    left_out: their topics. by_lane: why rows of a lane wait, when last looked at. forbidden: which of
    these topics this relay may not write to; another relay may.
    """

    def __init__(self, conn: Connection, topics: OutputTopics, period_s: float) -> None:
        self.left_out: frozenset[str] = frozenset()
        self.by_lane: Mapping[int, str] = {}
        self.forbidden: str | None = None
        self._conn = conn
        self._topics = topics
        self._period_s = period_s
        self._look_at = 0.0  # monotonic

    def follow_topics(self) -> bool:
        """Take over which topics cannot be written to; say whether that has changed."""
        before, self.left_out = self.left_out, frozenset(self._topics.refusals)
        return self.left_out != before

    def leave(self, batch: Mapping[int, list[OutboxRow]]) -> None:
        """Take the rows out of a batch whose topic cannot be written to: all of a topic, or none."""
        topics = {row.topic for rows in batch.values() for row in rows}
        if refused := topics & self._topics.refusals.keys():
            self.left_out |= refused
            self._look_at = 0.0
            for rows in batch.values():
                rows[:] = [row for row in rows if row.topic not in refused]

    def look(self, lanes: Collection[int]) -> bool:
        """Look now and then which lanes have such rows; say whether it did. Outside a transaction."""
        began, refusals = time.monotonic(), self._topics.refusals
        if began < self._look_at or not (refusals or self.by_lane):
            return False
        found = outbox_rows.find_waiting(self._conn, lanes, refusals) if refusals else []
        topics = {lane: [one.topic for one in found if one.lane == lane] for lane in lanes}
        self.by_lane = {
            lane: "; ".join(refusals[topic].text for topic in of_lane[:MAX_NAMED])
            for lane, of_lane in topics.items()
            if of_lane
        }
        forbidden = [one.topic for one in found if refusals[one.topic].is_forbidden]
        self.forbidden = refusals[forbidden[0]].text if forbidden else None
        self._look_at = next_time(began, self._period_s)
        return True
