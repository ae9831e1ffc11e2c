"""The audit finds every planted fault and gives no false alarm, also while all processes work."""

import json
import re
from collections.abc import Sequence
from contextlib import closing
from io import StringIO
from subprocess import TimeoutExpired
from typing import Any
from uuid import UUID, uuid4

import pytest
from confluent_kafka import OFFSET_END, Producer, TopicPartition
from confluent_kafka import Message as Record
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]

from orchestrator.contract.messages import DeployOrder, encode_order, worker_id
from orchestrator.embedded.server import free_port
from orchestrator.kafka.partitioners import DEFAULT_PARTITIONER, hash_key
from orchestrator.kafka.reader import OffsetRange, Progress, find_ranges
from orchestrator.operations.audit import audit, comparison
from orchestrator.operations.audit.audit import FAULTS
from outbox import Connection
from outbox.admin import create_unpublished_messages
from testkit.empty_installation import run_command
from testkit.eventually import eventually
from testkit.system import PARTITIONS, System, delete_before

SECRET = "user:pw@"


def deploy(system: System, commands: int = 3, scenario: UUID | None = None) -> list[UUID]:
    """Let so many more workers be deployed; return their ids."""
    ids = system.accept(commands, scenario)
    relay = system.start("relay")
    eventually(lambda: system.statuses().keys() == {"deployed"})
    relay.stop()
    return ids


def send_again(system: System, *records: Record) -> None:
    """Write copies of records, behind all others, as a broken relay would."""
    producer = Producer(dict(system.settings.kafka))
    for record in records:
        producer.produce(
            system.settings.output_topic, record.value(), record.key(), record.partition() or 0
        )
    assert producer.flush(20) == 0


def run_audit(system: System, *options: str) -> tuple[int, str]:
    """Run the command; return its exit code and what it printed, which holds no secret."""
    ran = run_command(system.environ, "audit", *options)
    assert SECRET not in ran.stdout + ran.stderr
    return ran.returncode, ran.stdout or ran.stderr


def shown(system: System, *options: str) -> tuple[int, dict[str, int], dict[str, list[UUID]]]:
    """Return the exit code, what was counted of each kind, and the workers shown for each."""
    code, said = run_audit(system, "--json", *options)
    found = json.loads(said)
    counts = {kind: found[kind] for kind in found["examples"] if found[kind]}
    workers = {
        kind: [UUID(example["worker_id"]) for example in examples]
        for kind, examples in found["examples"].items()
        if kind in counts
    }
    assert found["passed"] is (not counts.keys() & FAULTS)
    return code, counts, workers


def test_orders_published_exactly_once_pass(system: System) -> None:
    deploy(system, 20)
    code, said = run_audit(system)
    assert code == 0
    assert "20 accepted, 20 deployed" in said
    assert said.splitlines()[-1] == "passed"


def test_an_empty_installation_passes(system: System) -> None:
    assert shown(system) == (0, {}, {})


def test_a_record_whose_worker_is_gone_is_unknown(system: System) -> None:
    gone, *_ = deploy(system)
    system.query("DELETE FROM workers WHERE worker_id = %s", gone)
    assert shown(system) == (1, {"unknown": 1}, {"unknown": [gone]})


def test_foreign_records_are_reported_as_unknown_by_their_record_id(system: System) -> None:
    deploy(system)
    stranger = DeployOrder(uuid4(), uuid4(), f"rtsp://{SECRET}camera/1")
    producer = Producer(dict(system.settings.kafka))
    for value in (encode_order(stranger), b'{"camera_url": "rtsp://user:pw@x"', b"\xff", None):
        producer.produce(system.settings.output_topic, value, partition=1)
    producer.flush(10)
    code, said = run_audit(system)
    assert code == 1
    assert re.search(r"unknown +4 ", said)
    assert re.search(rf"worker {stranger.worker_id}, partition 1, offset \d+", said)
    assert len(re.findall(r"no deploy order, partition 1, offset \d+", said)) == 3


