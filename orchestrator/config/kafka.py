"""How Kafka is reached: the addresses, and KAFKA_CONFIG_* as properties of librdkafka.

All of it is checked at the start: what librdkafka would only log, and then wait, is a fault. An address
is no secret and may be in a fault; the value of a property is not.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaException
from confluent_kafka.admin import AdminClient

from orchestrator.config.environment import Environment, printable
from outbox import KAFKA_DEFAULTS, property_refusal
from outbox.admin import try_producers

SERVERS = "KAFKA_BOOTSTRAP_SERVERS"
KAFKA_PREFIX = "KAFKA_CONFIG_"

OTHER_SETTING = {
    "bootstrap.servers": SERVERS,
    "metadata.broker.list": SERVERS,  # another name of it
    "group.id": "CONSUMER_GROUP",
}

# What waits in a client: one answer to a fetch, and a few records. Its own defaults are 100,000
# records, with whatever keys and headers: it counts values alone against queued.max.messages.kbytes.
PREFETCH = {
    "queued.min.messages": "10",
    "queued.max.messages.kbytes": "16384",
    "fetch.max.bytes": "8388608",
    "fetch.queue.backoff.ms": "10",  # 1 s by default: too long for a queue that short
}

# Of the consumer, where the user says nothing.
CONSUMER_DEFAULTS = {
    "session.timeout.ms": "6000",  # the brokers' minimum: how long a dead member keeps partitions
    "heartbeat.interval.ms": "1500",
    "topic.metadata.refresh.interval.ms": "10000",  # new partitions are seen this soon
    **PREFETCH,
    "check.crcs": "true",  # a batch that a disk has changed is an error, and no other command
}


def read_kafka(env: Environment) -> Mapping[str, str]:
    """Return the librdkafka properties: the servers, and KAFKA_CONFIG_* as the user set them."""
    servers = env.read(SERVERS, parse_servers)
    own = read_properties(env)
    if servers:
        env.faults += protocol_faults(servers, own)
    return {
        "bootstrap.servers": servers and servers.addresses,
        **KAFKA_DEFAULTS,
        "reconnect.backoff.max.ms": "1000",  # 10 s by default: long for a broker that is back
        **own,
    }


# ---- addresses ------------------------------------------------------------------------------------

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
DEFAULT_PORT = 9092
HOST = re.compile(r"\[[0-9A-Fa-f:.]+(%\w+)?\]|[A-Za-z0-9._-]+")
# Without brackets, perhaps with a port.
IPV6 = re.compile(r"[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*")


class BootstrapServers(NamedTuple):
    """The addresses as librdkafka takes them, and the protocols that were written before them."""

    addresses: str
    protocols: frozenset[str]


def parse_servers(text: str) -> BootstrapServers:
    """Accept host:port,...; a security protocol before an address is taken off."""
    if set(printable(text)) & set("\"'`"):
        raise ValueError("is quoted: write host:port,... without quotes")
    if "@" in text:
        raise ValueError(
            "holds a user or a password: write host:port,..., and set"
            " KAFKA_CONFIG_SASL_USERNAME and KAFKA_CONFIG_SASL_PASSWORD"
        )
    protocols, addresses = set(), []
    for part in map(str.strip, text.split(",")):
        before, scheme, after = part.partition("://")
        if scheme:
            protocols.add(parse_protocol(before))
        addresses.append(parse_address(after if scheme else part))
    return BootstrapServers(",".join(addresses), frozenset(protocols))


def parse_protocol(text: str) -> str:
    """Accept a security protocol of Kafka, in any case."""
    if text.upper() not in PROTOCOLS:
        raise ValueError(f"has an address with {text}://: write host:port,...")
    return text.upper()


def parse_address(text: str) -> str:
    """Accept host:port or [IPv6]:port. librdkafka would take a wrong one, and never connect."""
    if not text:
        raise ValueError("has an empty address: write host:port,host:port")
    host, _, port = text.rpartition(":")
    if HOST.fullmatch(text):
        raise ValueError(f"has {text}, without a port: write {text}:{DEFAULT_PORT}")
    if IPV6.fullmatch(text):
        raise ValueError(f"has {text}: write an address of IPv6 as [::1]:{DEFAULT_PORT}")
    if not HOST.fullmatch(host):
        raise ValueError("has an address that is not host:port")
    if not (re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
        raise ValueError(f"has {host} with a port that is no number from 1 to 65535")
    return text


def protocol_faults(servers: BootstrapServers, properties: Mapping[str, str]) -> Iterator[str]:
    """Yield a fault for each protocol before an address that the clients do not speak."""
    spoken = properties.get("security.protocol", "PLAINTEXT").upper()
    for written in sorted(servers.protocols - {spoken}):
        yield (
            f"{SERVERS} has an address with {written}://, but the clients speak {spoken}:"
            f" set {variable_of('security.protocol')}={written}"
        )


# ---- properties -----------------------------------------------------------------------------------


def read_properties(env: Environment) -> dict[str, str]:
    """Return what KAFKA_CONFIG_* sets.

    Other KAFKA_* variables are not ours: Kubernetes injects KAFKA_PORT=tcp://... for a service.
    """
    own: dict[str, str] = {}
    for variable in sorted(env.variables):
        if not variable.startswith(KAFKA_PREFIX):
            continue
        name = setting_of(variable)
        prop = property_of(name)
        value = env.text(name) or ""
        if prop in OTHER_SETTING:
            env.faults.append(f"{variable} must not be set: use {OTHER_SETTING[prop]}")
        elif fault := property_refusal(prop, value) or property_fault(prop, value):
            env.faults.append(f"{variable} {fault}")
        else:
            own[prop] = value
    if own and (fault := properties_fault(own)):
        env.faults.append(fault)
    return own


UNKNOWN_PROPERTY = "No such configuration property"  # how librdkafka's complaint begins


def setting_of(variable: str) -> str:
    """Return NAME of NAME_FILE. Some properties of librdkafka end in `.file` themselves."""
    if variable.endswith("_FILE"):
        complaint = complaint_of_admin({property_of(variable): ""})
        if complaint and complaint.startswith(UNKNOWN_PROPERTY):
            return variable.removesuffix("_FILE")
    return variable


def property_of(name: str) -> str:
    """Return the librdkafka property that KAFKA_CONFIG_NAME sets."""
    return name.removeprefix(KAFKA_PREFIX).lower().replace("_", ".")


def variable_of(prop: str) -> str:
    """Return the variable that sets a librdkafka property."""
    return KAFKA_PREFIX + prop.upper().replace(".", "_")


NOT_TOGETHER = re.compile(r"Failed to create [a-z ]+: ")  # each is valid, but not all together


def property_fault(prop: str, value: str) -> str | None:
    """Return what is wrong with one property by itself, without its value; None if nothing is."""
    complaint = complaint_of_admin({prop: value})
    if complaint is None or NOT_TOGETHER.match(complaint):
        return None
    if complaint.startswith(UNKNOWN_PROPERTY):
        return f"is no property of librdkafka ({prop})"
    return f"is no valid value of {prop}"


def properties_fault(own: Mapping[str, str]) -> str | None:
    """Return why no client can be made with valid properties, without their values; None: all can."""
    complaint = complaint_of_admin(own) or complaint_of_producer(own) or complaint_of_consumer(own)
    if complaint is None:
        return None
    complaint = NOT_TOGETHER.sub("", complaint).strip()
    named = [variable_of(prop) for prop in sorted(own) if f"`{prop}`" in complaint]
    if "GSSAPI" in complaint and "sasl.mechanism" not in own:  # librdkafka's default
        return f"{variable_of('sasl.mechanism')} is not set: PLAIN, SCRAM-SHA-512, OAUTHBEARER, ..."
    for value in sorted(filter(None, own.values()), key=len, reverse=True):
        complaint = re.sub(rf"(?<![\w.`]){re.escape(value)}(?![\w.`])", "***", complaint)
    return f"{', '.join(named) or KAFKA_PREFIX + '*'}: {complaint}"


# Each client is made without an address, so it connects to nothing; what it logs is dropped.
SILENT = logging.Logger("trial", logging.CRITICAL)  # noqa: LOG001  # of clients that do no work


def complaint_of_admin(properties: Mapping[str, str]) -> str | None:
    """Return what librdkafka says against a client with these properties."""
    try:
        AdminClient(dict(properties), logger=SILENT)
    except KafkaException as error:
        return str(error.args[0].str())
    return None


def complaint_of_producer(properties: Mapping[str, str]) -> str | None:
    """Return what librdkafka says against the relay's producers with these properties."""
    try:
        try_producers(properties)
    except KafkaException as error:
        return str(error.args[0].str())
    return None


def complaint_of_consumer(properties: Mapping[str, str]) -> str | None:
    """Return what librdkafka, or the group's protocol, says against the consumer."""
    config = {**CONSUMER_DEFAULTS, **properties, "group.id": "trial"}
    heartbeat, session = config["heartbeat.interval.ms"], config["session.timeout.ms"]
    if heartbeat.isdecimal() and session.isdecimal() and int(heartbeat) >= int(session):
        return "`heartbeat.interval.ms` must be less than `session.timeout.ms`, a third is usual"
    try:
        Consumer(config, logger=SILENT).close()
    except KafkaException as error:
        return str(error.args[0].str())
    return None
