"""Each property that librdkafka knows is either refused with a reason, or known to be harmless."""

import ctypes
import re
from pathlib import Path

import confluent_kafka
import pytest
from confluent_kafka import KafkaException, Producer

from orchestrator.config.environment import SettingsError
from orchestrator.config.kafka import variable_of
from orchestrator.config.settings import read_kafka_settings
from outbox import Relay
from outbox.kafka_calls import KafkaConfig
from outbox.kafka_config import KEY_PARTITIONERS, LIMITED, REFUSED, property_refusal
from outbox.producers import REQUIRED_CONFIG

# Neither order, nor transactions, nor offsets rest on these, whatever their value: a value that is too
# small or wrong shows as an error or costs time.
HARMLESS = re.findall(
    r"\S+",
    """
    batch.num.messages batch.size broker.address.family broker.address.ttl builtin.features
    check.crcs client.dns.lookup client.id client.rack compression.codec compression.level
    compression.type connections.max.idle.ms consume.callback.max.messages
    coordinator.query.interval.ms debug enable.metrics.push enable.random.seed fetch.error.backoff.ms
    fetch.max.bytes fetch.message.max.bytes fetch.min.bytes fetch.queue.backoff.ms fetch.wait.max.ms
    group.instance.id heartbeat.interval.ms internal.termination.signal linger.ms log.thread.name
    max.partition.fetch.bytes max.poll.interval.ms max.poll.records message.copy.max.bytes
    message.max.bytes metadata.max.age.ms metadata.recovery.rebootstrap.trigger.ms
    metadata.recovery.strategy produce.offset.report queue.buffering.backpressure.threshold
    queue.buffering.max.kbytes queue.buffering.max.messages queue.buffering.max.ms
    queued.max.messages.kbytes queued.min.messages receive.message.max.bytes reconnect.backoff.jitter.ms
    reconnect.backoff.max.ms reconnect.backoff.ms request.timeout.ms retry.backoff.max.ms
    retry.backoff.ms session.timeout.ms share.acknowledgement.mode statistics.interval.ms
    sticky.partitioning.linger.ms topic.metadata.propagation.max.ms topic.metadata.refresh.fast.cnt
    topic.metadata.refresh.fast.interval.ms topic.metadata.refresh.interval.ms
    topic.metadata.refresh.sparse transaction.timeout.ms auto.commit.interval.ms
    api.version.request.timeout.ms
    """,
)

# How Kafka is reached, and who we are there.
CONNECTION = re.compile(r"(ssl|https|sasl|socket|security|enable\.ssl|enable\.sasl)\..*")
SERVERS = {"bootstrap.servers", "metadata.broker.list"}
NEVER_SHOWN = {"test.mock.broker.rtt", "test.mock.num.brokers"}  # hidden in the list
OF_THE_BINDING = {"default.topic.config", "logger", "on_delivery"}  # the Python client's own keys
CALLBACK = re.compile("see dedicated API")  # set by functions of the C library alone


def properties(directory: Path) -> dict[str, str]:
    """Return each property that the installed librdkafka knows, with its description."""
    package = Path(confluent_kafka.__file__).parent
    (library,) = package.parent.glob("confluent_kafka.libs/librdkafka*")
    librdkafka, libc = ctypes.CDLL(str(library)), ctypes.CDLL(None)
    file = directory / "properties"
    libc.fopen.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.fopen(str(file).encode(), b"w"))
    librdkafka.rd_kafka_conf_properties_show(stream)
    libc.fclose(stream)
    rows = re.findall(r"(?m)^([a-z._]+) +\| +[*CP] +\|(.*)$", file.read_text())
    return {str(name): str(text) for name, text in rows}


def test_every_property_of_librdkafka_is_refused_or_known_to_be_harmless(tmp_path: Path) -> None:
    known = properties(tmp_path)
    settable = {name for name, text in known.items() if not CALLBACK.search(text)}
    connection = {name for name in settable - {*REFUSED, *LIMITED} if CONNECTION.fullmatch(name)}
    assert len(settable) > 150
    decided = [REFUSED.keys(), LIMITED.keys(), HARMLESS, SERVERS, connection]
    assert sorted(name for part in decided for name in part) == sorted(
        settable | NEVER_SHOWN | OF_THE_BINDING
    ), "a property of this release of librdkafka is not decided on, or is decided on twice"


