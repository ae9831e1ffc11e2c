"""Connections cut at a named message, in front of Postgres and in front of Kafka, and audited."""

from threading import Event

import pytest

from testkit.eventually import eventually
from testkit.proxied import Epochs, WiredKafka, postgres_proxied
from testkit.proxy import ANY, Action, Connection, Rule, cut_after, cut_before, delay, hold
from testkit.system import Running, System, end_sessions
from testkit.wire_protocol import Frame

# psycopg prepares a statement at its sixth time in a session: then COMMIT goes by another message.
COMMITS = (1, 3, 12)


def cut_at(name: str, act: Action, hits: tuple[int, ...]) -> list[Rule]:
    """Return rules that cut at several messages of a name."""
    return [Rule(name, act, hit) for hit in hits]


def happened(rules: list[Rule]) -> bool:
    """Say whether all of it has been done."""
    return all(rule.done.is_set() for rule in rules)


# ---- Postgres -------------------------------------------------------------------------------------

UNKNOWN_COMMIT = pytest.mark.parametrize(
    "act",
    [
        pytest.param(cut_after, marks=pytest.mark.fault(5), id="its answer lost"),
        pytest.param(cut_before, marks=pytest.mark.fault(6), id="never sent"),
    ],
)


@UNKNOWN_COMMIT
def test_the_consumer_finds_out_the_outcome_of_its_commit(system: System, act: Action) -> None:
    commits = cut_at("COMMIT", act, COMMITS)
    system.submit(20)
    with postgres_proxied(system, commits) as url:
        consumer = system.start("consumer", DATABASE_URL=url, BATCH_SIZE="1")
        eventually(lambda: system.statuses() == {"pending": 20})
        assert happened(commits)
        eventually(lambda: sum_of(consumer, "orchestrator_records_total") == accepted(20, act))
        assert consumer.logged('"consumer waiting"')
        consumer.stop()
    assert system.query("SELECT sum(next_offset) FROM consumed_offsets") == [(20,)]
    system.start("relay")
    system.check_exactly_once(20)


def accepted(commands: int, act: Action) -> int:
    """Return how many the consumer counts: those whose COMMIT was answered; none is taken again."""
    return commands - len(COMMITS) if act is cut_after else commands


def sum_of(process: Running, metric: str) -> float:
    """Return the sum of a process's metric over its labels."""
    lines = process.get("/metrics").splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{metric}{{"))


@UNKNOWN_COMMIT
def test_the_relay_finds_out_the_outcome_of_its_commit(one_lane: System, act: Action) -> None:
    commits = cut_at("COMMIT", act, COMMITS)
    one_lane.accept(20)
    with postgres_proxied(one_lane, commits) as url:
        relay = one_lane.start("relay", DATABASE_URL=url, BATCH_SIZE="1")
        one_lane.check_exactly_once(20)
        assert happened(commits)
        assert relay.logged('"relay waiting"')
        relay.stop()


# ---- Kafka ----------------------------------------------------------------------------------------

CUT_OFF = pytest.mark.parametrize("act", [cut_after, cut_before], ids=["its answer lost", "never sent"])


@pytest.mark.fault(17)
@CUT_OFF
def test_a_producer_whose_end_txn_was_cut_off_begins_no_other_transaction(
    wired_lane: System, wired: WiredKafka, act: Action
) -> None:
    epochs = Epochs()

    def cut(connection: Connection, frame: Frame) -> None:
        epochs.doubt(frame)
        act(connection, frame)

    def watch(connection: Connection, frame: Frame) -> None:
        epochs.begin(frame)
        connection.forward(frame)

    cuts = cut_at("EndTxn", cut, (1, 3, 6, 12))
    wired_lane.accept(20)
    with wired.proxied(*cuts, Rule("AddPartitionsToTxn", watch, hit=0)) as proxied:
        relay = wired_lane.start("relay", KAFKA_BOOTSTRAP_SERVERS=proxied, BATCH_SIZE="2")
        wired_lane.check_exactly_once(20)
        assert happened(cuts)
        relay.stop()
    assert epochs.reused == 0


@pytest.mark.fault(17)
@CUT_OFF
@pytest.mark.parametrize(
    "request_name",
    ["InitProducerId", "AddPartitionsToTxn", "Produce"],
)
def test_a_request_of_a_transaction_may_be_cut_off(
    wired_lane: System, wired: WiredKafka, request_name: str, act: Action
) -> None:
    # A producer is made once, unless it is disturbed later.
    cuts = cut_at(request_name, act, (1, 2) if request_name == "InitProducerId" else (1, 3, 6))
    wired_lane.accept(20)
    with wired.proxied(*cuts) as proxied:
        relay = wired_lane.start("relay", KAFKA_BOOTSTRAP_SERVERS=proxied, BATCH_SIZE="2")
        wired_lane.check_exactly_once(20)
        assert happened(cuts)
        assert recoveries(relay) > 1 or request_name == "InitProducerId"
        relay.stop()


def recoveries(relay: Running) -> int:
    """Count how often a lane found out, with a new producer, what had become of its batch."""
    return relay.log.read_text().count('"lane recovered"')


@pytest.mark.fault(17, 20)
def test_a_late_answer_to_end_txn_changes_nothing_after_a_take_over(
    wired_lane: System, wired: WiredKafka
) -> None:
    taken_over = Event()
    answer = Rule("EndTxn", hold(taken_over), hit=2, answers=True)  # the first commits marker 0
    wired_lane.accept(2)
    with wired.proxied(answer) as proxied:
        zombie = wired_lane.start("relay", KAFKA_BOOTSTRAP_SERVERS=proxied)
        eventually(lambda: len(wired_lane.orders()) == 2)
        end_sessions(wired_lane, "outbox %")
        wired_lane.start("relay")
        wired_lane.check_exactly_once(2)
        taken_over.set()
        eventually(lambda: zombie.logged('"relay waiting"'))
        wired_lane.accept(2)
        wired_lane.check_exactly_once(4)
        zombie.stop()


# ---- both -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.fault(29)
def test_a_slow_network_changes_nothing_but_the_pace(wired_lane: System, wired: WiredKafka) -> None:
    slow = [Rule(ANY, delay(0.05), hit=0, answers=answers) for answers in (False, True)]
    wired_lane.submit(30)
    with wired.proxied(*slow) as proxied, postgres_proxied(wired_lane, slow) as url:
        through = {"KAFKA_BOOTSTRAP_SERVERS": proxied, "DATABASE_URL": url, "BATCH_SIZE": "10"}
        consumer, relay = [wired_lane.start(role, **through) for role in ("consumer", "relay")]
        wired_lane.check_exactly_once(30)
        wired_lane.submit(30)
        wired_lane.check_exactly_once(60)
        assert recoveries(relay) == 1
        consumer.stop()
        relay.stop()
