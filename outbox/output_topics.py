"""The topics that rows go to: which topic it is, where it ends now, whether a search can rely on it.

Invariant: the ends that a claim writes into its lane row were read before the batch is first sent. So
no record of the batch can lie before them. The brokers are asked ahead, without waiting for an answer:
a claim waits only for a topic that is new, or after a long silence.
"""

import json
import math
import struct
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple
from uuid import UUID

from confluent_kafka import (
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
    TopicPartitionInfo,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, not in its __all__
    AclOperation,
    ConfigResource,
    OffsetSpec,
    ResourceType,
    TopicDescription,
)

from outbox.errors import InDoubt
from outbox.kafka_calls import RETRY_PAUSE_S, KafkaConfig, Partition, new_admin_client
from outbox.message import is_topic_name

COMPACT = "compact"  # a clean-up policy
MIN_IN_SYNC = "min.insync.replicas"
REFRESH_S = 1.0  # the brokers are asked so often while rows come
MAX_AGE_S = 5.0  # older ends would make a search long: a claim waits for new ones
RETRY_S = 0.1  # after an error
REQUEST_S = 5.0

# Nothing can be written to such a topic, so nothing of a batch can be in it.
NO_TOPIC_ERRORS = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
    }
)


class TopicEnd(NamedTuple):
    """A topic, and the end offset of each of its partitions; of later ones it is 0.

    topic_id: None if there was no such topic.
    """

    topic_id: str | None
    offsets: list[int]

    def start(self, partition: int) -> int:
        """Return where a search of a partition begins."""
        return self.offsets[partition] if partition < len(self.offsets) else 0


SearchStart = Mapping[str, TopicEnd]  # by topic


def encode_start(start: SearchStart) -> str:
    """Return a search's start as the JSON of outbox_lane.search_start."""
    return json.dumps(start, separators=(",", ":"))


def decode_start(stored: str | None) -> SearchStart:
    """Return the start of a search that was stored; empty if nothing was in flight."""
    return {topic: TopicEnd(*end) for topic, end in json.loads(stored or "{}").items()}


Described = Mapping[str, TopicDescription | None]  # by name; None: there is no such topic


class TopicRefusal(NamedTuple):
    """Why nothing can be written to a topic, and what to do.

    is_forbidden: this relay's user may not; another relay's may.
    """

    text: str
    is_forbidden: bool


