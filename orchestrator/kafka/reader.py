"""Reading a topic as it is now: committed records alone, up to the high-water marks of this moment.

Invariant: a record whose commit was acknowledged before the marks were taken is read. So the marks are
high-water marks and not last stable offsets: brokers answer a commit before they write it to the
partitions (KIP-98), and until then the record lies behind the last stable offset. The reader waits.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from typing import NamedTuple, TextIO, cast
from uuid import uuid4

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from orchestrator.contract.records import LATEST_MS
from orchestrator.kafka import topics

SILENCE_S = 30.0  # the brokers must show the next record or the end within this time
CHUNK = 10_000  # records handed on at once
CLOCKS = timedelta(minutes=5)  # how far the clocks of API, Postgres, relays and brokers may be apart
LOOK_S = 0.02  # how soon a follower sees that it is to end


class Span(NamedTuple):
    """The part of a partition to read: from offset `first` up to, not including, `end`."""

    first: int
    end: int

    @property
    def length(self) -> int:
        """Return how many offsets it has; not all of them need be records."""
        return max(self.end - self.first, 0)


def find_spans(admin: AdminClient, topic: str, since_ms: int | None = None) -> dict[int, Span]:
    """Return all of each partition, or what came at `since_ms` or later. Raises TopicMissing."""
    partitions = [partition.id for partition in topics.describe(admin, topic).partitions]
    ends = topics.read_ends(admin, topic, partitions)
    if since_ms is None:
        firsts = topics.read_beginnings(admin, topic, partitions)
    else:
        firsts = topics.read_offsets_at(admin, topic, partitions, since_ms)
    # No record so late: the offset is -1. Ends are older than firsts: nothing may be passed over.
    return {p: Span(ends[p] if firsts[p] < 0 else firsts[p], ends[p]) for p in partitions}


def kept_since(
    admin: AdminClient,
    topic: str,
    spans: Mapping[int, Span],
    oldest: Mapping[int, datetime],
    if_empty: datetime | None = None,
) -> datetime | None:
    """Return since when the topic has all its records, None: nothing was ever deleted from it.

    oldest: by partition, the time of the first record of its span. A partition of which everything
    was deleted tells no time: it counts as `if_empty`.
    """
    beginnings = topics.read_beginnings(admin, topic, list(spans))
    cut = [p for p, beginning in beginnings.items() if beginning > 0 and spans[p].first <= beginning]
    times = [oldest.get(partition, if_empty) for partition in cut]
    return max((time for time in times if time), default=None)


def time_of(record: Message) -> datetime:
    """Return when the record was made, as its producer or broker says."""
    return to_time(record.timestamp()[1])


def to_time(time_ms: int) -> datetime:
    """Return a record's timestamp, Unix ms; none (-1) and what no datetime holds at the limits."""
    return datetime.fromtimestamp(min(max(time_ms, 0), LATEST_MS) / 1000, UTC)


def read_spans(
    kafka: Mapping[str, str], topic: str, spans: Mapping[int, Span], talk: TextIO | None = None
) -> Generator[list[Message], None, None]:
    """Yield the committed records of the spans, in chunks, in order per partition.

    Memory is bounded by a chunk and the client's queue. talk: where the progress is told, if
    anywhere. Raises KafkaException.
    """
    at = {partition: span.first for partition, span in spans.items() if span.first < span.end}
    places = [TopicPartition(topic, partition, first) for partition, first in at.items()]
    with closing(_new_reader(kafka)) as consumer, closing(Progress(topic, spans, talk)) as progress:
        consumer.assign(places)
        while at:
            chunk: list[Message] = []
            for record in _next_records(consumer):
                partition, offset = cast("int", record.partition()), cast("int", record.offset())
                if partition not in at:
                    continue
                end, is_record = spans[partition].end, record.error() is None
                if is_record and offset < end:
                    chunk.append(record)
                # The end of a partition, too, has an offset: that of the record to come.
                stands_at = min(offset + is_record, end)
                progress.advance(stands_at - at[partition])
                at[partition] = stands_at
                if stands_at == end:
                    del at[partition]
                    consumer.pause([TopicPartition(topic, partition)])
            yield chunk


def open_reader(kafka: Mapping[str, str], topic: str) -> Consumer:
    """Return a read_committed consumer of all of a topic that joins and commits nothing."""
    consumer = _new_reader(kafka)
    partitions = consumer.list_topics(topic, timeout=SILENCE_S).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
    return consumer


@contextmanager
def following(
    kafka: Mapping[str, str], topic: str, take: Callable[[Sequence[Message]], None]
) -> Iterator[None]:
    """Hand the records of a topic to `take` as they come, in a thread, while the block runs."""
    done = Event()

    def read() -> None:
        with closing(open_reader(kafka, topic)) as consumer:
            while not done.is_set():
                first = consumer.poll(LOOK_S)
                if first is not None:
                    found = [first, *consumer.consume(CHUNK, 0)]
                    take([record for record in found if record.error() is None])

    thread = Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _new_reader(kafka: Mapping[str, str]) -> Consumer:
    return Consumer(
        {
            **kafka,
            "group.id": f"reader-{uuid4()}",  # required by the client; nobody joins or commits
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",  # the log's beginning may move while it is read
            "queued.max.messages.kbytes": 16_384,  # 64 MB by default
        },
        logger=logging.getLogger("librdkafka"),
    )


def _next_records(consumer: Consumer) -> Sequence[Message]:
    """Return the next records and ends of partitions. Raises KafkaException."""
    first = consumer.poll(SILENCE_S)
    if first is None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no record and no end"))
    records = [first, *consumer.consume(CHUNK - 1, 0)]
    for record in records:
        error = record.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
    return records


class Progress:
    """How far a long reading is, for people.

    On a terminal one line that changes, elsewhere a line every LINE_S. stream: None for nobody.
    """

    LINE_S, REDRAW_S = 10.0, 0.1

    def __init__(self, topic: str, spans: Mapping[int, Span], stream: TextIO | None) -> None:
        self._topic = topic
        self._total = sum(span.length for span in spans.values())
        self._stream = stream
        self._is_terminal = stream is not None and stream.isatty()
        self._pause_s = self.REDRAW_S if self._is_terminal else self.LINE_S
        self._done = 0
        self._say_at = time.monotonic() + self._pause_s

    def advance(self, offsets: int) -> None:
        """Note that so many offsets were passed."""
        self._done += offsets
        if time.monotonic() >= self._say_at:
            self._say_at = time.monotonic() + self._pause_s
            self._say("" if self._is_terminal else "\n")

    def close(self) -> None:
        """Leave the line, if there is one."""
        if self._is_terminal:
            self._say("\n")

    def _say(self, end: str) -> None:
        if self._stream is not None:
            start = "\r" if self._is_terminal else ""
            text = f"reading {self._topic}: {self._done:,} of {self._total:,} offsets"
            self._stream.write(start + text + end)
            self._stream.flush()
