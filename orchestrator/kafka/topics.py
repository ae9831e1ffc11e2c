"""The topics: their ids, the offsets of their partitions, and creating the missing ones."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any
from uuid import UUID

from confluent_kafka import (
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, not in its __all__
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ListOffsetsResultInfo,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
    TopicDescription,
)
from tenacity import retry, retry_if_exception, stop_after_delay, wait_fixed

from orchestrator.program import PROGRAM
from outbox import error_text, is_thin, refusal_of, topic_id_of

REQUEST_S = 5.0  # one request to the brokers
UNKNOWN_TOPIC_ERRORS = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.UNKNOWN_TOPIC_ID})
NO_ANSWER = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
    }
)
AUTH_ERRORS = frozenset({KafkaError._AUTHENTICATION, KafkaError._SSL})
CONNECTION_ERRORS = frozenset({KafkaError._TRANSPORT, KafkaError._RESOLVE})


class TopicMissing(Exception):
    """A topic that is needed does not exist."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"topic {topic} is missing: create it or run `{PROGRAM} setup`")


# With connections made on demand, a request that waits for the controller retries them without a pause
# while no broker can be reached: a whole core. Hidden property of librdkafka; seen with 2.15.1.
DENSE_CONNECTIONS = {"enable.sparse.connections": "false"}


class Admin(AdminClient):
    """A client that knows why no broker serves it: a connection or a password is refused.

    Its requests only time out then. The reason comes by callback and log, which both need poll().
    """

    def __init__(self, kafka: Mapping[str, str]) -> None:
        self._cause: KafkaError | None = None  # since a request was served
        config: dict[str, Any] = {**kafka, **DENSE_CONNECTIONS, "error_cb": self._on_error}
        super().__init__(config, logger=logging.getLogger("librdkafka"))

    def _on_error(self, error: KafkaError) -> None:
        is_auth = error.code() in AUTH_ERRORS
        if is_auth or (error.code() in CONNECTION_ERRORS and self._cause is None):
            text = error.str().partition(" (after ")[0]  # how long it took is never the same
            self._cause = KafkaError(error.code(), text)

    def served(self) -> None:
        """Note that a request was served: what connections met before counts no more."""
        self._cause = None

    def cause_of(self, error: KafkaException) -> KafkaException:
        """Return the cause of a request that was not answered: what the connections met."""
        self.poll(0)
        is_silent = error.args[0].code() in NO_ANSWER
        return KafkaException(self._cause) if self._cause and is_silent else error


def check_access(kafka: Mapping[str, str]) -> None:
    """Send the brokers a request. Raises KafkaException, which says why they do not serve us."""
    admin = Admin(kafka)
    try:
        admin.list_topics(timeout=REQUEST_S)
    except KafkaException as error:
        raise admin.cause_of(error) from None


def describe_topic(admin: AdminClient, topic: str) -> TopicDescription:
    """Ask the brokers about a topic. Raises TopicMissing, or KafkaException: an Admin's says why."""
    asked = admin.describe_topics(TopicCollection([topic]), request_timeout=REQUEST_S)
    try:
        found = result_of(asked[topic], topic)
    except KafkaException as error:
        if isinstance(admin, Admin):
            raise admin.cause_of(error) from None
        raise
    if isinstance(admin, Admin):
        admin.served()
    return found


def result_of(future: Future[TopicDescription], topic: str) -> TopicDescription:
    """Wait for a description. Raises TopicMissing, or KafkaException."""
    try:
        return future.result()
    except KafkaException as error:
        if error.args[0].code() in UNKNOWN_TOPIC_ERRORS:
            raise TopicMissing(topic) from error
        raise


def exists(admin: AdminClient, topic: str) -> bool:
    """Return whether there is such a topic. Raises KafkaException."""
    try:
        describe_topic(admin, topic)
    except TopicMissing:
        return False
    except KafkaException as error:
        if error.args[0].code() == KafkaError.TOPIC_EXCEPTION:  # no topic can have this name
            return False
        raise
    return True


