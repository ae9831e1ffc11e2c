"""The checks of `doctor` on Kafka: the brokers, our topics, and what we may do with them."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import cast

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, not in its __all__
    AdminClient,
    ConfigEntry,
    ConfigResource,
    DescribeClusterResult,
    ResourceType,
    TopicDescription,
)

from orchestrator.config.settings import Settings
from orchestrator.kafka.topics import REQUEST_S, Admin, TopicMissing, result_of
from orchestrator.operations.doctor.check import Answer, Site, all_of, count, partitions
from outbox import error_text

NOT_ALLOWED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)
NO_ANSWER = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
    }
)


def fault(site: Site, error: KafkaException) -> Answer:
    """Answer for a check that Kafka ended; without brokers no later one is made."""
    if error.args[0].code() in NOT_ALLOWED:
        return "skipped", f"not looked at: {error_text(error)}: see `kafka acls`"
    if was_lost(site, error.args[0]):
        return lost(site, error)
    return "failed", f"could not be looked at: {error_text(error)}"


def lost(site: Site, error: KafkaException) -> Answer:
    """Answer for the check during which the brokers went away."""
    site.client = None
    advice = "run doctor again, and see its line `kafka reachable`"
    return "unreachable", f"no broker answers any more: {error_text(error)}: {advice}"


def was_lost(site: Site, error: KafkaError) -> bool:
    """Say whether there is no answer because there are no brokers, and not for a reason of its own.

    A missing right may show as a time-out, too: the client looks for the group's coordinator again and
    again.
    """
    if error.code() not in NO_ANSWER:
        return False
    asked = cast("Future[object]", site.admin.describe_cluster(request_timeout=REQUEST_S))
    try:
        asked.result()
    except KafkaException:
        return True
    return False


class Client(Admin):
    """A client that also knows the last reason why it has no connection: refused, unknown host..."""

    last: KafkaError | None = None

    def _on_error(self, error: KafkaError) -> None:
        super()._on_error(error)
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self.last = error


def reach(site: Site) -> Answer:
    """Find the brokers; the client is what all later checks use."""
    servers = site.settings.kafka["bootstrap.servers"]
    client = Client(site.settings.kafka)
    asked = cast("Future[DescribeClusterResult]", client.describe_cluster(request_timeout=REQUEST_S))
    try:
        cluster = asked.result()
    except KafkaException as error:
        client.poll(0)
        reason = (client.auth_error or client.last or error.args[0]).str().partition(" (after ")[0]
        return "unreachable", (
            f"no broker of {servers} serves us: {reason}: see that one runs and can be reached, and"
            " that KAFKA_BOOTSTRAP_SERVERS and KAFKA_CONFIG_* are right"
        )
    site.client, site.brokers = client, cluster.nodes
    return "ok", f"{count(len(site.brokers), 'broker')}, cluster {cluster.cluster_id}"


# No request asks for the version of a broker. But which versions of which requests it answers, it says
# at the begin of each connection, and each release has added some (the schemas in kafka-clients).
# Release, number of the request, the version that came with it.
RELEASES = (
    ("4.4", 18, 5),  # ApiVersions
    ("4.2", 2, 11),  # ListOffsets
    ("4.1", 1, 18),  # Fetch
    ("4.0", 3, 13),  # Metadata
    ("3.9", 1, 17),  # Fetch
)
ANSWERED = re.compile(r"(\S+):\s+ApiKey .+ \((\d+)\) Versions \d+\.\.(\d+)$")


class AnsweredRequests(logging.Handler):
    """Reads from the client's debug log what each broker answers: nothing else of it tells."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.by_broker: dict[str, dict[int, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Take one line of the log."""
        if found := ANSWERED.search(record.getMessage()):
            broker, request, version = found.groups()
            self.by_broker.setdefault(broker, {})[int(request)] = int(version)

    def oldest(self) -> str | None:
        """Return the release that all of them are at least; None: one is older than all we know."""
        for release, request, version in RELEASES:
            if all(known.get(request, -1) >= version for known in self.by_broker.values()):
                return release
        return None


def version(site: Site) -> Answer:
    """Look at the requests that each broker answers."""
    requests = AnsweredRequests()
    log = logging.Logger("librdkafka", logging.DEBUG)  # noqa: LOG001  # this client's alone
    log.addHandler(requests)
    client = AdminClient({**site.kafka, "debug": "feature"}, logger=log)
    asked = [ask_configs(client, ResourceType.BROKER, [str(node.id)]) for node in site.brokers]
    silent = [
        f"{node.host}:{node.port}"
        for node, one in zip(site.brokers, asked, strict=True)
        if not all(is_answered(future) for future in one.values())
    ]
    client.poll(0)
    if silent:
        advice = "see that it runs, and that its advertised.listeners can be reached from here"
        return "unreachable", f"no answer from {', '.join(silent)}: {advice}"
    if not requests.by_broker:
        return "skipped", "the brokers did not say what requests they answer"
    oldest = requests.oldest()
    if oldest is None:
        return "failed", f"a broker is older than {RELEASES[-1][0]}, the oldest that works: upgrade it"
    return "ok", f"all brokers answer as Apache Kafka {oldest} or newer does (none tells its version)"


