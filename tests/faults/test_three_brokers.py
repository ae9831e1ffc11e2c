"""Three brokers, three replicas, two in sync: any one may go, whatever it was to us."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from uuid import UUID, uuid4

import pytest
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from orchestrator.embedded import EmbeddedKafka, Servers
from orchestrator.embedded.server import HOST, free_port
from orchestrator.kafka.topics import Admin
from orchestrator.runtime.setup import set_up
from testkit.containers import TEST_KAFKA_VERSION
from testkit.empty_installation import bare_system, run_command
from testkit.eventually import eventually
from testkit.private_servers import pause, wait_ready, wake
from testkit.servers import server_directory
from testkit.system import LANES, System, topics_of
from tests.faults.kafka_servers import stream
from tests.faults.test_output_topics import HELD_S, longest_wait, put, waiting

pytestmark = pytest.mark.xdist_group("own servers: three brokers")

NODES = (1, 2, 3)
RESUME_S = 60  # three Javas on a small machine
INTERNAL = ("__consumer_offsets", "__transaction_state")

SAFE = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    # A killed node is noticed after 2 s; as soon, a busy one that lives would be taken for dead.
    "broker.session.timeout.ms": "4000",
}


class Node(EmbeddedKafka):
    """One of three nodes, each broker and controller."""

    def __init__(self, directory: Path, node: int, controllers: dict[int, int]) -> None:
        self.node = node
        port = free_port()
        addresses = f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controllers[node]}"
        voters = [f"{number}@{HOST}:{where}" for number, where in controllers.items()]
        own = {
            "node.id": str(node),
            "listeners": addresses,
            "controller.quorum.voters": ",".join(voters),
        }
        super().__init__(directory, port, TEST_KAFKA_VERSION, SAFE | own)

    def _prepare(self) -> None:
        """Give all nodes, each formatted by itself, the name of one cluster."""
        super()._prepare()
        properties = self.data / "meta.properties"
        lines = properties.read_text().splitlines()
        renamed = [CLUSTER if line.startswith("cluster.id=") else line for line in lines]
        properties.write_text("\n".join(renamed) + "\n")


CLUSTER = "cluster.id=T3dnbmVyT2ZUaHJlZU5vZA"


@dataclass
class Cluster:
    """The three brokers."""

    nodes: dict[int, Node]

    def __post_init__(self) -> None:
        self.admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})

    @property
    def bootstrap_servers(self) -> str:
        """All three addresses."""
        return ",".join(node.bootstrap_servers for node in self.nodes.values())

    def is_whole(self, *topics: str) -> bool:
        """Say whether every replica of these topics is in sync."""
        found = self.admin.describe_topics(TopicCollection([*INTERNAL, *topics]), request_timeout=5)
        partitions = [one for future in found.values() for one in future.result(10).partitions]
        return all(len(partition.isr) == len(NODES) for partition in partitions)

    def leader(self, topic: str, partition: int) -> int:
        """Return the node that leads a partition."""
        found = self.admin.describe_topics(TopicCollection([topic]), request_timeout=5)
        return int(found[topic].result(10).partitions[partition].leader.id)

    def coordinator(self, topic: str, name: str) -> int:
        """Return the node that coordinates a group or a transactional id, by its internal topic."""
        found = self.admin.describe_topics(TopicCollection([topic]), request_timeout=5)
        partitions = found[topic].result(10).partitions
        return int(partitions[java_hash(name) % len(partitions)].leader.id)


def java_hash(text: str) -> int:
    """Return String.hashCode() as Kafka uses it, without the sign."""
    number = 0
    for character in text:
        number = (31 * number + ord(character)) & 0xFFFF_FFFF
    return number & 0x7FFF_FFFF


@contextmanager
def three_brokers() -> Iterator[Cluster]:
    with server_directory() as directory, ExitStack() as ending:
        controllers = {node: free_port() for node in NODES}
        nodes = {node: Node(directory / f"node{node}", node, controllers) for node in NODES}
        for node in nodes.values():
            ending.callback(node.kill)
            node.launch()
        for node in nodes.values():
            node.wait_until_ready()
        yield Cluster(nodes)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with three_brokers() as running:
        yield running


@pytest.fixture
def own(cluster: Cluster, servers: Servers, tmp_path: Path) -> Iterator[System]:
    """An installation on three brokers, all of which run."""
    for node in cluster.nodes.values():
        node.start()
    on = Servers(servers.database_url, cluster.bootstrap_servers)
    with bare_system(on, tmp_path) as system:
        set_up(system.settings)
        yield system


def identity_of(system: System) -> UUID:
    ((identity,),) = system.query("SELECT identity FROM outbox_identity")
    return UUID(str(identity))


ROLES: dict[str, Callable[[Cluster, System], int]] = {
    "transaction coordinator": lambda cluster, system: cluster.coordinator(
        "__transaction_state", f"outbox-{identity_of(system)}-0"
    ),
    "leader of the output": lambda cluster, system: cluster.leader(system.settings.output_topic, 0),
    "leader of the input": lambda cluster, system: cluster.leader(system.settings.input_topic, 0),
    "leader of the markers": lambda cluster, system: cluster.leader(system.settings.marker_topic, 0),
    "coordinator of the consumers": lambda cluster, system: cluster.coordinator(
        "__consumer_offsets", system.settings.consumer_group
    ),
}


@pytest.mark.fault(36)
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("role", ROLES)
def test_one_of_three_brokers_is_killed_under_load(own: System, cluster: Cluster, role: str) -> None:
    processes = own.start("consumer"), own.start("relay")
    with stream(own) as commands:
        commands.wait_for_progress(RESUME_S)
        eventually(lambda: cluster.is_whole(*topics_of(own)), RESUME_S)
        victim = cluster.nodes[ROLES[role](cluster, own)]
        victim.kill()
        commands.wait_for_progress(RESUME_S)  # while it is away
        victim.start()
        commands.wait_for_progress(RESUME_S)
        eventually(lambda: cluster.is_whole(*topics_of(own)), RESUME_S)
    commands.check(RESUME_S)
    wait_ready(*processes)
    for process in processes:
        process.stop()


@pytest.mark.fault(36)
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_rolling_restart_under_load_loses_and_doubles_nothing(own: System, cluster: Cluster) -> None:
    processes = own.start("consumer"), own.start("relay")
    with stream(own) as commands:
        commands.wait_for_progress(RESUME_S)
        for node in cluster.nodes.values():
            eventually(lambda: cluster.is_whole(*topics_of(own)), RESUME_S)
            node.stop()
            commands.wait_for_progress(RESUME_S)
            node.start()
        commands.wait_for_progress(RESUME_S)
    commands.check(RESUME_S)
    assert own.query("SELECT count(*) FROM outbox_lane") == [(LANES,)]
    wait_ready(*processes)
    for process in processes:
        process.stop()


# ---- topics that lose more brokers than they can ------------------------------------------------


@pytest.mark.fault(61)
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("replicas", "lacks"),
    [([3], "no leader"), ([2, 3], "1 in sync of the 2 replicas that min.insync.replicas asks for")],
    ids=["no leader", "too few replicas in sync"],
)
def test_rows_of_a_topic_that_lacks_a_broker_hold_up_no_other(
    own: System, cluster: Cluster, replicas: list[int], lacks: str
) -> None:
    own.environ["RELAY_TOPICS"] = "*"
    relay, topic = own.start("relay"), f"lacking-{uuid4()}"
    new = NewTopic(topic, 1, replica_assignment=[replicas])
    Admin(own.settings.kafka).create_topics([new])[topic].result(10)
    eventually(lambda: relay.logged("lane active"), RESUME_S)
    cluster.nodes[3].kill()
    rest = {number: node for number, node in cluster.nodes.items() if number != 3}
    eventually(partial(lacks_one, rest, *topics_of(own)), RESUME_S)
    put(own, 0, own.settings.output_topic, b"before")
    eventually(lambda: waiting(own) == 0, RESUME_S)
    put(own, 1, topic, b"late")
    assert longest_wait(own, (0, 1, 2, 3), 6) < HELD_S
    named = f"partition 0 of topic {topic} has {lacks}: bring its brokers back"
    assert f"lane 1: waiting: {named}" in relay.get("/readyz")
    assert relay.logged(named)
    for command in ("status", "doctor"):
        assert f"lane 1: rows wait: {named}" in run_command(own.environ, command).stdout
    cluster.nodes[3].start()
    eventually(lambda: waiting(own) == 0, RESUME_S)
    assert [record.value() for record in own.read(topic)] == [b"late"]


def lacks_one(rest: dict[int, Node], *topics: str) -> bool:
    """Say whether the other brokers have noticed that one is gone."""
    try:  # a new client each time: one that the killed broker has answered may know no broker then
        return not Cluster(rest).is_whole(*topics)
    except KafkaException:
        return False


# ---- a broker that was replaced and does not know it yet -------------------------------------------

LED: dict[str, Callable[[Cluster, System], int]] = {
    "marker": lambda cluster, system: cluster.leader(system.settings.marker_topic, 0),
    "output": lambda cluster, system: cluster.leader(system.settings.output_topic, 0),
}


@pytest.mark.fault(39)
@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("rounds", [40])
def test_a_replaced_leader_that_wakes_during_a_recovery_tells_nothing_old(
    own: System, cluster: Cluster, rounds: int
) -> None:
    """Guard: evidence is read behind a barrier, which a leader that was replaced cannot have."""
    random = Random(rounds)
    relay = own.start("relay")  # with it, the brokers' own topics come
    eventually(lambda: relay.logged("lane active"), RESUME_S)
    relay.stop()
    for number in range(1, rounds + 1):
        eventually(lambda: cluster.is_whole(*topics_of(own)), RESUME_S)
        die_and_recover(own, cluster, random, LED[random.choice([*LED])])
        own.check_exactly_once(3 * number)


def die_and_recover(
    own: System, cluster: Cluster, random: Random, led: Callable[[Cluster, System], int]
) -> None:
    """Freeze a leader until it is replaced; kill a relay in doubt; wake the leader in the recovery."""
    older = own.start("relay", crash_at="relay.published")
    eventually(lambda: older.logged("lane active"), RESUME_S)
    frozen = cluster.nodes[led(cluster, own)]
    rest = {number: node for number, node in cluster.nodes.items() if node is not frozen}

    def is_replaced() -> bool:
        try:  # a new client each time: one that the frozen broker has answered may know no broker then
            return led(Cluster(rest), own) not in {frozen.node, -1}
        except KafkaException:
            return False

    pause(frozen.pid)
    try:
        eventually(is_replaced, RESUME_S)
        own.accept(3)
        older.wait_killed(RESUME_S)
        point = random.choice(["owner_checked", "fenced", "barrier_written"])
        successor = own.start("relay", crash_at=f"relay.{point}:1:freeze")
        successor.wait_frozen(RESUME_S)
        successor.thaw()
        time.sleep(random.random())
    finally:
        wake(frozen.pid)
    eventually(lambda: own.query("SELECT count(*) FROM outbox") == [(0,)], RESUME_S)
    successor.stop()
