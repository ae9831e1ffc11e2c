"""The evidence in Kafka of what became of each lane's last batch: its marker, and the log.

Invariant: all of it is read behind a barrier that was written after the fence, so it is final: a
process that publishes after the barrier must have fenced our producer, which then publishes nothing.
The marker tells whether both histories are the same. Which of the rows in flight are in Kafka, the log
decides: brokers may end a transaction in one partition early (a repeated, late WriteTxnMarkers), and
then the marker is there without its records, or records without their marker.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from types import MappingProxyType
from typing import NamedTuple, cast
from uuid import UUID

from confluent_kafka import Message

from outbox.barrier import BarrierWriter
from outbox.crash_points import crash_point
from outbox.errors import InDoubt, LanesGivenUp
from outbox.kafka_calls import KafkaConfig
from outbox.lane import LastBatch, Outcome, compare
from outbox.log_reader import (
    HeldUp,
    Range,
    describe_held_up,
    name,
    read_committed,
    read_markers,
)
from outbox.markers import Marker
from outbox.message import MESSAGE_ID_HEADER, OutboxRow
from outbox.output_topics import COMPACT, OutputTopics, SearchStart, TopicEnd
from outbox.producers import Producers


class Search(NamedTuple):
    """A lane's last batch: its rows in flight, and where in their topics their records can begin."""

    batch: LastBatch
    rows: Sequence[OutboxRow]
    start: SearchStart


class Evidence(NamedTuple):
    """What Kafka says of a lane's last batch.

    published: ids of its rows in flight that are in Kafka. ends: where the topics ended behind the
    barrier. held_up: why the log cannot be read to its end now. unusable: why it will never tell.
    is_final: the marker was read. has_failed: it is held up because Kafka refused, or did not answer.
    """

    marker: Marker | None
    published: frozenset[int] = frozenset()
    ends: SearchStart = MappingProxyType({})
    held_up: str | None = None
    unusable: str | None = None
    is_final: bool = True
    has_failed: bool = False


class EvidenceReader:
    """Reads the evidence. The caller has fenced all that may still publish the lanes."""

    def __init__(
        self,
        kafka: KafkaConfig,
        identity: UUID,
        marker_topic: str,
        producers: Producers,
        topics: OutputTopics,
        tick: Callable[[], None],
        timeout_s: float,
    ) -> None:
        self._kafka = kafka
        self._identity = identity
        self._marker_topic = marker_topic
        self._producers = producers
        self._topics = topics
        self._tick = tick
        self._timeout_s = timeout_s
        self._checked = False  # the marker topic

    def read(self, transactional_lane: int, searches: Mapping[int, Search]) -> dict[int, Evidence]:
        """Return the evidence of each lane. Raises InDoubt.

        searches: by lane; without rows only its marker is read.
        """
        self._check_marker_topic()
        writer = BarrierWriter(self._producers, transactional_lane, self._tick, self._timeout_s)
        with closing(writer):
            ends = writer.write([(self._marker_topic, lane) for lane in searches])
            crash_point("relay.barrier_written")
            markers, held_up = read_markers(
                self._kafka,
                self._identity,
                self._marker_topic,
                {lane: end for (_, lane), end in ends.items()},
                self._tick,
                self._timeout_s,
            )
            wanted = {
                lane: search
                for lane, search in searches.items()
                if search.rows and lane in markers and not is_refused(markers[lane], search.batch)
            }
            search = LogSearch(self._kafka, self._topics, writer, self._tick, self._timeout_s)
            found = search.run(wanted)
        evidence = {lane: Evidence(None, held_up=why, is_final=False) for lane, why in held_up.items()}
        for lane, marker in markers.items():
            evidence[lane] = found.get(lane, Evidence(None))._replace(marker=marker)
        return evidence

    def _check_marker_topic(self) -> None:
        """See once that the markers of idle lanes are kept. Raises InDoubt."""
        topic = self._marker_topic
        if not self._checked and self._topics.cleanup_policy(topic) != COMPACT:
            raise InDoubt(f"topic {topic} must be compacted: set its cleanup.policy to {COMPACT}")
        self._checked = True


