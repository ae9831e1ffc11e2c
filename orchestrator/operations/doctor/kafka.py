"""The checks of `doctor` on Kafka: the brokers and our topics."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future

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
from orchestrator.kafka.topics import AUTH_ERRORS, NO_ANSWER, REQUEST_S, Admin, TopicMissing, result_of
from orchestrator.operations.doctor.check import (
    Installation,
    Result,
    combine,
    counted,
    name_partitions,
)
from outbox import error_text

NOT_ALLOWED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)


def kafka_error_result(installation: Installation, error: KafkaException) -> Result:
    """Return the result of a check that failed in Kafka; without brokers, later ones are skipped."""
    if error.args[0].code() in NOT_ALLOWED:
        return "skipped", f"not checked: {error_text(error)}: see `kafka acls`"
    if is_connection_lost(installation, error.args[0]):
        return connection_lost(installation, error)
    return "failed", f"could not be checked: {error_text(error)}"


def connection_lost(installation: Installation, error: KafkaException) -> Result:
    """Return the result of the check during which the brokers became unreachable."""
    installation.client = None
    advice = "run doctor again, and see its line `kafka reachable`"
    return "unreachable", f"no broker answers any more: {error_text(error)}: {advice}"


def is_connection_lost(installation: Installation, error: KafkaError) -> bool:
    """Return whether a request was not answered because no broker answers any more.

    A missing permission may show as a time-out, too: the client searches for the group's coordinator
    until then.
    """
    if error.code() not in NO_ANSWER:
        return False
    request: Future[object] = installation.admin.describe_cluster(request_timeout=REQUEST_S)
    try:
        request.result()
    except KafkaException:
        return True
    return False


def kafka_reachable(installation: Installation) -> Result:
    """Connect to the brokers; all later checks use this client."""
    servers = installation.settings.kafka["bootstrap.servers"]
    client = Admin(installation.settings.kafka)
    request: Future[DescribeClusterResult] = client.describe_cluster(request_timeout=REQUEST_S)
    try:
        cluster = request.result()
    except KafkaException as error:
        reason = client.cause_of(error).args[0]
        return "failed" if reason.code() in AUTH_ERRORS else "unreachable", (
            f"no broker of {servers} serves us: {reason.str()}: see that one runs and can be reached,"
            " and that KAFKA_BOOTSTRAP_SERVERS and KAFKA_CONFIG_* are right"
        )
    installation.client, installation.brokers = client, cluster.nodes
    return "ok", f"{counted(len(cluster.nodes), 'broker')}, cluster {cluster.cluster_id}"


Configs = Mapping[str, str]
ConfigFuture = Future[dict[str, ConfigEntry]]


def is_answered(request: ConfigFuture) -> bool:
    """Wait for a broker's answer; that we may not read the settings is one, too."""
    try:
        request.result()
    except KafkaException as error:
        return error.args[0].code() not in NO_ANSWER
    return True


def request_configs(
    client: AdminClient, kind: ResourceType, names: Sequence[str]
) -> dict[str, ConfigFuture]:
    """Request all settings of topics, or of one broker."""
    requests = client.describe_configs(
        [ConfigResource(kind, name) for name in names], request_timeout=REQUEST_S
    )
    return {resource.name: future for resource, future in requests.items()}


def config_values(request: ConfigFuture) -> Configs:
    """Wait for the settings that were requested. Raises KafkaException."""
    return {name: entry.value for name, entry in request.result().items() if entry.value is not None}


def required_topics(settings: Settings) -> list[str]:
    """Return the topics that must exist."""
    return [
        settings.input_topic,
        settings.output_topic,
        settings.dead_letter_topic,
        settings.marker_topic,
    ]


INTERNAL_TOPICS = ("__consumer_offsets", "__transaction_state")  # created at their first use