Configs = Mapping[str, str]
Asked = Future[dict[str, ConfigEntry]]


def is_answered(asked: Asked) -> bool:
    """Wait for a broker's answer; that we may not ask is one, too."""
    try:
        asked.result()
    except KafkaException as error:
        return error.args[0].code() not in NO_ANSWER
    return True


def ask_configs(client: AdminClient, kind: ResourceType, names: Sequence[str]) -> dict[str, Asked]:
    """Ask for all settings of topics, or of one broker."""
    asked = client.describe_configs(
        [ConfigResource(kind, name) for name in names], request_timeout=REQUEST_S
    )
    return {resource.name: future for resource, future in asked.items()}


def values_of(asked: Asked) -> Configs:
    """Wait for settings that were asked for. Raises KafkaException."""
    return {name: entry.value for name, entry in asked.result().items() if entry.value is not None}


def topics_of(settings: Settings) -> list[str]:
    """Return the topics that must be there."""
    return [
        settings.input_topic,
        settings.output_topic,
        settings.dead_letter_topic,
        settings.marker_topic,
    ]


INTERNAL = ("__consumer_offsets", "__transaction_state")  # made with their first use


def topics(site: Site) -> Answer:
    """Look for our topics; what is found is kept for the checks that follow."""
    ours = topics_of(site.settings)
    asked = site.admin.describe_topics(
        TopicCollection([*ours, *INTERNAL]),
        include_authorized_operations=True,
        request_timeout=REQUEST_S,
    )
    remarks: list[Answer] = []
    for name, future in asked.items():
        try:
            site.topics[name] = result_of(future, name)
        except TopicMissing as error:
            if name in ours:
                remarks.append(("failed", str(error)))
        except KafkaException as error:
            if error.args[0].code() in NO_ANSWER:  # then for none of them
                raise
            if error.args[0].code() in NOT_ALLOWED:
                site.hidden.add(name)
            if name in ours:
                state, text = fault(site, error)
                remarks.append((state, f"topic {name} {text}"))
    return all_of(remarks, ", ".join(ours))


def replication(site: Site) -> Answer:
    """Look whether a broker may be lost: of our topics, and of Kafka's own for markers and ids."""
    seen = [name for name in (*topics_of(site.settings), *INTERNAL) if name in site.topics]
    if not seen:
        return "skipped", "no topic was found: see `kafka topics`"
    configs, unseen = read_configs(site.admin, seen)
    concerned: dict[Answer, list[str]] = {}  # what is said of several topics is said once
    for name in seen:
        for remark in remarks_on(site.topics[name], configs.get(name, {})):
            concerned.setdefault(remark, []).append(name)
    remarks = [(state, f"{', '.join(names)}: {t}") for (state, t), names in concerned.items()]
    if unseen:
        text = f"min.insync.replicas of {', '.join(unseen)} shows only with the right DescribeConfigs"
        remarks.append(("ok", text))
    return all_of(remarks, "any one broker may be lost, and nothing acknowledged is lost with it")


def read_configs(client: AdminClient, names: Sequence[str]) -> tuple[dict[str, Configs], list[str]]:
    """Return the settings of topics, and the names of those that we may not see."""
    found, unseen = dict[str, Configs](), list[str]()
    for name, asked in ask_configs(client, ResourceType.TOPIC, names).items():
        try:
            found[name] = values_of(asked)
        except KafkaException as error:
            if error.args[0].code() not in NOT_ALLOWED:
                raise
            unseen.append(name)
    return found, unseen


def remarks_on(topic: TopicDescription, configs: Configs) -> Iterator[Answer]:
    """Yield what is wrong with the replicas of a topic. configs: empty if we may not see them."""
    factor = min(len(partition.replicas) for partition in topic.partitions)
    minimum = int(configs.get("min.insync.replicas", 0))
    leaderless = [p.id for p in topic.partitions if p.leader is None or p.leader.id < 0]
    lagging = [p.id for p in topic.partitions if len(p.isr) < len(p.replicas)]
    closed = [p.id for p in topic.partitions if len(p.isr) < minimum]
    if leaderless:
        yield "failed", f"{partitions(leaderless)} without a leader: bring the brokers back"
    elif closed:
        yield "failed", f"{partitions(closed)} with too few replicas in sync: bring the brokers back"
    elif lagging:
        yield "warning", f"{partitions(lagging)} with replicas out of sync: see to the brokers"
    if factor == 1:
        yield "warning", "one replica, one broker lost loses acknowledged records: use 3, 2 in sync"
    elif factor == 2:
        yield "warning", "two replicas, one broker away stops work or leaves one copy: use 3, 2 in sync"
    elif minimum == 1:
        yield "warning", "one broker alone may acknowledge records: set min.insync.replicas to 2"
    elif minimum >= factor:
        yield "warning", f"all {factor} replicas must be in sync, one broker away stops work: use more"
    if configs.get("unclean.leader.election.enable") == "true":
        yield "warning", "acknowledged records may be lost: switch unclean.leader.election.enable off"