def deploy_commands(system: System, commands: int = 5) -> list[UUID]:
    """Let commands go all the way; return the ids of their workers."""
    consumer, relay = system.start("consumer"), system.start("relay")
    system.submit(commands)
    eventually(lambda: system.statuses() == {"deployed": commands})
    for process in (consumer, relay):
        process.stop()
    return [worker for (worker,) in system.query("SELECT worker_id FROM workers ORDER BY worker_id")]


def test_a_record_whose_worker_was_deleted_is_no_fault(system: System) -> None:
    first, second, *_ = deploy_commands(system)
    system.query("DELETE FROM workers WHERE worker_id = ANY(%s)", [first, second])
    code, counts, workers = shown(system)
    assert (code, counts, sorted(workers["deleted"])) == (0, {"deleted": 2}, [first, second])
    assert re.search(r"deleted +2 .*no fault", run_audit(system)[1])
    send_again(system, system.read(system.settings.output_topic)[0])
    assert shown(system)[1]["duplicated"] == 1


def test_a_deleted_worker_whose_command_is_not_consumed_or_gone_is_unknown(system: System) -> None:
    topic = system.settings.input_topic
    gone, *_ = deploy_commands(system)
    system.query("DELETE FROM workers WHERE worker_id = %s", gone)
    system.query("CREATE TABLE kept AS SELECT * FROM consumed_offsets")
    system.query("DELETE FROM consumed_offsets")  # as after a restore
    assert shown(system)[1:] == ({"unknown": 1}, {"unknown": [gone]})
    system.query("INSERT INTO consumed_offsets SELECT * FROM kept")
    assert shown(system)[1] == {"deleted": 1}
    for partition in range(PARTITIONS):
        delete_before(system, topic, partition, OFFSET_END)
    code, said = run_audit(system)
    assert (code, bool(re.search(r"unknown +1 ", said))) == (1, True), said
    assert f"not (any more) in what was consumed of {topic}" in said


def deploy_by_hand(system: System, age: str = "0s") -> UUID:
    """Insert a worker as deployed whose order was never sent; return its id."""
    by_hand = worker_id(uuid4(), 0, 0, 0)
    system.query(
        "INSERT INTO workers (worker_id, scenario_uuid, camera_url, status, created_at, updated_at)"
        " SELECT %s, %s, 'rtsp://user:pw@x', 'deployed', at, at"
        "   FROM (SELECT now() - %s::interval) AS made (at)",
        by_hand,
        uuid4(),
        age,
    )
    return by_hand


def test_a_worker_deployed_by_hand_without_a_record_is_lost(system: System) -> None:
    deploy(system)
    by_hand = deploy_by_hand(system)
    assert shown(system) == (1, {"lost": 1}, {"lost": [by_hand]})


def test_workers_that_the_platform_made_itself_are_not_lost(system: System) -> None:
    """A table that was there before us, and rows that another program inserts meanwhile."""
    deploy(system)
    system.query(
        "INSERT INTO workers (worker_id, scenario_uuid, camera_url, status)"
        " SELECT gen_random_uuid(), gen_random_uuid(), 'rtsp://x', status"
        "   FROM unnest(ARRAY['pending', 'running', 'stopped']) AS status"
    )
    code, counts, _ = shown(system)
    assert (code, counts) == (0, {"not_ours": 3})
    assert re.search(r"not_ours +3 .*no fault", run_audit(system)[1])


def test_it_says_that_rows_wait_while_no_relay_runs(system: System) -> None:
    system.accept(3)
    assert run_audit(system)[1].splitlines()[-1] == "passed; 3 rows still wait, and no relay runs"


def test_an_order_that_vanished_from_the_outbox_is_lost(system: System) -> None:
    vanished, _ = system.accept(2)
    system.query("DELETE FROM outbox WHERE aggregate_id = %s", vanished)
    assert shown(system) == (1, {"lost": 1}, {"lost": [vanished]})


