"""The properties of librdkafka that users may not set: order or exactly once rests on them.

Nor those that load a library or run a program: who may write a setting is no author of code.
librdkafka has a second name for many, and takes each property of a topic also with `topic.` before it.
"""

import re
from collections.abc import Callable, Mapping

TRANSACTION = "each batch is a Kafka transaction that all replicas in sync have written"
READER = "only committed records are read, from offsets that the database knows"
GROUP = "partitions are given to members, and taken from them, in the way that their code expects"
REPORTS = "the relay learns from delivery reports and from its producers' log what went wrong"
PROTOCOL = "older versions of Kafka's protocol have no transactions"
CODE = "settings must not load code or run programs"
REJECTED = "a record that Kafka rejects is found and parked, the others are published"

# Where the user says nothing. librdkafka keeps idle connections open for good, and load balancers and
# firewalls forget them in silence after 4 minutes or more: what is sent then is lost without an error.
DEFAULTS: Mapping[str, str] = {"connections.max.idle.ms": "180000"}

# By name: what rests on the property.
REFUSED: Mapping[str, str] = {
    "acks": TRANSACTION,
    "enable.idempotence": TRANSACTION,
    "request.required.acks": TRANSACTION,
    "transactional.id": TRANSACTION,
    "queuing.strategy": "records are sent in the order of their rows",
    "delivery.timeout.ms": "no record is given up before its transaction",
    "message.timeout.ms": "no record is given up before its transaction",
    "enable.gapless.guarantee": REJECTED,
    "auto.commit.enable": READER,
    "auto.offset.reset": READER,
    "enable.auto.commit": READER,
    "enable.auto.offset.store": READER,
    "enable.partition.eof": READER,
    "isolation.level": READER,
    "offset.store.method": READER,
    "offset.store.path": READER,
    "offset.store.sync.interval.ms": READER,
    "group.id": "offsets of the consumer group are markers and positions",
    "group.protocol": GROUP,
    "group.protocol.type": GROUP,
    "group.remote.assignor": GROUP,
    "partition.assignment.strategy": GROUP,
    "delivery.report.only.error": REPORTS,
    "enabled_events": REPORTS,
    "log.connection.close": REPORTS,
    "log.queue": REPORTS,
    "log_level": REPORTS,
    "logger": REPORTS,
    "on_delivery": REPORTS,
    "api.version.fallback.ms": PROTOCOL,
    "api.version.request": PROTOCOL,
    "broker.version.fallback": PROTOCOL,
    "allow.auto.create.topics": "a missing topic is an error; it is not created empty",
    "topic.blacklist": "a topic that is there must be seen",
    "default.topic.config": "it could hold any other property: set each one by its name",
    "plugin.library.paths": CODE,
    "sasl.kerberos.kinit.cmd": CODE,
    "ssl.engine.id": CODE,
    "ssl.engine.location": CODE,
    "test.mock.broker.rtt": "records go to real brokers",
    "test.mock.num.brokers": "records go to real brokers",
}

# Each is a function of the key alone; those called random place records without a key at random.
KEY_PARTITIONERS = (
    *("consistent", "consistent_random", "fnv1a", "fnv1a_random", "murmur2", "murmur2_random"),
)


def is_key_partitioner(value: str) -> bool:
    """Say whether it sends all records with one key to one partition."""
    return value in KEY_PARTITIONERS


def is_few_in_flight(value: str) -> bool:
    """Say whether an idempotent producer keeps the order with so many requests at a time (KIP-98)."""
    return value.isdecimal() and 1 <= int(value) <= 5


def is_retry_count(value: str) -> bool:
    """Say whether an idempotent producer accepts so many retries."""
    return value.isdecimal() and int(value) >= 1


def is_shell_safe(value: str) -> bool:
    """Say whether librdkafka may put it into the command line of kinit, which a shell runs."""
    return re.fullmatch(r"[A-Za-z0-9_./@:+][A-Za-z0-9_./@:+-]*", value) is not None


def are_openssl_providers(value: str) -> bool:
    """Say whether all are OpenSSL's own: of others it would load the file of that name."""
    return {name.strip() for name in value.split(",")} <= OPENSSL_PROVIDERS


def is_web_address(value: str) -> bool:
    """Say whether it is a URL of the web, and no file."""
    return re.match(r"https?://", value) is not None


OPENSSL_PROVIDERS = {"base", "default", "fips", "legacy"}
SHELL_SAFE = "of letters, digits and _./@:+-: librdkafka puts it into a command line of kinit"
FEW_IN_FLIGHT = "from 1 to 5: with more requests at a time records could lose their order"
SOME_RETRIES = "at least 1: an idempotent producer must repeat a request"

# By name: which values are accepted, and what to say of the others.
LIMITED: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "max.in.flight": (is_few_in_flight, FEW_IN_FLIGHT),
    "max.in.flight.requests.per.connection": (is_few_in_flight, FEW_IN_FLIGHT),
    "message.send.max.retries": (is_retry_count, SOME_RETRIES),
    "partitioner": (
        is_key_partitioner,
        f"one of {', '.join(KEY_PARTITIONERS)}: records of one key keep their order in one partition",
    ),
    "retries": (is_retry_count, SOME_RETRIES),
    "sasl.kerberos.keytab": (is_shell_safe, SHELL_SAFE),
    "sasl.kerberos.principal": (is_shell_safe, SHELL_SAFE),
    "sasl.kerberos.service.name": (is_shell_safe, SHELL_SAFE),
    "sasl.oauthbearer.token.endpoint.url": (is_web_address, "https://..."),
    "ssl.providers": (
        are_openssl_providers,
        f"of {', '.join(sorted(OPENSSL_PROVIDERS))}: others are code that would be loaded",
    ),
}


def property_refusal(prop: str, value: object) -> str | None:
    """Return why users may not set the property to this value, as the rest of a sentence; else None."""
    for name in (prop, prop.removeprefix("topic.")):
        if reason := REFUSED.get(name):
            return f"must not be set: {reason}"
        if name in LIMITED:
            is_accepted, accepted = LIMITED[name]
            return None if is_accepted(str(value)) else f"must be {accepted}"
    return None


def check_kafka_config(kafka: Mapping[str, object]) -> None:
    """Raise ValueError that names each property which users may not set, with the reason."""
    faults = {prop: property_refusal(prop, value) for prop, value in kafka.items()}
    refused = [f"{prop} {fault}" for prop, fault in faults.items() if fault]
    if refused:
        raise ValueError("; ".join(refused))
