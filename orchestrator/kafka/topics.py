"""The topics: their ids, their ends, and making the missing ones."""

import logging
import struct
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, cast
from uuid import UUID

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, not in its __all__
    AdminClient,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    TopicDescription,
)
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

LONGS = struct.Struct(">qq")  # Kafka gives the id as two signed longs
REQUEST_S = 5.0  # one request to the brokers
TOPIC_CHECK_S = 1.0  # how soon a topic that was deleted and made again is noticed
UNKNOWN = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.UNKNOWN_TOPIC_ID})
REFUSALS = frozenset({KafkaError._AUTHENTICATION, KafkaError._SSL})


class TopicMissing(Exception):
    """A topic that must be there is not."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"topic {topic} is missing: create it or run `orchestrator setup`")


# Connections made on demand let a request that waits for the controller try them again without a pause
# while no broker can be reached: a whole core. Hidden property of librdkafka; seen with 2.15.1.
CONNECTED = {"enable.sparse.connections": "false"}


class Admin(AdminClient):
    """A client that knows why no broker serves it: a password or a certificate is refused.

    Its requests only time out then. The reason comes by callback and log, which both wait for poll().
    """

    def __init__(self, kafka: Mapping[str, str]) -> None:
        self.refusal: KafkaError | None = None  # the first since a request was served
        config: dict[str, Any] = {**kafka, **CONNECTED, "error_cb": self._note}
        super().__init__(config, logger=logging.getLogger("librdkafka"))

    def _note(self, error: KafkaError) -> None:
        if error.code() in REFUSALS and self.refusal is None:
            text = error.str().partition(" (after ")[0]  # how long it took is never the same
            self.refusal = KafkaError(error.code(), text)

    def why(self, error: KafkaException) -> KafkaException:
        """Return what is behind a request that failed: the refusal, if there was one."""
        self.poll(0)
        return KafkaException(self.refusal) if self.refusal else error


def check_access(kafka: Mapping[str, str]) -> None:
    """Ask the brokers for anything. Raises KafkaException, which says why they do not serve us."""
    admin = Admin(kafka)
    try:
        admin.list_topics(timeout=REQUEST_S)
    except KafkaException as error:
        raise admin.why(error) from None


def describe(admin: AdminClient, topic: str) -> TopicDescription:
    """Ask the brokers for a topic. Raises TopicMissing, or KafkaException: an Admin's says why."""
    asked = admin.describe_topics(TopicCollection([topic]), request_timeout=REQUEST_S)
    try:
        found = result_of(asked[topic], topic)
    except KafkaException as error:
        if isinstance(admin, Admin):
            raise admin.why(error) from None
        raise
    if isinstance(admin, Admin):
        admin.refusal = None
    return found


def result_of(future: Future[TopicDescription], topic: str) -> TopicDescription:
    """Wait for a description. Raises TopicMissing, or KafkaException."""
    try:
        return future.result()
    except KafkaException as error:
        if error.args[0].code() in UNKNOWN:
            raise TopicMissing(topic) from error
        raise


def topic_id(admin: AdminClient, topic: str) -> UUID:
    """Return Kafka's own id of a topic (KIP-516): another one after the topic was made anew."""
    return id_of(describe(admin, topic))


def id_of(description: TopicDescription) -> UUID:
    """Return the id as a UUID of Python."""
    longs = cast("Any", description.topic_id)  # its type stub lacks the getters
    high, low = longs.get_most_significant_bits(), longs.get_least_significant_bits()
    return UUID(bytes=LONGS.pack(high, low))


class TopicRecreated(Exception):
    """The topic was deleted and made again while it was read: offsets no longer mean the same."""