def read_topic_id(admin: AdminClient, topic: str) -> UUID:
    """Return Kafka's own id of a topic (KIP-516): another one after the topic was recreated."""
    return topic_id_of(describe_topic(admin, topic))


def read_min_in_sync(admin: AdminClient, topic: str) -> int:
    """Return how many replicas must have a record before it counts. Raises KafkaException."""
    resource = ConfigResource(ResourceType.TOPIC, topic)
    (found,) = admin.describe_configs([resource], request_timeout=REQUEST_S).values()
    return int(found.result()["min.insync.replicas"].value)


class TopicRecreated(Exception):
    """The topic was recreated while it was read: offsets no longer mean the same."""


class TopicWatch:
    """A topic that is being read, and a regular check that it still has the same id.

    A reader that continues at its old offset in a recreated topic would skip the records before it.
    """

    def __init__(self, admin: AdminClient, name: str, topic_id: UUID, check_s: float) -> None:
        self.name = name
        self.id = topic_id
        self._admin = admin
        self._check_s = check_s
        self._answer: Future[TopicDescription] | None = None
        self._next_check_at = time.monotonic() + check_s

    def poll(self) -> None:
        """Check every check_s without waiting for the answer. Raises TopicRecreated or TopicMissing."""
        if self._answer is None:
            if time.monotonic() >= self._next_check_at:
                self.begin_check()
        elif self._answer.done():
            answer = self._end_check(self._answer)
            with suppress(KafkaException):  # trouble with Kafka shows itself elsewhere
                self._compare(result_of(answer, self.name))

    def begin_check(self) -> None:
        """Ask the brokers; `finish_check` waits for the answer."""
        self._answer = self._admin.describe_topics(
            TopicCollection([self.name]), request_timeout=REQUEST_S
        )[self.name]

    def finish_check(self) -> None:
        """Wait for the answer, if one is due. Raises TopicRecreated, TopicMissing or KafkaException.

        Records that came before the check began are this topic's: an id never returns.
        """
        if self._answer is not None:
            self._compare(result_of(self._end_check(self._answer), self.name))

    def check_now(self) -> None:
        """Check and wait. Raises TopicRecreated, TopicMissing or KafkaException."""
        self.begin_check()
        self.finish_check()

    def _end_check(self, answer: Future[TopicDescription]) -> Future[TopicDescription]:
        self._answer = None
        self._next_check_at = time.monotonic() + self._check_s
        return answer

    def _compare(self, found: TopicDescription) -> None:
        if topic_id_of(found) != self.id:
            raise TopicRecreated(f"topic {self.name} was recreated")


def read_log_start_offsets(admin: AdminClient, topic: str, partitions: Sequence[int]) -> dict[int, int]:
    """Return the first offset that each partition still has."""
    return _read_offsets(admin, topic, partitions, OffsetSpec.earliest())  # type: ignore[no-untyped-call]


def read_high_watermarks(admin: AdminClient, topic: str, partitions: Sequence[int]) -> dict[int, int]:
    """Return the offset after the last record of each partition."""
    return _read_offsets(admin, topic, partitions, OffsetSpec.latest())  # type: ignore[no-untyped-call]


def read_last_stable_offsets(
    admin: AdminClient, topic: str, partitions: Sequence[int]
) -> dict[int, int]:
    """Return the offset before which each partition has no open transaction."""
    committed = IsolationLevel.READ_COMMITTED
    return _read_offsets(admin, topic, partitions, OffsetSpec.latest(), isolation_level=committed)  # type: ignore[no-untyped-call]


def read_leader_epochs(admin: AdminClient, topic: str, partitions: Sequence[int]) -> dict[int, int]:
    """Return the leader epoch that each partition has now; -1 if the brokers do not say."""
    requests = request_leader_epochs(admin, topic, partitions)
    return {partition: leader_epoch_of(request) for partition, request in requests.items()}


