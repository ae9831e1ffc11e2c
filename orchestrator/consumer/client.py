"""The consumer's membership in its group, and whether any broker can be reached."""

import logging
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException

from orchestrator.config.kafka import CONSUMER_DEFAULTS

SESSION_TIMEOUT_ADVICE = (
    "set KAFKA_CONFIG_SESSION_TIMEOUT_MS within the brokers' group.min.session.timeout.ms and"
    " group.max.session.timeout.ms"
)
FOREIGN_GROUP = (
    "others use it in another way (a share group, Kafka Streams, the protocol `consumer` of KIP-848,"
    " another assignor): set CONSUMER_GROUP to a name of its own"
)
ADVICE = {
    KafkaError.INVALID_SESSION_TIMEOUT: SESSION_TIMEOUT_ADVICE,
    KafkaError.INCONSISTENT_GROUP_PROTOCOL: FOREIGN_GROUP,
    KafkaError.GROUP_ID_NOT_FOUND: FOREIGN_GROUP,
    KafkaError.GROUP_MAX_SIZE_REACHED: "run fewer consumers, or raise the brokers' group.max.size",
}


def explain(error: KafkaError, group: str) -> KafkaError:
    """Return an error of the group with what to do about it."""
    advice = ADVICE.get(error.code())
    return KafkaError(error.code(), f"{error.str()}: group {group}: {advice}") if advice else error


class GroupMember(Consumer):
    """A member of a consumer group that neither commits by itself nor ever jumps to another offset."""

    def __init__(self, kafka: Mapping[str, str], group: str) -> None:
        self.group = group
        self._all_brokers_down: KafkaError | None = None
        config: dict[str, Any] = {
            **CONSUMER_DEFAULTS,
            "error_cb": self._on_error,
            **kafka,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,  # the end has an offset, behind ends of transactions, too
            "auto.offset.reset": "error",  # never a silent jump
            "isolation.level": "read_committed",
        }
        super().__init__(config, logger=logging.getLogger("librdkafka"))

    @property
    def is_cut_off(self) -> bool:
        """Say whether no broker can be reached."""
        return self._all_brokers_down is not None

    def check_reachable(self) -> None:
        """Raise KafkaException if no broker can be reached: polling would wait, and look idle."""
        if self._all_brokers_down:
            raise KafkaException(self._all_brokers_down)

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._all_brokers_down = error
