"""Reading a topic as it is now: committed records alone, up to the current high watermarks.

Invariant: a record whose commit was acknowledged before the high watermarks were read is read. Last
stable offsets would not do: brokers answer a commit before they write it to the partitions (KIP-98),
and until then the record lies behind the last stable offset. The reader waits for it.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from typing import Any, NamedTuple, TextIO
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

from orchestrator.config.kafka import PREFETCH
from orchestrator.contract.records import LATEST_MS, partition_offset
from orchestrator.kafka import topics
from orchestrator.program import PROGRAM

READ_TIMEOUT_S = 30.0  # for the next record, or the end of a partition
CHUNK = 10_000  # records at most that are given to the caller at once
MAX_CLOCK_SKEW = timedelta(minutes=5)  # between API, Postgres, relays and brokers
REOPEN_S = 1.0  # after all brokers were lost: long enough for a new connection
TAIL_POLL_S = 0.02  # how soon `tail_topic` sees that its block has ended


class OffsetRange(NamedTuple):
    """The part of a partition to read: from offset `first` up to, not including, `end`."""

    first: int
    end: int

    @property
    def length(self) -> int:
        """Return the number of offsets; some may be no records."""
        return max(self.end - self.first, 0)


def find_ranges(admin: AdminClient, topic: str, since_ms: int | None = None) -> dict[int, OffsetRange]:
    """Return the whole of each partition, or its part since `since_ms`. Raises TopicMissing."""
    partitions = [partition.id for partition in topics.describe_topic(admin, topic).partitions]
    ends = topics.read_high_watermarks(admin, topic, partitions)
    if since_ms is None:
        firsts = topics.read_log_start_offsets(admin, topic, partitions)
    else:
        firsts = topics.read_offsets_at(admin, topic, partitions, since_ms)
    # -1: no record is so late. The ends were read before the firsts, so that no record is passed over.
    return {p: OffsetRange(ends[p] if firsts[p] < 0 else firsts[p], ends[p]) for p in partitions}


def complete_since(
    admin: AdminClient,
    topic: str,
    ranges: Mapping[int, OffsetRange],
    oldest: Mapping[int, datetime],
    if_empty: datetime | None = None,
) -> datetime | None:
    """Return the time since which the topic has all its records; None: none was ever deleted.

    oldest: by partition, the time of the first record of its range. A partition without records has
    no such time: it counts as `if_empty`.
    """
    starts = topics.read_log_start_offsets(admin, topic, list(ranges))
    cut = [p for p, start in starts.items() if start > 0 and ranges[p].first <= start]
    times = [oldest.get(partition, if_empty) for partition in cut]
    return max((time for time in times if time), default=None)


def time_of(record: Message) -> datetime:
    """Return the record's time, as its producer or broker set it."""
    return datetime_from_ms(record.timestamp()[1])


def datetime_from_ms(time_ms: int) -> datetime:
    """Return a record's timestamp, Unix ms; none (-1) and what no datetime holds are clamped."""
    return datetime.fromtimestamp(min(max(time_ms, 0), LATEST_MS) / 1000, UTC)


def read_ranges(
    kafka: Mapping[str, str],
    topic: str,
    ranges: Mapping[int, OffsetRange],
    progress: TextIO | None = None,
) -> Generator[list[Message], None, None]:
    """Yield the committed records of the ranges, in chunks, in order per partition.

    Memory is bounded by a chunk and the client's queue. progress: where to write how far the reading
    is. Raises KafkaException.
    """
    unread = {partition: one.first for partition, one in ranges.items() if one.first < one.end}
    starts = [TopicPartition(topic, partition, first) for partition, first in unread.items()]
    with closing(_new_reader(kafka)) as consumer, closing(Progress(topic, ranges, progress)) as shown:
        consumer.assign(starts)
        while unread:
            chunk: list[Message] = []
            for record in _next_records(consumer):
                partition, offset = partition_offset(record)
                if partition not in unread:
                    continue
                end, is_record = ranges[partition].end, record.error() is None
                if is_record and offset < end:
                    chunk.append(record)
                # The end of a partition has an offset, too: that of the record to come.
                position = min(offset + is_record, end)
                shown.advance(position - unread[partition])
                unread[partition] = position
                if position == end:
                    del unread[partition]
                    consumer.pause([TopicPartition(topic, partition)])
            yield chunk


