"""The check of `doctor` on the consumer group: can our consumers be its members?"""

from concurrent.futures import Future

from confluent_kafka import ConsumerGroupType
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, not in its __all__
    ListConsumerGroupsResult,
    ResourceType,
)

from orchestrator.config.kafka import CONSUMER_DEFAULTS
from orchestrator.consumer.client import FOREIGN_GROUP, SESSION_TIMEOUT_ADVICE
from orchestrator.kafka.topics import REQUEST_S
from orchestrator.operations.doctor.check import Installation, Result, combine
from orchestrator.operations.doctor.kafka import Configs, config_values, request_configs

MIN_TIMEOUT, MAX_TIMEOUT = "group.min.session.timeout.ms", "group.max.session.timeout.ms"


def consumer_group(installation: Installation) -> Result:
    """Find a group of our name and another kind, and brokers that do not accept our time-out."""
    name = installation.settings.consumer_group
    listed: Future[ListConsumerGroupsResult] = installation.admin.list_consumer_groups(
        request_timeout=REQUEST_S
    )
    remarks: list[Result] = [
        ("failed", f"group {name}: {FOREIGN_GROUP}")
        for group in listed.result().valid or ()
        if group.group_id == name and group.type is not ConsumerGroupType.CLASSIC
    ]
    timeout_ms = int({**CONSUMER_DEFAULTS, **installation.settings.kafka}["session.timeout.ms"])
    limits = broker_configs(installation)
    least, most = int(limits.get(MIN_TIMEOUT, 0)), int(limits.get(MAX_TIMEOUT, timeout_ms))
    if not least <= timeout_ms <= most:
        text = f"session.timeout.ms is {timeout_ms}, the brokers accept {least} to {most}"
        remarks.append(("failed", f"{text}: {SESSION_TIMEOUT_ADVICE}"))
    return combine(remarks, f"{name} is ours, and its time-out of {timeout_ms} ms is accepted")


def broker_configs(installation: Installation) -> Configs:
    """Return the settings of a broker. Raises KafkaException."""
    client, broker = installation.admin, str(installation.brokers[0].id)
    return config_values(request_configs(client, ResourceType.BROKER, [broker])[broker])