def test_an_order_that_kafka_rejected_is_counted_and_no_finding(system: System) -> None:
    system.accept(1)
    system.query(
        "WITH moved AS (DELETE FROM outbox"
        " RETURNING lane, id, topic, key, value, aggregate_id, created_at)"
        " INSERT INTO outbox_parked (lane, id, topic, key, value, aggregate_id, created_at, reason)"
        " SELECT lane, id, topic, key, value, aggregate_id, created_at, 'too large' FROM moved"
    )
    code, said = run_audit(system)
    assert (code, "1 parked" in said) == (0, True)


def test_a_record_sent_twice_is_duplicated(system: System) -> None:
    deploy(system)
    twice = system.read(system.settings.output_topic)[0]
    send_again(system, twice, twice)
    code, said = run_audit(system)
    assert code == 1
    assert re.search(r"duplicated +2 ", said)
    assert f"partition {twice.partition()}, offset" in said


def test_records_of_a_key_that_changed_places_are_reordered(system: System) -> None:
    first, second = system.accept(2, uuid4())
    system.query(
        "UPDATE outbox SET value = other.value, aggregate_id = other.aggregate_id"
        " FROM outbox AS other WHERE other.id <> outbox.id"
    )
    deploy(system, 0)
    assert [order.worker_id for order in system.orders()] == [second, first]
    assert shown(system) == (1, {"reordered": 1}, {"reordered": [first]})


def scenario_in(places: Sequence[int]) -> UUID:
    """Return a scenario that belongs to places[n - 1] of n partitions, for each n."""
    while True:
        scenario = uuid4()
        key_hash = hash_key(DEFAULT_PARTITIONER, str(scenario).encode())
        if all(key_hash % count == place for count, place in enumerate(places, 1)):
            return scenario


def send_orders(system: System, scenario: UUID, partitions: Sequence[int]) -> list[UUID]:
    """Send the orders of a scenario's new workers to these partitions, one after the other."""
    workers = system.accept(len(partitions), scenario)
    system.query("DELETE FROM outbox")
    producer = Producer(dict(system.settings.kafka))
    for worker, partition in zip(workers, partitions, strict=True):
        order = encode_order(DeployOrder(worker, scenario, "rtsp://x"))
        producer.produce(system.settings.output_topic, order, partition=partition)
        producer.flush(10)
    system.query("UPDATE workers SET status = 'deployed'")
    return workers


@pytest.mark.parametrize(
    ("places", "partitions", "scattered"),
    [
        ([0, 0], [0, 1, 0], [1]),  # no number of partitions puts it there
        ([0, 1], [1, 0], [1]),  # partitions are never taken away
        ([0, 1], [0, 1, 0, 1], [2]),
        ([0, 1], [0, 1, 1], []),  # as if a second partition had been added
    ],
)
def test_a_scenario_in_two_partitions_is_scattered_unless_added_partitions_explain_it(
    system: System, places: Sequence[int], partitions: Sequence[int], scattered: list[int]
) -> None:
    workers = send_orders(system, scenario_in(places), partitions)
    found = {"scattered": len(scattered)} if scattered else {}
    shown_workers = {"scattered": [workers[number] for number in scattered]} if scattered else {}
    assert shown(system) == (int(bool(scattered)), found, shown_workers)
    assert "several partitions, with no order between them: 1" in run_audit(system)[1]


def test_a_random_partitioner_scatters_a_scenario(system: System) -> None:
    scenario = uuid4()
    workers = system.accept(20, scenario)
    system.query("DELETE FROM outbox")
    producer = Producer({**system.settings.kafka, "partitioner": "random"})
    for worker in workers:
        order = encode_order(DeployOrder(worker, scenario, "rtsp://x"))
        producer.produce(system.settings.output_topic, order, str(scenario).encode())
        producer.flush(10)
    system.query("UPDATE workers SET status = 'deployed'")
    code, counts, _ = shown(system)
    assert (code, list(counts)) == (1, ["scattered"])
    assert "KAFKA_CONFIG_PARTITIONER" in run_audit(system)[1]