class LastingReader:
    """A read_committed reader of all of a topic that joins and commits nothing, for a long time.

    Where librdkafka has lost all brokers, it goes on with a new client at the same offsets. The old one
    might wait endlessly: a broker that was frozen, and so was fenced, says for a moment that there are
    no brokers. Then the client forgets all it knew, and has none left to ask (librdkafka issue 5301).
    """

    def __init__(self, kafka: Mapping[str, Any], topic: str) -> None:
        partitions = topics.describe_topic(topics.Admin(kafka), topic).partitions
        self._positions = {partition.id: OFFSET_BEGINNING for partition in partitions}
        self._kafka = {**kafka, "error_cb": self._on_error}
        self._topic = topic
        self._lost_brokers_at: float | None = None  # monotonic
        self._consumer = self._open()

    def consume(self, records: int, timeout_s: float) -> list[Message]:
        """Return what has come: records, ends of partitions, errors after which the client goes on."""
        if self._lost_brokers_at and time.monotonic() > self._lost_brokers_at + REOPEN_S:
            self._lost_brokers_at = None
            self._consumer.close()
            self._consumer = self._open()
        found = self._consumer.consume(records, timeout_s)
        for record in found:
            if record.error() is None:
                partition, offset = partition_offset(record)
                self._positions[partition] = offset + 1
        return found

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()

    def _open(self) -> Consumer:
        consumer = _new_reader(self._kafka)
        consumer.assign([TopicPartition(self._topic, *one) for one in self._positions.items()])
        return consumer

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._lost_brokers_at = self._lost_brokers_at or time.monotonic()


@contextmanager
def tail_topic(
    kafka: Mapping[str, str], topic: str, on_records: Callable[[Sequence[Message]], None]
) -> Iterator[None]:
    """Pass the records of a topic to `on_records` as they come, in a thread, while the block runs."""
    done = Event()

    def read() -> None:
        with closing(LastingReader(kafka, topic)) as reader:
            while not done.is_set():
                if found := reader.consume(1, TAIL_POLL_S):
                    found += reader.consume(CHUNK, 0)
                    on_records([record for record in found if record.error() is None])

    thread = Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _new_reader(kafka: Mapping[str, Any]) -> Consumer:
    return Consumer(
        {
            **PREFETCH,
            **kafka,
            "group.id": f"reader-{uuid4()}",  # required by the client, which neither joins nor commits
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",  # the log start offset may move while it is read
        },
        logger=logging.getLogger("librdkafka"),
    )


def _next_records(consumer: Consumer) -> Sequence[Message]:
    """Return the next records, and ends of partitions. Raises KafkaException."""
    first = consumer.poll(READ_TIMEOUT_S)
    if first is None:
        text = f"no record and no end: a producer's transaction may be open, see `{PROGRAM} doctor`"
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, text))
    records = [first, *consumer.consume(CHUNK - 1, 0)]
    for record in records:
        error = record.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            where = f"{record.topic()}[{record.partition()}] {record.offset()}"
            raise KafkaException(KafkaError(error.code(), f"{error.str()}: {where}"))
    return records


class Progress:
    """Shows how far a long reading is: on a terminal one line that changes, else a line every LINE_S.

    stream: None shows nothing.
    """

    LINE_S, REDRAW_S = 10.0, 0.1

    def __init__(self, topic: str, ranges: Mapping[int, OffsetRange], stream: TextIO | None) -> None:
        self._topic = topic
        self._total = sum(one.length for one in ranges.values())
        self._stream = stream
        self._is_terminal = stream is not None and stream.isatty()
        self._pause_s = self.REDRAW_S if self._is_terminal else self.LINE_S
        self._done = 0
        self._next_line_at = time.monotonic() + self._pause_s

    def advance(self, offsets: int) -> None:
        """Add offsets that were read."""
        self._done += offsets
        if time.monotonic() >= self._next_line_at:
            self._next_line_at = time.monotonic() + self._pause_s
            self._write("" if self._is_terminal else "\n")

    def close(self) -> None:
        """End the line, if there is one."""
        if self._is_terminal:
            self._write("\n")

    def _write(self, end: str) -> None:
        if self._stream is not None:
            start = "\r" if self._is_terminal else ""
            text = f"reading {self._topic}: {self._done:,} of {self._total:,} offsets"
            self._stream.write(start + text + end)
            self._stream.flush()
