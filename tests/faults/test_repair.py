"""Faults that only an operator can decide, injected for real and repaired by `orchestrator repair`.

Both processes run before, during and after.
"""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from orchestrator.embedded import EmbeddedKafka, EmbeddedPostgres
from testkit.containers import TEST_KAFKA_VERSION
from testkit.disagreement import SECRET, forget_markers, is_refused, logged_repairs, repair, set_marker
from testkit.eventually import eventually
from testkit.servers import server_directory
from testkit.system import LANES, Running, System, delete_before, recreate_input
from tests.faults.postgres_servers import own_postgres

RESUME_S = 45  # a paused partition, a lane that backs off, a dead consumer's session
UNDECIDED_S = 45  # how long the brokers may hold back a marker of a transaction whose relay died


def command() -> bytes:
    return msgspec.json.encode({"scenario_uuid": str(uuid4()), "camera_url": f"rtsp://{SECRET}c/1"})


def wait_refused(relay: Running, reason: str, lanes: int = LANES) -> None:
    """Wait until all lanes are refused."""
    for lane in range(lanes):
        eventually(partial(is_refused, relay, lane, reason), RESUME_S)


def accepted(system: System) -> int:
    return sum(system.statuses().values())


# ---- row 10: Postgres goes back -------------------------------------------------------------------


@pytest.fixture
def postgres() -> Iterator[EmbeddedPostgres]:
    with own_postgres() as running:
        yield running


def copy(data: Path, to: Path) -> None:
    """Copy a data directory; cp keeps the owner, without whom Postgres does not start."""
    subprocess.run([str(shutil.which("cp")), "-a", str(data), str(to)], check=True)


@pytest.mark.xdist_group("own servers: PostgreSQL")
@pytest.mark.fault(10)
@pytest.mark.slow
def test_a_database_restored_from_a_backup_under_full_load_is_repaired(
    own: System, postgres: EmbeddedPostgres
) -> None:
    small = {"BATCH_SIZE": "20"}  # so that the copy is made with batches in every state
    consumer, relays = own.start("consumer", **small), [own.start("relay", **small) for _ in range(2)]
    own.submit(2000)
    eventually(lambda: own.statuses().get("deployed", 0) > 300, RESUME_S)
    postgres.stop("immediate")
    backup = postgres.data.parent / f"{postgres.data.name}-backup"
    copy(postgres.data, backup)
    postgres.start()
    own.submit(1500)
    letters = [b"no command %d" % number for number in range(30)]
    for letter in letters:
        own.produce(letter, key=letter)
    own.check_exactly_once(3500, 60)
    eventually(lambda: own.query("SELECT count(*) FROM outbox") == [(0,)])

    postgres.kill()
    shutil.rmtree(postgres.data)
    backup.rename(postgres.data)
    postgres.start()
    eventually(lambda: accepted(own) == 3500, 60)
    own.submit(100)
    eventually(lambda: accepted(own) == 3600, RESUME_S)
    assert len(own.orders()) == 3500  # nothing is sent while it is refused
    code, said = repair(own, "lane", "all", "--yes")
    assert code == 0, said
    own.check_exactly_once(3600, RESUME_S)
    dead = [record.value() for record in own.read(own.settings.dead_letter_topic)]
    assert sorted(map(str, dead)) == sorted(map(str, letters))
    own.submit(500)
    own.check_exactly_once(4100, RESUME_S)
    assert [row[1:3] for row in logged_repairs(own)] == [
        (f"lane {lane}", "marker_ahead") for lane in range(LANES)
    ]
    for process in (consumer, *relays):
        process.stop()


# ---- row 28: Kafka loses the marker ---------------------------------------------------------------


def die_under_full_load(system: System) -> None:
    """Send 1000 commands; let a relay die with a batch published, when each lane has had some."""
    relay = system.start("relay", BATCH_SIZE="20")
    system.submit(500)
    eventually(
        lambda: system.query("SELECT min(batch_number) > 2 FROM outbox_lane") == [(True,)], RESUME_S
    )
    relay.stop()
    dying = system.start("relay", crash_at="relay.published:5", BATCH_SIZE="20")
    system.submit(500)
    dying.wait_killed()


def lose_the_markers_by(system: System, how: str) -> str:
    """Delete the markers or write others; return the outcome that the relay must report."""
    if how == "deleted":
        forget_markers(system)
        return "marker_missing"
    for lane in range(LANES):
        set_marker(system, {"foreign, ahead": 1000, "foreign, behind": 0}[how], lane)
    return {"foreign, ahead": "marker_ahead", "foreign, behind": "marker_behind"}[how]


@pytest.mark.fault(28)
@pytest.mark.parametrize(
    "how",
    [
        "deleted",
        pytest.param("foreign, ahead", marks=pytest.mark.slow),
        pytest.param("foreign, behind", marks=pytest.mark.slow),
    ],
)
def test_lanes_whose_markers_are_lost_under_full_load_are_repaired(system: System, how: str) -> None:
    consumer = system.start("consumer")
    die_under_full_load(system)
    reason = lose_the_markers_by(system, how)
    relay = system.start("relay")
    wait_refused(relay, reason)
    eventually(lambda: accepted(system) == 1000, RESUME_S)
    assert repair(system, "lane", "all", "--yes")[0] == 0
    system.check_exactly_once(1000, RESUME_S)
    system.submit(100)
    system.check_exactly_once(1100, RESUME_S)
    consumer.stop()
    relay.stop()