@pytest.mark.parametrize(("places", "partitions"), [([0, 0], [0, 0]), ([0, 1], [0, 1])])
def test_ids_below_zero_come_after_all_others(
    system: System, places: Sequence[int], partitions: Sequence[int]
) -> None:
    """As docs/runbook.md says of a sequence that is used up; with a second partition added, too."""
    scenario = scenario_in(places)
    send_orders(system, scenario, partitions[:1])
    system.query(
        "ALTER SEQUENCE workers_id_seq MINVALUE -2147483648 MAXVALUE -1 START WITH -2147483648 RESTART"
    )
    send_orders(system, scenario, partitions[1:])
    assert system.query("SELECT id FROM workers ORDER BY id") == [(-2147483648,), (1,)]
    assert shown(system) == (0, {}, {})


@pytest.mark.parametrize("partitioner", ["", "murmur2_random", "fnv1a"])
def test_partitions_that_were_added_are_no_fault_and_are_named(
    system: System, partitioner: str
) -> None:
    if partitioner:
        system.environ |= {"KAFKA_CONFIG_PARTITIONER": partitioner}
    scenarios = [uuid4() for _ in range(10)]
    admin = AdminClient(dict(system.settings.kafka))
    for count in (None, 3, 7):
        if count:
            (added,) = admin.create_partitions(
                [NewPartitions(system.settings.output_topic, count)]
            ).values()
            added.result(20)
        for scenario in scenarios:
            system.accept(2, scenario)
        deploy(system, 0)
    used = {record.partition() for record in system.read(system.settings.output_topic)}
    assert len(used) > 3
    assert shown(system) == (0, {}, {})
    code, said = run_audit(system)
    assert (code, "partitions were added to the topic" in said) == (0, True)


@pytest.mark.parametrize("step", ["published", "acknowledged"])
def test_a_batch_on_its_way_is_no_fault(one_lane: System, step: str) -> None:
    one_lane.accept(5)
    with one_lane.lane() as lane:
        lane.recover()
        lane.run_once()
        if step == "acknowledged":
            lane.drain()
        assert shown(one_lane) == (0, {}, {})


@pytest.mark.parametrize("locked", [0, 2])
def test_workers_deployed_or_deferred_after_the_watermarks_are_no_finding(
    one_lane: System, monkeypatch: pytest.MonkeyPatch, locked: int
) -> None:
    one_lane.accept(5)
    with one_lane.lane() as lane, closing(one_lane.connect()) as other:
        lane.recover()
        lane.drain()
        other.execute("BEGIN")

        def find_and_go_on(*values: Any) -> dict[int, OffsetRange]:
            spans = find_ranges(*values)
            workers = one_lane.accept(5)[:locked]
            other.execute("SELECT FROM workers WHERE worker_id = ANY(%s) FOR UPDATE", [workers])
            lane.drain()
            return spans

        monkeypatch.setattr(audit, "find_ranges", find_and_go_on)
        found = one_lane.audit()
    assert found.passed, found
    assert (found.deployed, found.deferred, found.published) == (10 - locked, locked, 5)


def test_a_deferred_worker_without_a_record_is_lost(one_lane: System) -> None:
    (vanished,) = one_lane.accept(1)
    one_lane.query("DELETE FROM outbox")
    one_lane.query("INSERT INTO outbox_deferred (aggregate_id, reason) VALUES (%s, '')", vanished)
    assert shown(one_lane) == (1, {"lost": 1}, {"lost": [vanished]})


