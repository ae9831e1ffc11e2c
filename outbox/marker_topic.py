"""The topic of the markers: is it what relays need, and creating it."""

from collections.abc import Iterator, Mapping

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, not in its __all__
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

REQUEST_S = 10.0  # one request to the brokers
POLICY = "cleanup.policy"


def create_marker_topic(kafka: Mapping[str, str], topic: str, lanes: int) -> bool:
    """Create the topic, compacted, a partition a lane; return whether it was missing.

    The brokers' default replication. Raises KafkaException.
    """
    new = NewTopic(topic, lanes, replication_factor=-1, config={POLICY: "compact"})
    admin = AdminClient(dict(kafka))
    try:
        admin.create_topics([new], request_timeout=REQUEST_S)[topic].result()
    except KafkaException as error:
        if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return False
        raise
    return True


def find_marker_faults(kafka: Mapping[str, str], topic: str, lanes: int) -> Iterator[str]:
    """Yield what is wrong with the topic, and what mends it. Raises KafkaException."""
    admin = AdminClient(dict(kafka))
    asked = admin.describe_topics(TopicCollection([topic]), request_timeout=REQUEST_S)[topic]
    try:
        partitions = len(asked.result().partitions)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise
        yield f"topic {topic} is missing: run `python -m outbox topics --create`"
        return
    if partitions < lanes:
        yield (
            f"topic {topic} has {partitions} partitions for {lanes} lanes: kafka-topics.sh --alter"
            f" --topic {topic} --partitions {lanes}"
        )
    resource = ConfigResource(ResourceType.TOPIC, topic)
    (configs,) = admin.describe_configs([resource], request_timeout=REQUEST_S).values()
    if (policy := configs.result()[POLICY].value) != "compact":
        yield (
            f"topic {topic} has {POLICY}={policy}, and markers would be deleted: kafka-configs.sh"
            f" --alter --topic {topic} --add-config {POLICY}=compact"
        )