@contextmanager
def forgetful_kafka() -> Iterator[EmbeddedKafka]:
    """Run a broker that forgets a group a minute after its last commit: its shortest time."""
    forget = {"offsets.retention.minutes": "1", "offsets.retention.check.interval.ms": "1000"}
    with server_directory() as directory:
        kafka = EmbeddedKafka(directory / "kafka", version=TEST_KAFKA_VERSION, properties=forget)
        try:
            kafka.start()
            yield kafka
        finally:
            kafka.kill()


@pytest.mark.fault(28)
@pytest.mark.slow
def test_a_frozen_relay_does_not_delay_a_repair_for_long(system: System) -> None:
    system.accept(20)
    system.query("UPDATE outbox_lane SET batch_number = 9")
    relay = system.start("relay")
    wait_refused(relay, "marker_missing")
    relay.process.send_signal(signal.SIGSTOP)
    assert repair(system, "lane", "all", "--yes")[0] == 0
    successor = system.start("relay")
    system.check_exactly_once(20, RESUME_S)
    relay.thaw()
    system.accept(20)
    system.check_exactly_once(40, RESUME_S)
    relay.stop()
    successor.stop()


# ---- rows 24 and 25: the input is not what it was -------------------------------------------------


@pytest.mark.fault(24)
def test_a_recreated_topic_is_read_from_its_log_start_offset(system: System) -> None:
    consumer, relay = system.start("consumer"), system.start("relay")
    system.produce(*[command() for _ in range(3)], partition=0)
    system.check_exactly_once(3)
    recreate_input(system)
    system.produce(*[command() for _ in range(5)], partition=0)
    hint = "partition 0: topic_recreated: orchestrator repair partition 0"
    eventually(lambda: hint in consumer.get("/readyz"), RESUME_S)
    code, said = repair(system, "partition", "all", "--yes")
    assert code == 0, said
    assert "offset 3 on are lost, and their number is unknown" in said
    system.check_exactly_once(8, RESUME_S)
    reasons = [(target, reason) for _, target, reason, _ in logged_repairs(system)]
    topic = system.settings.input_topic
    assert reasons == [(f"partition {n} of {topic}", "topic_recreated") for n in (0, 1)]
    consumer.stop()
    relay.stop()


def lose_what_comes_next(system: System) -> Running:
    """Let the position of partition 0 be 3 while its log has 6 and 7; return the waiting consumer."""
    consumer = system.start("consumer")
    system.produce(*[command() for _ in range(3)], partition=0)
    eventually(lambda: system.statuses() == {"pending": 3})
    consumer.stop()
    system.produce(*[command() for _ in range(5)], partition=0)
    delete_before(system, system.settings.input_topic, 0, 6)
    consumer = system.start("consumer")
    hint = "partition 0: offset_out_of_range: orchestrator repair partition 0"
    eventually(lambda: hint in consumer.get("/readyz"), RESUME_S)
    return consumer


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    ("start", "workers", "counts"),
    [
        ((), 5, {"cut_at": None, "deleted": 3, "skipped": 0, "again": 0}),
        pytest.param(
            ("--from", "beginning"),
            5,
            {"cut_at": None, "deleted": 3, "skipped": 0, "again": 0},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("--from", "7"),
            4,
            {"cut_at": None, "deleted": 3, "skipped": 1, "again": 0},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_partition_whose_position_is_deleted_continues_at_the_given_offset(
    system: System, start: tuple[str, ...], workers: int, counts: dict[str, int]
) -> None:
    consumer, relay = lose_what_comes_next(system), system.start("relay")
    code, said = repair(system, "partition", "0", "--yes", *start)
    assert code == 0, said
    assert "up to 3 records, 3 to 5, were deleted" in said
    system.check_exactly_once(workers, RESUME_S)
    ((_, target, reason, counted),) = logged_repairs(system)
    assert target == f"partition 0 of {system.settings.input_topic}"
    assert (reason, counted) == ("offset_out_of_range", counts)
    consumer.stop()
    relay.stop()


@pytest.mark.fault(25)
@pytest.mark.slow
def test_a_log_that_ends_before_the_position_continues_at_its_end(system: System) -> None:
    consumer, relay = system.start("consumer"), system.start("relay")
    system.produce(*[command() for _ in range(4)], partition=0)
    system.check_exactly_once(4)
    consumer.stop()
    system.query("UPDATE consumed_offsets SET next_offset = 9 WHERE partition = 0")
    consumer = system.start("consumer")
    eventually(lambda: "log_truncated" in consumer.get("/readyz"), RESUME_S)
    code, said = repair(system, "partition", "0", "--yes")
    assert (code, "the log was cut at offset 4: 5 consumed records" in said) == (0, True), said
    system.produce(command(), partition=0)
    system.check_exactly_once(5, RESUME_S)
    consumer.stop()
    relay.stop()