def test_workers_accepted_during_the_comparison_are_no_finding(
    one_lane: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_lane.accept(5)

    def note_and_accept(conn: Connection) -> None:
        create_unpublished_messages(conn)
        one_lane.accept(5)

    monkeypatch.setattr(comparison, "create_unpublished_messages", note_and_accept)
    found = one_lane.audit()
    assert found.passed, found
    assert (found.accepted, found.waiting) == (10, 5)


def test_no_false_alarm_while_all_processes_work(system: System) -> None:
    consumer, relays = system.start("consumer"), [system.start("relay") for _ in range(2)]
    system.submit(200)
    audits = 0
    for _ in range(8):
        system.submit(2000)
        found = system.audit()
        audits += found.published < 16_200
        assert found.passed, found
    assert audits > 3  # most of them while there was work
    system.check_exactly_once(16_200)
    for process in (consumer, *relays):
        process.stop()


def test_since_leaves_out_older_workers_and_records(system: System) -> None:
    gone, *_ = deploy(system)
    system.query("DELETE FROM workers WHERE worker_id = %s", gone)
    deploy_by_hand(system, "2h")
    assert shown(system)[1] == {"lost": 1, "unknown": 1}
    assert shown(system, "--since", "3h")[1] == {"lost": 1, "unknown": 1}
    assert shown(system, "--since", "1h")[1] == {"unknown": 1}
    assert shown(system, "--since", "2999-01-01")[1] == {}


@pytest.mark.parametrize("kept", [0, 1])
def test_records_deleted_by_retention_are_not_missing(system: System, kept: int) -> None:
    deploy(system, 20)
    system.query("UPDATE workers SET created_at = created_at - interval '8d'")
    records = [record for record in system.read(system.settings.output_topic) if not record.partition()]
    first_kept = (records[-1].offset() or 0) + 1 - kept
    admin = AdminClient(dict(system.settings.kafka))
    place = TopicPartition(system.settings.output_topic, 0, first_kept)
    admin.delete_records([place])[place].result(10)
    deploy_by_hand(system)
    code, said = run_audit(system)
    assert "older ones need no record" in said
    assert code == kept  # of an empty partition it is not known since when it is complete
    assert shown(system, "--since", "1h")[1] == {"lost": 1}


def test_a_record_whose_transaction_is_still_being_decided_is_waited_for(system: System) -> None:
    producer = Producer({**system.settings.kafka, "transactional.id": f"slow-{uuid4()}"})
    producer.init_transactions(10)
    producer.begin_transaction()
    (worker,) = system.accept(1)
    order = DeployOrder(worker, uuid4(), "rtsp://x")
    producer.produce(system.settings.output_topic, encode_order(order))
    producer.flush(10)
    system.query("DELETE FROM outbox")
    running = system.start("audit")
    with pytest.raises(TimeoutExpired):
        running.process.wait(3)
    producer.commit_transaction(10)
    assert running.process.wait(60) == 0


@pytest.mark.parametrize("away", ["Kafka", "Postgres"])
def test_a_server_that_is_away_is_exit_code_3(system: System, away: str) -> None:
    name, address = {
        "Kafka": ("KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:{free_port()}"),
        "Postgres": ("DATABASE_URL", f"postgresql://user:pw@127.0.0.1:{free_port()}/x"),
    }[away]
    ran = run_command(system.environ | {name: address}, "audit")
    assert (ran.returncode, ran.stdout) == (3, "")
    assert "pw" not in ran.stderr.replace("no password", "")


def test_a_missing_topic_is_named(system: System) -> None:
    code, said = run_audit(System(system.environ | {"OUTPUT_TOPIC": "no-such-topic"}, system.directory))
    assert code == 1
    assert "topic no-such-topic is missing" in said


@pytest.mark.parametrize("since", ["yesterday", "5", "7w", "99999999d", "2026-13-01"])
def test_a_time_that_is_none_is_exit_code_2(system: System, since: str) -> None:
    code, said = run_audit(system, "--since", since)
    assert code == 2
    assert "--since" in said


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


class Quick(Progress):
    REDRAW_S = LINE_S = 0.0


@pytest.mark.parametrize(
    ("stream", "wanted"),
    [
        (
            Terminal(),
            "\rreading x: 1,000 of 3,000 offsets" + 2 * "\rreading x: 2,000 of 3,000 offsets" + "\n",
        ),
        (StringIO(), "reading x: 1,000 of 3,000 offsets\nreading x: 2,000 of 3,000 offsets\n"),
    ],
    ids=["terminal", "file"],
)
def test_progress_is_one_line_on_a_terminal_and_plain_lines_elsewhere(
    stream: StringIO, wanted: str
) -> None:
    progress = Quick("x", {0: OffsetRange(0, 1000), 1: OffsetRange(500, 2500)}, stream)
    for _ in range(2):
        progress.advance(1000)
    progress.close()
    assert stream.getvalue() == wanted