def request_leader_epochs(
    admin: AdminClient, topic: str, partitions: Sequence[int]
) -> dict[int, Future[ListOffsetsResultInfo]]:
    """Ask for the leader epochs that partitions have now; `leader_epoch_of` takes the answer."""
    ends = {TopicPartition(topic, partition): OffsetSpec.latest() for partition in partitions}  # type: ignore[no-untyped-call]
    futures = admin.list_offsets(ends, request_timeout=REQUEST_S)
    return {one.partition: future for one, future in futures.items()}


def leader_epoch_of(request: Future[ListOffsetsResultInfo]) -> int:
    """Wait for an answer; return the leader epoch, -1 if the brokers do not say."""
    epoch = request.result().leader_epoch
    return -1 if epoch is None else epoch


def read_offsets_at(
    admin: AdminClient, topic: str, partitions: Sequence[int], time_ms: int
) -> dict[int, int]:
    """Return each partition's first offset with a timestamp (Unix ms) not before; -1 if none has."""
    return _read_offsets(admin, topic, partitions, OffsetSpec.for_timestamp(time_ms))


def _read_offsets(
    admin: AdminClient, topic: str, partitions: Sequence[int], spec: OffsetSpec, **options: Any
) -> dict[int, int]:
    asked = {TopicPartition(topic, partition): spec for partition in partitions}
    futures = admin.list_offsets(asked, request_timeout=REQUEST_S, **options)
    return {one.partition: future.result().offset for one, future in futures.items()}


def count_members(admin: AdminClient, group: str) -> int | None:
    """Count the members of a consumer group; None: it may not be described. Raises KafkaException."""
    asked = admin.describe_consumer_groups([group], request_timeout=REQUEST_S)
    try:
        return len(asked[group].result().members)
    except KafkaException as error:
        match error.args[0].code():
            case KafkaError.GROUP_ID_NOT_FOUND:
                return 0
            case KafkaError.GROUP_AUTHORIZATION_FAILED:
                return None
            case _:
                raise


TRY_AGAIN_ERRORS = frozenset(
    {
        KafkaError.NOT_CONTROLLER,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.THROTTLING_QUOTA_EXCEEDED,
    }
)


class TopicNotCreated(TopicMissing):
    """The brokers answered that a topic cannot be created."""

    def __init__(self, topic: str, error: KafkaError) -> None:
        advice = "see what the brokers allow, or create it yourself"
        if error.code() == KafkaError.TOPIC_EXCEPTION:
            advice = "give it another name in its variable; '.' and '_' count as the same in names"
        Exception.__init__(
            self, f"topic {topic} was not created: {error.str()} ({error.name()}): {advice}"
        )


KEPT = {"cleanup.policy": "delete"}  # a default of the brokers could remove records unread
# max.message.bytes then limits what a batch becomes in a consumer, which inflates all of it.
INPUT_CONFIG = {**KEPT, "compression.type": "uncompressed"}
# Kafka's default, since that of the brokers could be too low for a dead letter.
LETTER_CONFIG = {**KEPT, "max.message.bytes": "1048588"}