def test_a_callback_cannot_be_set_as_a_property(tmp_path: Path) -> None:
    callbacks = {name for name, text in properties(tmp_path).items() if CALLBACK.search(text)}
    assert "partitioner_cb" in callbacks
    for name in callbacks - {"error_cb", "stats_cb", "throttle_cb"}:  # these the binding takes
        with pytest.raises(KafkaException, match=r"dedicated|not settable"):
            Producer({name: "x"})


def test_what_is_harmless_is_accepted() -> None:
    assert {name: property_refusal(name, "1") for name in HARMLESS} == dict.fromkeys(HARMLESS)


def test_what_the_relay_sets_itself_is_refused() -> None:
    assert REQUIRED_CONFIG.keys() - {"debug"} <= REFUSED.keys()


@pytest.mark.parametrize(
    ("prop", "value"),
    [
        ("plugin.library.paths", "/tmp/evil.so"),
        ("sasl.kerberos.kinit.cmd", "touch /tmp/evil"),
        ("ssl.engine.location", "/tmp/evil.so"),
        ("ssl.engine.id", "evil"),
        ("ssl.providers", "default,/tmp/evil"),
        ("ssl.providers", "pkcs11"),
        ("sasl.kerberos.principal", "kafka; touch /tmp/evil"),
        ("sasl.kerberos.principal", "$(touch /tmp/evil)"),
        ("sasl.kerberos.principal", "-X evil"),
        ("sasl.kerberos.principal", "kafka\ntouch /tmp/evil"),
        ("sasl.kerberos.keytab", '" ; touch /tmp/evil; "'),
        ("sasl.kerberos.service.name", "`touch /tmp/evil`"),
        ("sasl.oauthbearer.token.endpoint.url", "file:///etc/passwd"),
    ],
)
def test_what_loads_code_or_runs_programs_is_refused(prop: str, value: str) -> None:
    assert property_refusal(prop, value)
    variable = variable_of(prop)
    with pytest.raises(SettingsError, match=variable) as error:
        read_kafka_settings({"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", variable: value})
    assert "evil" not in str(error.value)


@pytest.mark.parametrize(
    ("prop", "value"),
    [
        ("ssl.providers", "default, legacy"),
        ("sasl.kerberos.principal", "kafka/host.example.com@EXAMPLE.COM"),
        ("sasl.kerberos.keytab", "/etc/krb5.keytab"),
        ("sasl.oauthbearer.token.endpoint.url", "https://idp.example.com/token"),
    ],
)
def test_what_a_login_needs_is_accepted(prop: str, value: str) -> None:
    assert property_refusal(prop, value) is None


def test_a_relay_names_every_property_that_it_refuses() -> None:
    kafka: KafkaConfig = {
        "bootstrap.servers": "kafka:9092",
        "acks": 1,
        "topic.partitioner": "random",
        "retries": 0,
    }
    with pytest.raises(ValueError, match="acks") as error:
        Relay("dbname=x", kafka, on_published=lambda _conn, _ids: None)
    assert str(error.value).split("; ") == [
        f"acks must not be set: {REFUSED['acks']}",
        f"topic.partitioner must be {LIMITED['partitioner'][1]}",
        f"retries must be {LIMITED['retries'][1]}",
    ]


@pytest.mark.parametrize("partitioner", KEY_PARTITIONERS)
def test_a_relay_accepts_each_partitioner_that_looks_at_the_key(partitioner: str) -> None:
    kafka: KafkaConfig = {
        "bootstrap.servers": "kafka:9092",
        "partitioner": partitioner,
        "max.in.flight": 1,
    }
    Relay("dbname=x", kafka, on_published=lambda _conn, _ids: None)