def is_refused(marker: Marker | None, batch: LastBatch) -> bool:
    """Say whether the marker alone tells that the histories disagree: then the log is not searched."""
    outcome = compare(marker, batch)
    return outcome.refused and outcome is not Outcome.LOG_UNUSABLE


class TopicLog(NamedTuple):
    """A topic's log behind its barrier. end: its topic id is None if there is no such topic.

    compacted: it is, and these keys of ours were seen in it: an earlier record of them may be gone.
    """

    end: TopicEnd
    starts: Sequence[int] = ()
    compacted: set[bytes | None] | None = None


class LogSearch:
    """Looks which rows are in the topics; a topic that cannot be searched holds up its lanes alone."""

    def __init__(
        self,
        kafka: KafkaConfig,
        topics: OutputTopics,
        writer: BarrierWriter,
        tick: Callable[[], None],
        timeout_s: float,
    ) -> None:
        self._kafka = kafka
        self._topics = topics
        self._writer = writer
        self._tick = tick
        self._timeout_s = timeout_s
        self._logs: dict[str, TopicLog] = {}
        self._held_up: dict[str, str] = {}  # by topic: an open transaction
        self._failures: dict[str, str] = {}  # by topic: Kafka refused, or did not answer

    def run(self, searches: Mapping[int, Search]) -> dict[int, Evidence]:
        """Return what was found of each lane. Lanes are read together."""
        records: dict[tuple[str, str], Message] = {}
        for topic in sorted({row.topic for search in searches.values() for row in search.rows}):
            try:
                log = self._logs[topic] = self._prepare(topic, searches.values())
                records |= self._read(topic, log, searches.values())
                self._logs[topic] = self._look_again(topic, log)
            except LanesGivenUp:
                raise
            except InDoubt as error:
                self._failures[topic] = f"topic {topic}: {error}"
        return {lane: self._conclude(search, records) for lane, search in searches.items()}

    def _prepare(self, topic: str, searches: Iterable[Search]) -> TopicLog:
        """Find out about a topic, and write its barrier. Raises InDoubt."""
        described = self._topics.describe(topic)
        if described is None:
            return TopicLog(TopicEnd(None, []))
        noted = [one.start[topic] for one in searches if topic in one.start]
        if any(len(described.offsets) < len(start.offsets) for start in noted):
            raise InDoubt(f"a broker does not know all partitions of {topic} yet")
        partitions = [(topic, number) for number in range(len(described.offsets))]
        compacted = set[bytes | None]() if COMPACT in self._topics.cleanup_policy(topic) else None
        starts = self._topics.log_starts(partitions)
        ends = self._writer.write(partitions)
        end = TopicEnd(described.topic_id, [ends[one] for one in partitions])
        return TopicLog(end, [starts[one] for one in partitions], compacted)

    def _read(
        self, topic: str, log: TopicLog, searches: Collection[Search]
    ) -> dict[tuple[str, str], Message]:
        """Return the records of a topic whose ids are wanted, by topic and id. Raises InDoubt.

        Not for lanes that were refused before and cannot be decided yet: their tail only grows.
        """
        searched = [
            one for one in searches if not (one.batch.log_refusal and self._unusable(topic, one))
        ]
        wanted = {row.message_id for one in searched for row in one.rows if row.topic == topic}
        keys = {row.key for one in searched for row in one.rows if row.topic == topic}
        ranges = {
            (topic, number): Range(max(first_offset(topic, number, searched), log.starts[number]), end)
            for number, end in enumerate(log.end.offsets)
        }
        records: dict[tuple[str, str], Message] = {}
        try:
            for record in read_committed(
                self._kafka, ranges if wanted else {}, self._tick, self._timeout_s
            ):
                if (message_id := message_id_of(record)) in wanted:
                    records.setdefault((topic, message_id or ""), record)
                if log.compacted is not None and record.key() in keys:
                    log.compacted.add(record.key())
        except HeldUp as held:
            self._held_up[topic] = describe_held_up(held)
        return records

    def _look_again(self, topic: str, log: TopicLog) -> TopicLog:
        """Return the log as it is after it was read: what was deleted meanwhile, may have been ours."""
        described = self._topics.describe(topic)
        if described is None or described.topic_id != log.end.topic_id:
            return log._replace(end=described or TopicEnd(None, []))
        partitions = [(topic, number) for number in range(len(log.starts))]
        starts = self._topics.log_starts(partitions)
        return log._replace(starts=[starts[one] for one in partitions])

    def _conclude(self, search: Search, records: Mapping[tuple[str, str], Message]) -> Evidence:
        """Say what the log tells of a lane. "Not there" counts only if all of it could be searched."""
        published: set[int] = set()
        held_up = failure = unusable = None
        for row in search.rows:
            record = records.get((row.topic, row.message_id))
            if record is not None:
                published.add(row.id)
                if (record.key(), record.value()) != (row.key, row.value):
                    place = name((row.topic, int(record.partition() or 0)))
                    unusable = (
                        f"the record at {place} offset {record.offset()} has a row's id, not its bytes"
                    )
        for topic in sorted({row.topic for row in search.rows if row.id not in published}):
            failure = failure or self._failures.get(topic)
            held_up = held_up or self._held_up.get(topic) or self._missing(topic, search)
            missing = [one for one in search.rows if one.topic == topic and one.id not in published]
            unusable = unusable or self._unusable(topic, search, missing)
        ends = {row.topic: self._logs[row.topic].end for row in search.rows if row.topic in self._logs}
        return Evidence(
            None,
            frozenset(published),
            ends,
            held_up or failure,
            unusable,
            has_failed=failure is not None,
        )

    def _missing(self, topic: str, search: Search) -> str | None:
        """Say whether a topic that was there is gone."""
        log, start = self._logs.get(topic), search.start.get(topic)
        if log and log.end.topic_id is None and start and start.topic_id:
            return f"topic {topic} is missing, or may not be described: create it or grant that"
        return None

    def _unusable(self, topic: str, search: Search, missing: Sequence[OutboxRow] = ()) -> str | None:
        """Say why records of a topic that were not found may have been there."""
        log, start = self._logs.get(topic), search.start.get(topic)
        if log is None or log.end.topic_id is None:
            return None
        if start is None:
            return f"it was not noted where {topic} ended before the batch"
        if start.topic_id not in {None, log.end.topic_id}:
            return f"topic {topic} was recreated"
        if log.compacted is not None and any(may_be_compacted(row, log.compacted) for row in missing):
            return f"topic {topic} is compacted"
        for number, log_start in enumerate(log.starts):
            if log_start > start.start(number):
                return (
                    f"{name((topic, number))} begins at offset {log_start},"
                    f" the batch could be from offset {start.start(number)}"
                )
        return None


def may_be_compacted(row: OutboxRow, seen: Collection[bytes | None]) -> bool:
    """Say whether compaction may have removed a row's record: there is a later one, or it deletes."""
    return row.key in seen or row.value is None


def first_offset(topic: str, number: int, searches: Iterable[Search]) -> int:
    """Return the first offset of a partition at which one of the batches could be."""
    starts = [search.start[topic].start(number) for search in searches if topic in search.start]
    return min(starts, default=0)


def message_id_of(record: Message) -> str | None:
    """Return the message id in a record's headers; ours is the last of that name."""
    headers = cast("list[tuple[str, bytes | None]]", record.headers() or [])
    values = [value for key, value in headers if key == MESSAGE_ID_HEADER]
    return values[-1].decode(errors="replace") if values and values[-1] else None
