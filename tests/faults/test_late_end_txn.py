"""An EndTxn that arrives when its transaction is over and the next one has begun.

librdkafka has no KIP-890: all transactions of a producer have one epoch, so the coordinator takes a
late EndTxn for the next transaction's. What keeps the relay from harm is a new producer epoch.
"""

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from threading import Lock
from uuid import NAMESPACE_OID, UUID, uuid4, uuid5

import pytest
from confluent_kafka import KafkaError

from outbox import InDoubt
from outbox.evidence import Search
from outbox.lane_rows import LaneRow
from outbox.markers import Marker
from outbox.message import OutboxRow
from testkit.eventually import eventually
from testkit.proxied import Epochs, WiredKafka, led_through
from testkit.proxy import ANY, Action, Address, Connection, Rule, cut_before, replay, swallow
from testkit.system import OwnedLane, System, end_sessions
from testkit.wire_protocol import Frame, end_txn_error, flipped

ROWS = 6  # of a batch, which then takes three requests, one after the other
SMALL_REQUESTS = {
    "KAFKA_CONFIG_BATCH_NUM_MESSAGES": "2",
    "KAFKA_CONFIG_MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION": "1",
}

# ---- the harm -------------------------------------------------------------------------------------

# When a late EndTxn meets the next transaction, and what then becomes of that one's records after the
# relay's recovery: the log tells what is sent again. Aborts are for the record: the relay sends none
# under the id that it publishes with.
HARM = {
    ("some records sent", "commit"): {"once"},  # committed early, the rest is refused
    ("some records sent", "abort"): {"once"},
    ("all records sent", "commit"): {"once"},
    ("all records sent", "abort"): {"once"},  # and the relay's commit is refused
}
# The request before which the moment is, and the number of that one among its like.
REQUESTS = {"some records sent": ("Produce", 2), "all records sent": ("EndTxn", 1)}