def create_missing(
    admin: AdminClient, marker_topic: str, lanes: int, configs: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Create the topics that are missing; return their names. Raises TopicNotCreated, KafkaException.

    configs: of the other topics, by name. The marker topic is compacted and gets a partition per lane,
    even if it exists with fewer; the others get the brokers' default partitions. Replication is the
    brokers' default everywhere.
    """
    new = [
        NewTopic(topic, -1, replication_factor=-1, config=dict(one)) for topic, one in configs.items()
    ]
    new.append(NewTopic(marker_topic, lanes, replication_factor=-1, config=dict(COMPACTED)))
    created = []
    for topic, future in admin.create_topics(new, request_timeout=2 * REQUEST_S).items():
        try:
            future.result()
            created.append(topic)
        except KafkaException as error:
            code = error.args[0].code()
            if code < 0 or code in TRY_AGAIN_ERRORS:
                raise
            if code != KafkaError.TOPIC_ALREADY_EXISTS:
                raise TopicNotCreated(topic, error.args[0]) from error
    if marker_topic not in created:
        _widen_and_compact(admin, marker_topic, lanes)
    return created


SETUP_RETRY_S = 15.0  # for what another setup, or a reassignment of partitions, has just begun
PASSING_ERRORS = frozenset(
    {
        *UNKNOWN_TOPIC_ERRORS,  # the controller knows a new topic before all brokers do
        KafkaError.INVALID_PARTITIONS,  # another setup was faster: it has these partitions by now
        KafkaError.REASSIGNMENT_IN_PROGRESS,
    }
)


def _passes(error: BaseException) -> bool:
    """Return whether looking again helps: the topic is, or becomes, what it shall be."""
    if isinstance(error, KafkaException):
        return error.args[0].code() in PASSING_ERRORS
    return isinstance(error, TopicMissing)


@retry(
    retry=retry_if_exception(_passes),
    wait=wait_fixed(0.1),
    stop=stop_after_delay(SETUP_RETRY_S),
    reraise=True,
)
def _widen_and_compact(admin: AdminClient, marker_topic: str, lanes: int) -> None:
    """Make an existing marker topic what it must be. Any number of setups may do that at once."""
    _add_partitions(admin, marker_topic, lanes)
    _compact(admin, marker_topic)


def _add_partitions(admin: AdminClient, marker_topic: str, lanes: int) -> None:
    """Give the marker topic a partition per lane; no marker moves, a lane's partition is its number."""
    if len(describe_topic(admin, marker_topic).partitions) < lanes:
        more = [NewPartitions(marker_topic, lanes)]
        admin.create_partitions(more, request_timeout=2 * REQUEST_S)[marker_topic].result()


COMPACTED = {"cleanup.policy": "compact"}


def _compact(admin: AdminClient, marker_topic: str) -> None:
    """Let the marker topic be compacted: retention would delete the markers of idle lanes."""
    topic = ConfigResource(ResourceType.TOPIC, marker_topic)
    (found,) = admin.describe_configs([topic], request_timeout=REQUEST_S).values()
    if found.result()["cleanup.policy"].value == COMPACTED["cleanup.policy"]:
        return
    for name, value in COMPACTED.items():
        entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        topic.add_incremental_config(entry)
    (altered,) = admin.incremental_alter_configs([topic], request_timeout=REQUEST_S).values()
    altered.result()


# Of one topic, while the brokers answer about others.
TOPIC_ERRORS = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.TOPIC_EXCEPTION})


def find_unusable(admin: AdminClient, wanted: Collection[str]) -> dict[str, str]:
    """Return what is wrong with topics, by name, and what to do. Raises KafkaException."""
    return {
        topic: str(error)
        if isinstance(error, TopicMissing)
        else f"topic {topic}: {error_text(error)}: see `{PROGRAM} doctor`"
        for topic, error in _find_faults(admin, wanted).items()
    }


def find_unwritable(admin: AdminClient, wanted: Collection[str]) -> dict[str, str]:
    """Return which topics cannot be written to, by name, and what to do. Raises KafkaException.

    One that we may not describe is not known to be missing.
    """
    unwritable = {}
    for topic in wanted:
        try:
            found = describe_topic(admin, topic)
            refusal = refusal_of(found, read_min_in_sync(admin, topic) if is_thin(found) else 0)
        except TopicMissing as error:
            unwritable[topic] = str(error)
        except KafkaException as error:
            if error.args[0].code() not in TOPIC_ERRORS:
                raise
        else:
            if refusal:
                unwritable[topic] = refusal.text
    return unwritable


def _find_faults(
    admin: AdminClient, wanted: Collection[str]
) -> dict[str, TopicMissing | KafkaException]:
    """Return why topics cannot be described, by name. Raises KafkaException for all other trouble."""
    faults: dict[str, TopicMissing | KafkaException] = {}
    for topic in wanted:
        try:
            describe_topic(admin, topic)
        except TopicMissing as error:
            faults[topic] = error
        except KafkaException as error:
            if error.args[0].code() not in TOPIC_ERRORS:
                raise
            faults[topic] = error
    return faults