class OutputTopics:
    """What the brokers say of the topics that this relay has met.

    refusals: those of them that nothing can be written to, by the last answer.
    """

    def __init__(self, kafka: KafkaConfig, tick: Callable[[], None], timeout_s: float) -> None:
        self._kafka = kafka
        self._admin = new_admin_client(kafka)
        self._tick = tick
        self._timeout_s = timeout_s
        self._names: set[str] = set()
        self._ends: dict[str, TopicEnd] = {}
        self.refusals: Mapping[str, TopicRefusal] = {}
        self._error: str | None = None
        self._answered_at = -math.inf  # monotonic
        self._question: Iterator[None] | None = None
        self._next_question_at = 0.0  # monotonic

    # ---- where they end now -------------------------------------------------------------------------

    def poll(self) -> None:
        """Ask for the ends now and then, and take in the answers, without waiting."""
        if self._question is None and self._names and time.monotonic() >= self._next_question_at:
            self._question = self._ask()
            self._next_question_at = time.monotonic() + REFRESH_S
        if self._question is not None and next(self._question, self) is self:
            self._question = None
            if self._error:
                self._next_question_at = time.monotonic() + RETRY_S

    def ends(self, topics: Collection[str], wait_s: float = math.inf) -> SearchStart:
        """Return where topics end, as they did at most MAX_AGE_S ago. Raises InDoubt.

        Without topics: wait until the answer on those that are known is no older.
        """
        ticked_at = time.monotonic()
        deadline = ticked_at + min(self._timeout_s, wait_s)
        if new := set(topics) - self._names:
            self._names |= new
            self._next_question_at = 0.0
        self.poll()
        while self._names and not (self._is_fresh() and self._ends.keys() >= set(topics)):
            self.poll()
            now = time.monotonic()
            if now > deadline:
                names = ", ".join(sorted(self._names))
                raise self._doubt(f"where the topics {names} end is not known: {self._error}")
            if now > ticked_at + 1.0:
                ticked_at = now
                self._tick()
            time.sleep(RETRY_PAUSE_S / 10)
        return {topic: self._ends[topic] for topic in topics}

    def _is_fresh(self) -> bool:
        return time.monotonic() < self._answered_at + MAX_AGE_S

    def _ask(self) -> Iterator[None]:
        """Ask what topics there are, then where they end; yields until there is an answer."""
        begun_at = time.monotonic()
        if (described := (yield from self._ask_topics())) is None:
            return
        topics, refusals = described
        refusals |= yield from self._ask_thin_ones(topics)
        yield from self._ask_ends(topics)
        self.refusals = refusals
        self._answered_at, self._error = begun_at, None

    def _ask_topics(self) -> Generator[None, None, tuple[Described, dict[str, TopicRefusal]] | None]:
        """Return the topics, and which of them cannot be written to; None: ask again."""
        described, asked = {}, frozenset(self._names)  # more may come before the answer does
        if names := sorted(filter(is_topic_name, asked)):
            described = self._admin.describe_topics(
                TopicCollection(names), include_authorized_operations=True, request_timeout=REQUEST_S
            )
        yield from until_done(described.values())
        topics: dict[str, TopicDescription | None] = dict.fromkeys(asked - described.keys())
        refusals: dict[str, TopicRefusal] = {}
        for name, future in described.items():
            try:
                topics[name] = topic = future.result()
                refusal = refusal_of(topic)
            except KafkaException as raised:
                error = raised.args[0]
                if error.code() not in NO_TOPIC_ERRORS:
                    self._error = f"{name}: {error.str()}"
                    if error.retriable() or error.code() == KafkaError._TIMED_OUT:
                        self._admin = new_admin_client(self._kafka)  # see _doubt
                        return None
                topics[name], refusal = None, describe_refusal(name, error)
            if refusal:
                refusals[name] = refusal
        return topics, refusals

    def _ask_thin_ones(self, topics: Described) -> Generator[None, None, dict[str, TopicRefusal]]:
        """Return which topics that lack replicas have too few in sync."""
        thin = [topic for topic in topics.values() if topic and is_thin(topic)]
        if not thin:
            return {}
        resources = [ConfigResource(ResourceType.TOPIC, topic.name) for topic in thin]
        configs = self._admin.describe_configs(resources, request_timeout=REQUEST_S)
        yield from until_done(configs.values())
        refusals = {}
        for topic, config in zip(thin, configs.values(), strict=True):
            if config.exception() is None:
                least = int(config.result()[MIN_IN_SYNC].value)
                if refusal := refusal_of(topic, least):
                    refusals[topic.name] = refusal
        return refusals

    def _ask_ends(self, topics: Described) -> Iterator[None]:
        """Learn where topics end. Without a leader no broker knows it: asking would take long."""
        wanted = [
            TopicPartition(name, part.id)
            for name, topic in topics.items()
            for part in (topic.partitions if topic else ())
            if has_leader(part)
        ]
        listed = self._list_offsets(wanted, OffsetSpec.latest()) if wanted else {}  # type: ignore[no-untyped-call]
        yield from until_done(listed.values())
        for name, topic in topics.items():
            end = TopicEnd(str(topic_id_of(topic)) if topic else None, [])
            for number in range(len(topic.partitions) if topic else 0):
                one = TopicPartition(name, number)
                end.offsets.append(self._end_of(end, one, listed.get(one)))
            self._ends[name] = end

    def _end_of(self, end: TopicEnd, one: TopicPartition, listed: Future[Any] | None) -> int:
        """Return a partition's end; if that is not known now, the end before: a longer search."""
        if listed and listed.exception() is None and (offset := int(listed.result().offset)) >= 0:
            return offset
        before = self._ends.get(one.topic)
        return before.start(one.partition) if before and before.topic_id == end.topic_id else 0

    # ---- what a search must know --------------------------------------------------------------------

    def describe(self, topic: str) -> TopicEnd | None:
        """Return a topic's id, and offset 0 for each partition; None: missing. Raises InDoubt."""
        if not is_topic_name(topic):
            return None
        request = self._admin.describe_topics(TopicCollection([topic]), request_timeout=REQUEST_S)
        try:
            found = result_or_none(self._wait(request)[topic])
        except KafkaException as error:
            raise self._doubt(f"{topic}: {error.args[0].str()}") from error
        if found is None:
            return None
        return TopicEnd(str(topic_id_of(found)), [0] * len(found.partitions))

    def log_starts(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Return the first offset that each partition still has. Raises InDoubt."""
        wanted = [TopicPartition(*one) for one in partitions]
        request = self._wait(self._list_offsets(wanted, OffsetSpec.earliest()))  # type: ignore[no-untyped-call]
        try:
            return {
                (one.topic, one.partition): future.result().offset for one, future in request.items()
            }
        except KafkaException as error:
            raise self._doubt(f"log start offsets: {error.args[0].str()}") from error

    def cleanup_policy(self, topic: str) -> str:
        """Return how a topic loses records. Raises InDoubt."""
        wanted = ConfigResource(ResourceType.TOPIC, topic)
        (request,) = self._wait(
            self._admin.describe_configs([wanted], request_timeout=REQUEST_S)
        ).values()
        try:
            return str(request.result()["cleanup.policy"].value)
        except KafkaException as error:
            raise self._doubt(f"cleanup.policy of {topic}: {error.args[0].str()}") from error

    def reconnect(self) -> None:
        """Ask by new connections: the old ones may have been forgotten, as those of a doubt were."""
        self._admin, self._question = new_admin_client(self._kafka), None
        self._answered_at, self._next_question_at = -math.inf, 0.0

    def _doubt(self, reason: str) -> InDoubt:
        """Return the error to raise; a client that got no answer is not asked again.

        It may have lost all brokers for good (librdkafka issue 5301).
        """
        self.reconnect()
        return InDoubt(reason)

    def _list_offsets(
        self, wanted: Collection[TopicPartition], spec: OffsetSpec
    ) -> dict[Any, Future[Any]]:
        """Ask for offsets; the end is that of a `read_committed` reader.

        A search that began beyond it would never come to an end while another transaction is open.
        """
        return self._admin.list_offsets(
            dict.fromkeys(wanted, spec),
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=REQUEST_S,
        )

    def _wait(self, request: dict[Any, Future[Any]]) -> dict[Any, Future[Any]]:
        """Wait for all answers; each request has a time-out of its own."""
        for _ in until_done(request.values()):
            self._tick()
            time.sleep(RETRY_PAUSE_S)
        return request


def describe_refusal(topic: str, error: KafkaError) -> TopicRefusal:
    """Say why a topic has no description."""
    if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        text = f"topic authorization failed: grant this user Describe and Write on topic {topic}"
        return TopicRefusal(text, is_forbidden=True)
    if error.code() in NO_TOPIC_ERRORS:
        return TopicRefusal(f"topic {topic} is missing: create it", is_forbidden=False)
    return TopicRefusal(f"topic {topic}: {error.str()}", is_forbidden=False)


def has_leader(partition: TopicPartitionInfo) -> bool:
    """Say whether a broker leads a partition."""
    return partition.leader is not None and partition.leader.id >= 0


def is_thin(topic: TopicDescription) -> bool:
    """Say whether a replica of the topic is not in sync, so that it may have too few."""
    return any(len(part.isr) < len(part.replicas) for part in topic.partitions)


def refusal_of(topic: TopicDescription, min_in_sync: int = 0) -> TopicRefusal | None:
    """Say why this user cannot write to a topic; None: it can, or the brokers do not tell.

    min_in_sync: its min.insync.replicas, if it is_thin.
    """
    allowed = topic.authorized_operations
    if allowed and AclOperation.WRITE not in allowed:
        text = f"topic authorization failed: grant this user Write on topic {topic.name}"
        return TopicRefusal(text, is_forbidden=True)
    for part in topic.partitions:
        lacks = None if has_leader(part) else "no leader"
        if not lacks and len(part.isr) < min(min_in_sync, len(part.replicas)):
            lacks = f"{len(part.isr)} in sync of the {min_in_sync} replicas that {MIN_IN_SYNC} asks for"
        if lacks:
            text = f"partition {part.id} of topic {topic.name} has {lacks}: bring its brokers back"
            return TopicRefusal(text, is_forbidden=False)
    return None


def until_done(futures: Collection[Future[Any]]) -> Iterator[None]:
    """Yield until all futures are done."""
    while not all(future.done() for future in futures):
        yield


def result_or_none(future: Future[TopicDescription]) -> TopicDescription | None:
    """Return a topic's description, None if there is none that we could write to."""
    try:
        return future.result()
    except KafkaException as error:
        if error.args[0].code() in NO_TOPIC_ERRORS:
            return None
        raise


TOPIC_ID_LONGS = struct.Struct(">qq")  # Kafka gives the id as two signed longs


def topic_id_of(description: TopicDescription) -> UUID:
    """Return Kafka's id of a topic (KIP-516): another one after the topic was recreated."""
    longs: Any = description.topic_id  # its type stub lacks the getters
    high, low = longs.get_most_significant_bits(), longs.get_least_significant_bits()
    return UUID(bytes=TOPIC_ID_LONGS.pack(high, low))