@pytest.mark.fault(18)
@pytest.mark.parametrize("replays", [5, pytest.param(125, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("moment", "kind"), HARM)
def test_without_renewal_a_late_end_txn_ends_the_next_transaction(
    wired_lane: System, wired: WiredKafka, moment: str, kind: str, replays: int
) -> None:
    meeting = Meeting(wired.behind_proxy, *REQUESTS[moment], abort=kind == "abort")
    topic = wired_lane.settings.output_topic
    with (
        wired.proxied(Rule(ANY, meeting.watch, hit=0)) as proxied,
        led_through(wired_lane, proxied, **SMALL_REQUESTS).lane() as lane,
    ):
        lane.publisher.start(0)
        for batch_number in range(1, 2 * replays, 2):
            publish_or_recover(lane, batch_number, batch(topic, batch_number))
            meeting.is_due = True
            publish_or_recover(lane, batch_number + 1, batch(topic, batch_number + 1))
            assert not meeting.is_due
    seen = Counter(record.value() for record in wired_lane.read(topic))
    fates = [
        fate([seen[row.value] for row in batch(topic, batch_number)])
        for batch_number in range(1, 2 * replays + 1)
    ]
    assert set(fates[0::2]) == {"once"}
    assert set(fates[1::2]) <= HARM[moment, kind]


@dataclass
class Meeting:
    """Keeps the EndTxn of a transaction, and delivers it in the next one before a request goes on."""

    server: Address
    name: str
    number: int
    abort: bool
    is_due: bool = False
    _kept: Frame | None = None
    _left: int = 0

    def watch(self, connection: Connection, frame: Frame) -> None:
        """Act on every request."""
        if not self.is_due and frame.name == "EndTxn":
            self._kept = flipped(frame) if self.abort else frame
            self._left = self.number
        elif self.is_due and self._kept and frame.name == self.name:
            self._left -= 1
            if self._left == 0:
                answer = replay(self.server, self._kept)
                self.is_due = end_txn_error(answer) != KafkaError.NO_ERROR  # the broker takes it
        connection.forward(frame)


def batch(topic: str, batch_number: int) -> list[OutboxRow]:
    """Return the rows of a batch, all for one partition."""
    return [
        OutboxRow(0, row, topic, b"key", value, None, str(uuid5(NAMESPACE_OID, value.decode())), 0.0, 3)
        for row in range(ROWS)
        for value in [b"%d.%d" % (batch_number, row)]
    ]


def publish_or_recover(lane: OwnedLane, batch_number: int, rows: list[OutboxRow]) -> None:
    """Publish a batch; after a doubt decide by the log, as the lane does."""
    start = lane.publisher.topics.ends({row.topic for row in rows})
    before = lane.publisher.peek_markers([0])[0]
    token = uuid4()
    try:
        lane.publisher.publish({0: Marker(batch_number, token)}, rows)
    except InDoubt:
        lane.publisher.start(0)
        row = LaneRow(0, batch_number, [], 0, token=token, marker_token=before and before.token)
        found = lane.publisher.read_evidence({0: Search(row, rows, start)})[0]
        left = [row for row in rows if row.id not in found.published]
        lane.publisher.publish({0: Marker(batch_number, uuid4())}, left)


def fate(seen: list[int]) -> str:
    """Say what a read_committed reader has got of a batch."""
    fates = {(0, 0): "lost", (1, 1): "once", (2, 2): "twice", (1, 2): "some twice", (0, 1): "some lost"}
    return fates[min(seen), max(seen)]


# ---- the relay ------------------------------------------------------------------------------------

# How EndTxn gets lost, and which properties make librdkafka repeat it within the second.
SOON = {"KAFKA_CONFIG_SOCKET_TIMEOUT_MS": "1000"}
WAYS: dict[str, tuple[Action, dict[str, str]]] = {
    "cut": (cut_before, {}),
    "no answer": (swallow, SOON),
    "no answer on a connection that stays": (swallow, SOON | {"KAFKA_CONFIG_SOCKET_MAX_FAILS": "0"}),
    # librdkafka gives the third loss of one kind within 30 s no line of its log, but a debug one.
    "cut, and twice while the producer was made": (cut_before, {}),
}


def quick_and_slow() -> list[object]:
    """Return every way with a few late requests, and with many."""
    slow = pytest.mark.slow
    return [
        *(pytest.param(way, 3, id=way) for way in WAYS),
        *(pytest.param(way, 200, id=f"{way}, often", marks=slow) for way in WAYS if "cut" in way),
        *(pytest.param(way, 50, id=f"{way}, often", marks=slow) for way in WAYS if "no" in way),
    ]


@pytest.mark.fault(18)
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("way", "times"), quick_and_slow())
def test_a_late_end_txn_meets_a_new_producer_epoch(
    wired_lane: System, wired: WiredKafka, way: str, times: int
) -> None:
    lose, properties = WAYS[way]
    network = Network(wired.behind_proxy, lose, Random(times), cuts_init="twice" in way)
    rows = 0
    with wired.proxied(Rule(ANY, network.carry, hit=0)) as proxied:
        settings = SMALL_REQUESTS | properties | {"BATCH_SIZE": str(ROWS)}
        relay = wired_lane.start("relay", KAFKA_BOOTSTRAP_SERVERS=proxied, **settings)

        def enough() -> bool:
            nonlocal rows
            if wired_lane.query("SELECT count(*) < 20 FROM outbox") == [(True,)]:
                wired_lane.accept(20, UUID(int=rows % 3))
                rows += 20
            return sum(network.answers.values()) >= times

        eventually(enough, 20 + 3 * times)
        network.is_calm = True
        wired_lane.check_exactly_once(rows)
        relay.stop()
    assert network.epochs.reused == 0
    assert set(network.answers) == {KafkaError.INVALID_PRODUCER_EPOCH}


@dataclass
class Network:
    """Loses the EndTxn of a batch, and delivers it at a random moment of a later one.

    cuts_init: ends the connection to the coordinator twice, too, while a producer is made.
    """

    server: Address
    lose: Action
    random: Random
    cuts_init: bool
    is_calm: bool = False
    answers: Counter[int] = field(default_factory=Counter)  # error codes, to what arrived late
    epochs: Epochs = field(default_factory=Epochs)
    _late: Frame | None = None
    _moment: str = ""
    _left: int = 0
    _inits: int = 0
    _lock: Lock = field(default_factory=Lock)

    def carry(self, connection: Connection, frame: Frame) -> None:
        """Act on every request."""
        with self._lock:
            act = self._choose(frame)
        act(connection, frame)

    def _choose(self, frame: Frame) -> Action:
        if frame.name == "InitProducerId":
            self._inits += 1
            if self.cuts_init and self._inits % 3 and not self.is_calm:
                return cut_before
        if frame.name == "AddPartitionsToTxn":
            self.epochs.begin(frame)
            if self._late and not self._moment:
                self._moment, self._left = self.random.choice(MOMENTS)
        if self._late and frame.name == self._moment:
            self._left -= 1
            if self._left == 0:
                self.answers[end_txn_error(replay(self.server, self._late))] += 1
                self._late, self._moment = None, ""
        elif frame.name == "EndTxn" and not (self._late or self.is_calm):
            self.epochs.doubt(frame)
            self._late = frame
            return self.lose
        return Connection.forward


MOMENTS = [("AddPartitionsToTxn", 1), ("Produce", 1), *REQUESTS.values()]


# ---- strict fencing -------------------------------------------------------------------------------


@pytest.mark.fault(18)
def test_with_strict_fencing_no_two_transactions_have_one_epoch(
    wired_lane: System, wired: WiredKafka
) -> None:
    epochs = Epochs()

    def watch(connection: Connection, frame: Frame) -> None:
        if frame.name == "AddPartitionsToTxn":
            epochs.begin(frame)
        elif frame.name == "EndTxn":
            epochs.doubt(frame)
        connection.forward(frame)

    wired_lane.accept(20)
    with wired.proxied(Rule(ANY, watch, hit=0)) as proxied:
        settings = {"STRICT_FENCING": "true", "BATCH_SIZE": "2"}
        relay = wired_lane.start("relay", KAFKA_BOOTSTRAP_SERVERS=proxied, **settings)
        wired_lane.check_exactly_once(20)
        relay.stop()
    assert epochs.reused == 0


@pytest.mark.fault(20)
@pytest.mark.parametrize(
    "point",
    [
        "begun:2",
        pytest.param("fenced:4", marks=pytest.mark.slow),
        pytest.param("produced:3", marks=pytest.mark.slow),
    ],
)
def test_with_strict_fencing_a_zombie_that_fences_its_successor_publishes_nothing(
    one_lane: System, point: str
) -> None:
    settings = {"STRICT_FENCING": "true", "BATCH_SIZE": "2"}
    one_lane.accept(4)
    zombie = one_lane.start("relay", crash_at=f"relay.{point}:freeze", **settings)
    zombie.wait_frozen()
    end_sessions(one_lane, "outbox %")
    successor = one_lane.start("relay", **settings)
    one_lane.check_exactly_once(4)
    zombie.thaw()
    eventually(lambda: zombie.logged("relay waiting"))  # after its last batch
    one_lane.accept(4)
    one_lane.check_exactly_once(8)
    successor.stop()
    one_lane.accept(4)
    one_lane.check_exactly_once(12)
    zombie.stop()