class TopicWatch:
    """The id of a topic that is being read, and a regular look whether it is still the same topic.

    A reader that goes on at its old offset in a new topic would pass over the records before it.
    """

    def __init__(self, admin: AdminClient, topic: str) -> None:
        self._admin = admin
        self._topic = topic
        self.id = topic_id(admin, topic)
        self._asked: Future[TopicDescription] | None = None
        self._ask_at = time.monotonic() + TOPIC_CHECK_S

    def check(self) -> None:
        """Look every TOPIC_CHECK_S without waiting for the answer. Raises TopicRecreated."""
        if self._asked is None:
            if time.monotonic() >= self._ask_at:
                self.ask()
        elif self._asked.done():
            answer = self._take_answer()
            if answer.exception() is None:  # trouble with Kafka shows itself elsewhere
                self._compare(answer.result())

    def ask(self) -> None:
        """Begin a look that `confirm` waits for."""
        self._asked = self._admin.describe_topics(
            TopicCollection([self._topic]), request_timeout=REQUEST_S
        )[self._topic]

    def confirm(self) -> None:
        """Wait for the answer, if one is due. Raises TopicRecreated, TopicMissing or KafkaException.

        Records that came before the question are then known to be this topic's: an id never returns.
        """
        if self._asked is not None:
            self._compare(result_of(self._take_answer(), self._topic))

    def _take_answer(self) -> Future[TopicDescription]:
        answer, self._asked = cast("Future[TopicDescription]", self._asked), None
        self._ask_at = time.monotonic() + TOPIC_CHECK_S
        return answer

    def check_now(self) -> None:
        """Look and wait. Raises TopicRecreated, TopicMissing or KafkaException."""
        self.ask()
        self.confirm()

    def _compare(self, found: TopicDescription) -> None:
        if id_of(found) != self.id:
            raise TopicRecreated(f"topic {self._topic} was deleted and made again")


def read_beginnings(admin: AdminClient, topic: str, partitions: Sequence[int]) -> dict[int, int]:
    """Return the first offset that each partition still has."""
    return _read_ends(admin, topic, partitions, OffsetSpec.earliest())  # type: ignore[no-untyped-call]


def read_ends(admin: AdminClient, topic: str, partitions: Sequence[int]) -> dict[int, int]:
    """Return the offset after the last record of each partition: the high-water mark."""
    return _read_ends(admin, topic, partitions, OffsetSpec.latest())  # type: ignore[no-untyped-call]


def read_offsets_at(
    admin: AdminClient, topic: str, partitions: Sequence[int], time_ms: int
) -> dict[int, int]:
    """Return each partition's first offset with a timestamp (Unix ms) not before; -1 if none has."""
    return _read_ends(admin, topic, partitions, OffsetSpec.for_timestamp(time_ms))


def _read_ends(
    admin: AdminClient, topic: str, partitions: Sequence[int], spec: OffsetSpec
) -> dict[int, int]:
    asked = {TopicPartition(topic, partition): spec for partition in partitions}
    futures = admin.list_offsets(asked, request_timeout=REQUEST_S)
    return {place.partition: future.result().offset for place, future in futures.items()}


def create_missing(
    admin: AdminClient, marker_topic: str, lanes: int, others: Sequence[str]
) -> list[str]:
    """Create the topics that are missing; return their names.

    The marker topic gets a partition a lane, also if it is there with fewer; the others get the
    brokers' default partitions. Replication is the brokers' default everywhere.
    """
    new = [NewTopic(topic, num_partitions=-1, replication_factor=-1) for topic in others]
    new.append(NewTopic(marker_topic, num_partitions=lanes, replication_factor=-1))
    created = []
    for topic, future in admin.create_topics(new, request_timeout=2 * REQUEST_S).items():
        try:
            future.result()
            created.append(topic)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
    if marker_topic not in created:
        _widen(admin, marker_topic, lanes)
    return created


# A topic that somebody has just made is known to the controller before all brokers have heard of it.
@retry(
    retry=retry_if_exception_type(TopicMissing),
    wait=wait_fixed(0.1),
    stop=stop_after_delay(REQUEST_S),
    reraise=True,
)
def _widen(admin: AdminClient, marker_topic: str, lanes: int) -> None:
    """Give the marker topic a partition a lane; it holds no records, so no key moves."""
    if len(describe(admin, marker_topic).partitions) < lanes:
        wider = [NewPartitions(marker_topic, lanes)]
        admin.create_partitions(wider, request_timeout=2 * REQUEST_S)[marker_topic].result()


def find_missing(admin: AdminClient, wanted: Sequence[str]) -> list[str]:
    """Say of each missing topic what to do. Raises KafkaException."""
    missing = []
    for topic in wanted:
        try:
            describe(admin, topic)
        except TopicMissing as error:
            missing.append(str(error))
    return missing
