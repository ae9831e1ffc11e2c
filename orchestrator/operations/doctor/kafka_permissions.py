"""The check of `doctor` on the permissions of our user in Kafka."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from enum import Enum

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, not in its __all__
    AclOperation,
    ConsumerGroupDescription,
)

from orchestrator.kafka.topics import REQUEST_S
from orchestrator.operations.doctor.check import Installation, Result
from orchestrator.operations.doctor.permissions import Permission, judge_permissions

READ, WRITE, DESCRIBE_CONFIGS = AclOperation.READ, AclOperation.WRITE, AclOperation.DESCRIBE_CONFIGS
NAMES = {READ: "Read", WRITE: "Write", DESCRIBE_CONFIGS: "DescribeConfigs"}
COORDINATOR_MOVES = frozenset(
    {
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
    }
)
Operations = Sequence[Enum] | None  # that our user may do; None if that cannot be known


def kafka_acls(installation: Installation) -> Result:
    """Compare what the brokers let us do with what consumer and relay do.

    The brokers do not tell it for transactional ids: one is tried, see `kafka transactions`.
    """
    permissions = list(find_kafka_permissions(installation))
    state, text = judge_permissions(
        "this user", permissions, lambda missing: "grant " + permissions_text(missing)
    )
    is_relay = any(p.process == "relay" and p.identifies_process and p.granted for p in permissions)
    topic = installation.settings.input_topic
    allowed = topic_operations(installation, topic)
    lacking = ", ".join(
        name for one, name in NAMES.items() if allowed is not None and one not in allowed
    )
    if state == "ok" and is_relay and lacking:
        advice = f"but not publish commands: before `dlq retry` grant {lacking} on topic {topic}"
        return "warning", f"{text}, {advice}"
    return state, text


def permissions_text(permissions: Sequence[Permission]) -> str:
    """Return permissions as text."""
    return ", ".join(f"{one.privilege} on {one.resource}" for one in permissions)


def find_kafka_permissions(installation: Installation) -> Iterator[Permission]:
    """Yield what the processes need in Kafka, and whether our user has it."""
    s = installation.settings
    operations = {
        f"topic {name}": topic_operations(installation, name)
        for name in (s.input_topic, s.output_topic, s.dead_letter_topic, s.marker_topic)
    }
    operations |= {
        f"group {name}": some for name, some in group_operations(installation, [s.consumer_group])
    }
    for process, resource, needed, identifies_process in (
        ("consumer", f"topic {s.input_topic}", READ, False),
        ("consumer", f"group {s.consumer_group}", READ, True),
        *(
            ("relay", f"topic {name}", needed, needed is WRITE and name != s.marker_topic)
            for name in (
                s.output_topic,
                s.dead_letter_topic,
                s.marker_topic,
            )  # `repair` writes there, too
            for needed in NAMES
        ),
    ):
        allowed = operations[resource]
        granted = None if allowed is None else needed in allowed
        yield Permission(process, resource, NAMES[needed], identifies_process, granted)


def topic_operations(installation: Installation, name: str) -> Operations:
    """Return what our user may do with a topic: nothing if it is hidden; None if it is missing."""
    if name in installation.topics:
        operations: Operations = installation.topics[name].authorized_operations
        return operations or []
    return [] if name in installation.hidden_topics else None


def group_operations(
    installation: Installation, groups: Sequence[str]
) -> Iterator[tuple[str, Operations]]:
    """Yield each group with what our user may do with it."""
    requests: Mapping[str, Future[ConsumerGroupDescription]] = (
        installation.admin.describe_consumer_groups(
            list(groups), include_authorized_operations=True, request_timeout=REQUEST_S
        )
    )
    for group, request in requests.items():
        try:
            operations: Operations = request.result().authorized_operations
            yield group, operations or []
        except KafkaException as error:
            code = error.args[0].code()
            if code == KafkaError.GROUP_AUTHORIZATION_FAILED:
                yield group, []
            elif code in COORDINATOR_MOVES:  # to another broker, or was just elected
                yield group, None
            else:
                raise
