"""The evidence in Kafka of what became of each lane's last batch: its marker, and the log.

Invariant: all of it is read behind a barrier that was written after the fence, so it is final: a
process that publishes after the barrier must have fenced our producer, which then publishes nothing.
The marker tells whether both histories are the same. Which of the rows in flight are in Kafka, the log
decides: brokers may end a transaction in one partition early (a repeated, late WriteTxnMarkers), and
then the marker is there without its records, or records without their marker.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from types import MappingProxyType
from typing import NamedTuple, cast
from uuid import UUID

from confluent_kafka import Message

from outbox.barrier import BarrierWriter
from outbox.crash_points import crash_point
from outbox.errors import InDoubt
from outbox.kafka_calls import KafkaConfig, Partition
from outbox.log_reader import HeldUp, Range, name, read_committed, read_markers
from outbox.markers import Marker
from outbox.message import MESSAGE_ID_HEADER, OutboxRow
from outbox.output_topics import OutputTopics, SearchStart, TopicEnd
from outbox.producers import Producers


class Search(NamedTuple):
    """The rows of a lane in flight, and where in their topics their records can begin."""

    rows: Sequence[OutboxRow]
    start: SearchStart


class Evidence(NamedTuple):
    """What Kafka says of a lane's last batch.

    published: ids of its rows in flight that are in Kafka. ends: where the topics ended behind the
    barrier. held_up: why the log cannot be read to its end now. unusable: why it will never tell.
    """

    marker: Marker | None
    published: frozenset[int] = frozenset()
    ends: SearchStart = MappingProxyType({})
    held_up: str | None = None
    unusable: str | None = None


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
            markers = read_markers(
                self._kafka,
                self._identity,
                self._marker_topic,
                {lane: end for (_, lane), end in ends.items()},
                self._tick,
                self._timeout_s,
            )
            wanted = {lane: search for lane, search in searches.items() if search.rows}
            found = LogSearch(self._kafka, self._topics, writer, self._tick, self._timeout_s)
            results = found.run(wanted) if wanted else {}
        return {
            lane: results[lane]._replace(marker=marker) if lane in results else Evidence(marker)
            for lane, marker in markers.items()
        }

    def _check_marker_topic(self) -> None:
        """See once that the markers of idle lanes are kept. Raises InDoubt."""
        topic = self._marker_topic
        if not self._checked and not self._topics.is_compacted(topic):
            raise InDoubt(f"topic {topic} must be compacted: set its cleanup.policy to compact")
        self._checked = True


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
        self._ends: dict[str, TopicEnd] = {}
        self._held_up: dict[str, str] = {}  # by topic
        self._compacted: set[str] = set()
        self._log_starts: dict[Partition, int] = {}

    def run(self, searches: Mapping[int, Search]) -> dict[int, Evidence]:
        """Return what was found of each lane. Lanes are read together: ids are unique."""
        records: dict[str, Message] = {}
        for topic in sorted({row.topic for search in searches.values() for row in search.rows}):
            try:
                self._prepare(topic)
                records |= self._read(topic, searches)
            except InDoubt as error:
                self._held_up[topic] = str(error)
        return {lane: self._conclude(search, records) for lane, search in searches.items()}

    def _prepare(self, topic: str) -> None:
        """Find out about a topic, and write its barrier. Raises InDoubt."""
        described = self._topics.describe(topic)
        if described is None:
            self._ends[topic] = TopicEnd(None, [])
            return
        partitions = [(topic, number) for number in range(len(described.offsets))]
        if self._topics.is_compacted(topic):
            self._compacted.add(topic)
        self._log_starts |= self._topics.log_starts(partitions)
        ends = self._writer.write(partitions)
        self._ends[topic] = TopicEnd(described.topic_id, [ends[one] for one in partitions])

    def _read(self, topic: str, searches: Mapping[int, Search]) -> dict[str, Message]:
        """Return the records of a topic whose ids are wanted, by id. Raises InDoubt."""
        wanted = {row.message_id for search in searches.values() for row in search.rows}
        ranges = {
            (topic, number): Range(self._first_offset(topic, number, searches.values()), end)
            for number, end in enumerate(self._ends[topic].offsets)
        }
        records: dict[str, Message] = {}
        try:
            for record in read_committed(self._kafka, ranges, self._tick, self._timeout_s):
                if (message_id := message_id_of(record)) in wanted:
                    records.setdefault(message_id, record)
        except HeldUp as held:
            partition, offset = next(iter(held.at.items()))
            self._held_up[topic] = (
                f"{name(partition)}: a transaction of another producer is open at offset {offset}"
            )
        return records

    def _first_offset(self, topic: str, number: int, searches: Iterable[Search]) -> int:
        """Return where to begin in a partition: at the first start, of what is still there."""
        starts = [search.start[topic].start(number) for search in searches if topic in search.start]
        return max(min(starts, default=0), self._log_starts[topic, number])

    def _conclude(self, search: Search, records: Mapping[str, Message]) -> Evidence:
        """Say what the log tells of a lane. "Not there" counts only if all of it could be searched."""
        published: set[int] = set()
        differing: Message | None = None
        for row in search.rows:
            if (record := records.get(row.message_id)) is not None:
                published.add(row.id)
                if (record.topic(), record.key(), record.value()) != (row.topic, row.key, row.value):
                    differing = record
        topics = {row.topic for row in search.rows if row.id not in published}
        held_up = unusable = None
        if differing is not None:
            place = name((str(differing.topic()), int(differing.partition() or 0)))
            unusable = (
                f"the record at {place} offset {differing.offset()} has a row's id, not its bytes"
            )
        for topic in sorted(topics):
            held_up = held_up or self._held_up.get(topic) or self._missing(topic, search)
            unusable = unusable or self._unusable(topic, search)
        ends = {
            topic: self._ends[topic] for topic in {row.topic for row in search.rows} & self._ends.keys()
        }
        return Evidence(None, frozenset(published), ends, held_up, unusable)

    def _missing(self, topic: str, search: Search) -> str | None:
        """Say whether a topic that was there is gone."""
        start = search.start.get(topic)
        if topic in self._ends and self._ends[topic].topic_id is None and start and start.topic_id:
            return f"topic {topic} is missing, or may not be described: create it or grant that"
        return None

    def _unusable(self, topic: str, search: Search) -> str | None:
        """Say why a record that was not found may have been there."""
        if topic not in self._ends or self._ends[topic].topic_id is None:
            return None
        if topic not in search.start:
            return f"it was not noted where {topic} ended before the batch"
        start, end = search.start[topic], self._ends[topic]
        if start.topic_id not in {None, end.topic_id}:
            return f"topic {topic} was recreated"
        if topic in self._compacted:
            return f"topic {topic} is compacted"
        for number in range(len(end.offsets)):
            if self._log_starts[topic, number] > start.start(number):
                return (
                    f"{name((topic, number))} begins at offset {self._log_starts[topic, number]},"
                    f" the batch could be from offset {start.start(number)}"
                )
        return None


def message_id_of(record: Message) -> str | None:
    """Return the message id in a record's headers; ours is the last of that name."""
    headers = cast("list[tuple[str, bytes | None]]", record.headers() or [])
    values = [value for key, value in headers if key == MESSAGE_ID_HEADER]
    return values[-1].decode(errors="replace") if values and values[-1] else None