def kafka_topics(installation: Installation) -> Result:
    """Find our topics; their descriptions are kept for later checks."""
    ours = required_topics(installation.settings)
    asked = installation.admin.describe_topics(
        TopicCollection([*ours, *INTERNAL_TOPICS]),
        include_authorized_operations=True,
        request_timeout=REQUEST_S,
    )
    remarks: list[Result] = []
    for name, future in asked.items():
        try:
            installation.topics[name] = result_of(future, name)
        except TopicMissing as error:
            if name in ours:
                remarks.append(("failed", str(error)))
        except KafkaException as error:
            if error.args[0].code() in NO_ANSWER:  # then for none of them
                raise
            if error.args[0].code() in NOT_ALLOWED:
                installation.hidden_topics.add(name)
            if name in ours:
                state, text = kafka_error_result(installation, error)
                remarks.append((state, f"topic {name} {text}"))
    return combine(remarks, ", ".join(ours))


def kafka_replication(installation: Installation) -> Result:
    """Check that a broker may be lost: for our topics, and Kafka's own for markers and ids."""
    names = (*required_topics(installation.settings), *INTERNAL_TOPICS)
    seen = [name for name in names if name in installation.topics]
    if not seen:
        return "skipped", "no topic was found: see `kafka topics`"
    configs, unseen = read_configs(installation.admin, seen)
    concerned: dict[Result, list[str]] = {}  # a remark on several topics is made once
    for name in seen:
        for remark in replication_remarks(installation.topics[name], configs.get(name, {})):
            concerned.setdefault(remark, []).append(name)
    remarks = [(state, f"{', '.join(names)}: {t}") for (state, t), names in concerned.items()]
    if unseen:
        text = f"min.insync.replicas of {', '.join(unseen)} needs the permission DescribeConfigs"
        remarks.append(("ok", text))
    return combine(remarks, "any one broker may be lost, and nothing acknowledged is lost with it")


def read_configs(client: AdminClient, names: Sequence[str]) -> tuple[dict[str, Configs], list[str]]:
    """Return the settings of topics, and the names of those that we may not see."""
    found, unseen = dict[str, Configs](), list[str]()
    for name, request in request_configs(client, ResourceType.TOPIC, names).items():
        try:
            found[name] = config_values(request)
        except KafkaException as error:
            if error.args[0].code() not in NOT_ALLOWED:
                raise
            unseen.append(name)
    return found, unseen


def replication_remarks(topic: TopicDescription, configs: Configs) -> Iterator[Result]:
    """Yield what is wrong with the replicas of a topic. configs: empty if we may not read them."""
    factor = min(len(partition.replicas) for partition in topic.partitions)
    minimum = int(configs.get("min.insync.replicas", 0))
    leaderless = [p.id for p in topic.partitions if p.leader is None or p.leader.id < 0]
    lagging = [p.id for p in topic.partitions if len(p.isr) < len(p.replicas)]
    closed = [p.id for p in topic.partitions if len(p.isr) < minimum]
    if leaderless:
        yield "failed", f"{name_partitions(leaderless)} without a leader: bring the brokers back"
    elif closed:
        yield (
            "failed",
            f"{name_partitions(closed)} with too few replicas in sync: bring the brokers back",
        )
    elif lagging:
        yield "warning", f"{name_partitions(lagging)} with replicas out of sync: check the brokers"
    if factor == 1:
        yield "warning", "one replica, one broker lost loses acknowledged records: use 3, 2 in sync"
    elif factor == 2:
        yield "warning", "two replicas, one broker away stops work or leaves one copy: use 3, 2 in sync"
    elif minimum == 1:
        yield "warning", "one broker alone may acknowledge records: set min.insync.replicas to 2"
    elif minimum >= factor:
        yield "warning", f"all {factor} replicas must be in sync, one broker away stops work: use more"
    if configs.get("unclean.leader.election.enable") == "true":
        yield "warning", "acknowledged records may be lost: set unclean.leader.election.enable to false"
