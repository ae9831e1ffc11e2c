"""The check of `doctor` on the consumer group: can our consumers be its members, and are they alone?"""

import warnings

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, not in its __all__
    GroupMetadata,
    ResourceType,
)

from orchestrator.config.kafka import CONSUMER_DEFAULTS
from orchestrator.consumer.client import FOREIGN_GROUP, SESSION_TIMEOUT_ADVICE
from orchestrator.kafka.topics import REQUEST_S
from orchestrator.operations.doctor.check import Installation, Result, combine, counted
from orchestrator.operations.doctor.kafka import (
    NOT_ALLOWED,
    Configs,
    config_values,
    request_configs,
)
from orchestrator.operations.status.status import count_consumers

MIN_TIMEOUT, MAX_TIMEOUT = "group.min.session.timeout.ms", "group.max.session.timeout.ms"
OUR_ASSIGNORS = ("", "range", "roundrobin")  # librdkafka's default; none while the group has no member


def consumer_group(installation: Installation) -> Result:
    """Find a group of our name and another kind, and brokers that do not accept our time-out."""
    name = installation.settings.consumer_group
    groups = read_groups(installation, name)
    remarks: list[Result] = [
        ("failed", f"group {name}: {FOREIGN_GROUP}")
        for group in groups
        if group.state == "Dead" or group.protocol not in OUR_ASSIGNORS
    ]
    members, consumers = sum(len(group.members) for group in groups), count_consumers(installation.conn)
    if members > consumers:
        text = f"group {name} has {counted(members, 'member')}, and {consumers} of our consumers run"
        remarks.append(("warning", f"{text}: another client takes partitions, and none may"))
    timeout_ms = int({**CONSUMER_DEFAULTS, **installation.settings.kafka}["session.timeout.ms"])
    limits = broker_configs(installation)
    least, most = int(limits.get(MIN_TIMEOUT, 0)), int(limits.get(MAX_TIMEOUT, timeout_ms))
    if not least <= timeout_ms <= most:
        text = f"session.timeout.ms is {timeout_ms}, the brokers accept {least} to {most}"
        remarks.append(("failed", f"{text}: {SESSION_TIMEOUT_ADVICE}"))
    return combine(remarks, f"{name} is no one else's, and its time-out of {timeout_ms} ms is accepted")


def read_groups(installation: Installation, name: str) -> list[GroupMetadata]:
    """Return the group, if there is one. Of another kind, it exists and is described as dead.

    By a deprecated request: the newer ones do not show a share group or a Streams group at all.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return list(installation.admin.list_groups(name, timeout=REQUEST_S))


def broker_configs(installation: Installation) -> Configs:
    """Return the settings of a broker; none if we may not read them. Raises KafkaException."""
    client, broker = installation.admin, str(installation.brokers[0].id)
    try:
        return config_values(request_configs(client, ResourceType.BROKER, [broker])[broker])
    except KafkaException as error:
        if error.args[0].code() not in NOT_ALLOWED:
            raise
        return {}
