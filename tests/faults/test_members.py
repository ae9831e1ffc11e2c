"""Relays and consumers that come, go, freeze and lose the time of day: who works what stays clear."""

import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]

from orchestrator.kafka.topics import describe_topic
from testkit.eventually import eventually
from testkit.private_servers import BACK_S, answer, wait_ready
from testkit.system import LANES, PARTITIONS, Running, System
from tests.faults.kafka_servers import liveness_over, stream
from tests.integration.test_relays import lanes_of

SETTLED_S = 5.0  # from the last change among the relays until each has its share
CALM_S = 1.0  # how long no relay may take a lane then: four polls of the membership

# ---- relays ---------------------------------------------------------------------------------------


def is_acknowledged(relays: Sequence[Running]) -> bool:
    """Say whether all lanes are worked, in fair shares."""
    each, rest = divmod(LANES, len(relays))
    shares = [each] * (len(relays) - rest) + [each + 1] * rest
    return sorted(lanes_of(relay) for relay in relays) == shares and all(
        answer(relay, "readyz") == 200 for relay in relays
    )


def epochs(system: System) -> int:
    """Count how often a lane was taken."""
    return int(system.query("SELECT sum(epoch) FROM outbox_lane")[0][0])


def doubts(relays: Sequence[Running]) -> int:
    """Count how often a lane of the relays was in doubt, as it is when its producer is fenced."""
    return sum(relay.log.read_text().count('"lane in doubt"') for relay in relays)


def check_acknowledges(system: System, relays: Sequence[Running]) -> None:
    """See that the lanes find their owners in time, and that these stay it."""
    for relay in relays:
        eventually(partial(relay.logged, '"relay connected"'), 30)  # a start takes what it takes
    eventually(lambda: is_acknowledged(relays), SETTLED_S)
    before, calm = epochs(system), time.monotonic() + CALM_S
    eventually(lambda: time.monotonic() > calm)
    assert epochs(system) == before


@pytest.mark.xdist_group("measures")
@pytest.mark.fault(21)
@pytest.mark.timeout(900)
@pytest.mark.parametrize("starts", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_relays_that_start_together_join_and_leave_acknowledge_in_time_without_fences(
    system: System, starts: int
) -> None:
    relays: list[Running] = []
    ended: list[Running] = []
    rows = changes = known = 0
    first = system.start("relay")  # a new lane could be a restored one: who takes it fences all ids
    check_acknowledges(system, [first])
    first.stop()
    taken = epochs(system)
    with stream(system, rate=50) as commands:
        system.start("consumer")
        for turn in range(starts // 5):
            relays += [system.start("relay") for _ in range(4)]
            check_acknowledges(system, relays)
            relays.append(system.start("relay"))
            check_acknowledges(system, relays)
            for _ in range(4 if turn % 2 else 3):  # the numbers of those who stay go up and down
                relays[0].stop()
                ended.append(relays.pop(0))
            check_acknowledges(system, relays)
            assert doubts([*ended, *relays]) == known
            while len(relays) > 2:
                relays[-1].kill()
                ended.append(relays.pop())
            check_acknowledges(system, relays)
            known = doubts(
                [*ended, *relays]
            )  # who takes a dead one's lanes may share its id with others
            rows += len(system.accept(20))
            changes += 10
        commands.wait_for_progress()
    commands.sent += rows
    commands.check()
    for relay in [*ended, *relays]:
        assert not relay.logged('"lane lost'), relay.log.read_text()
    assert known <= LANES * changes
    assert epochs(system) - taken < 2 * changes + LANES


# ---- consumers ------------------------------------------------------------------------------------


def offsets(system: System) -> Counter[int]:
    """Return the next offset of each partition."""
    return Counter(dict(system.query("SELECT partition, next_offset FROM consumed_offsets")))


def wait_for_all_partitions(system: System) -> None:
    """Wait until more was read from each partition."""
    before = offsets(system)
    eventually(lambda: all(offsets(system)[p] > before[p] for p in before), BACK_S)


@pytest.mark.fault(22)
def test_a_consumer_frozen_beyond_its_session_writes_nothing_and_joins_again(system: System) -> None:
    zombie = system.start("consumer", crash_at="consumer.polled:20:freeze", BATCH_SIZE="20")
    system.start("relay")
    with stream(system) as commands:
        zombie.wait_frozen()
        successor = system.start("consumer")
        wait_for_all_partitions(system)  # the group misses the zombie after 6 s
        zombie.thaw()
        eventually(lambda: zombie.logged("another consumer has moved"))
        commands.wait_for_progress()
        successor.stop()
        wait_for_all_partitions(system)  # by the one that was a zombie
    commands.check()


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    ("end", "seconds"),
    [
        pytest.param(Running.stop, 5, id="stopped"),
        pytest.param(Running.stop, 60, id="stopped for long", marks=pytest.mark.slow),
        pytest.param(Running.kill, 60, id="killed", marks=pytest.mark.slow),
    ],
)
def test_in_a_rebalance_storm_work_goes_on(
    system: System, seconds: int, end: Callable[[Running], None]
) -> None:
    admin, topic = AdminClient(dict(system.settings.kafka)), system.settings.input_topic
    admin.create_partitions([NewPartitions(topic, 3 * PARTITIONS)])[topic].result()
    # A producer that knows a part of them would send a scenario's commands to two.
    eventually(lambda: len(describe_topic(admin, topic).partitions) == 3 * PARTITIONS)
    system.start("relay")
    consumers = [system.start("consumer") for _ in range(5)]
    with stream(system, rate=100) as commands:
        commands.wait_for_progress()
        for second in range(seconds):
            until = time.monotonic() + 1
            end(consumers[second % 5])
            consumers[second % 5] = system.start("consumer")
            eventually(lambda until=until: time.monotonic() > until)  # type: ignore[misc]
    commands.check()


# ---- time and names -------------------------------------------------------------------------------

HOUR_S = 3600
CC = shutil.which("cc")


class JumpingClock:
    """The time of day of the processes that `environ` starts; theirs alone."""

    def __init__(self, directory: Path) -> None:
        library, self._offset = directory / "jumping_clock.so", directory / "offset"
        source = Path(__file__).with_name("jumping_clock.c")
        subprocess.run([CC or "cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self.environ = {"LD_PRELOAD": str(library), "JUMPING_CLOCK": str(self._offset)}
        self._offset.write_bytes(bytes(8))

    def jump(self, seconds: int) -> None:
        """Set it so many seconds off the true time."""
        with self._offset.open("r+b") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))


@pytest.fixture
def clock(tmp_path: Path) -> JumpingClock:
    if CC is None or sys.platform != "linux":
        pytest.skip("no C compiler (apt install gcc) or not Linux: the clock cannot be made to jump")
    return JumpingClock(tmp_path)


@pytest.mark.fault(29)
def test_a_clock_that_jumps_forward_an_hour_changes_no_owner(
    system: System, clock: JumpingClock
) -> None:
    skewed = [system.start(name, **clock.environ) for name in ("consumer", "relay")]
    true = [system.start(name) for name in ("consumer", "relay")]
    with stream(system) as commands:
        wait_ready(*skewed, *true)
        eventually(lambda: is_acknowledged([skewed[1], true[1]]), SETTLED_S)
        commands.wait_for_progress()
        before = epochs(system)
        clock.jump(HOUR_S)
        assert liveness_over(1, [*skewed, *true]) == {200}
        wait_for_all_partitions(system)
        commands.wait_for_progress()
        assert epochs(system) == before
    commands.check()
    for process in skewed:
        process.stop()


@pytest.mark.fault(29)
def test_records_rejected_for_a_wrong_clock_are_not_parked(system: System, clock: JumpingClock) -> None:
    relay = system.start("relay", **clock.environ)
    wait_ready(relay)
    clock.jump(2 * HOUR_S)  # message.timestamp.after.max.ms is an hour
    rows = len(system.accept(20))
    eventually(lambda: "Broker: Invalid timestamp" in relay.get("/readyz"), BACK_S)
    assert system.query("SELECT count(*) FROM outbox_parked") == [(0,)]
    relay.kill()
    system.start("relay")  # by another clock
    system.check_exactly_once(rows)


@pytest.mark.fault(29)
@pytest.mark.slow
def test_a_clock_set_back_an_hour_may_stop_a_process_but_not_the_work(
    system: System, clock: JumpingClock
) -> None:
    skewed = [system.start(name, **clock.environ) for name in ("consumer", "relay")]
    true = [system.start(name) for name in ("consumer", "relay")]
    with stream(system) as commands:
        wait_ready(*skewed, *true)
        commands.wait_for_progress()
        clock.jump(-HOUR_S)  # current waits of librdkafka now last an hour (its issue 2145)
        wait_for_all_partitions(system)
        commands.wait_for_progress()
    commands.check()
    clock.jump(0)
    wait_ready(*skewed, *true)
    for process in [*skewed, *true]:
        process.stop()


@pytest.mark.fault(29)
def test_a_first_address_that_never_answers_delays_the_start_and_nothing_else(system: System) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, as a host that hangs
        servers = f"127.0.0.1:{silent.getsockname()[1]},{system.settings.kafka['bootstrap.servers']}"
        processes = [
            system.start(name, KAFKA_BOOTSTRAP_SERVERS=servers) for name in ("consumer", "relay")
        ]
        system.submit(50)
        system.check_exactly_once(50)
        assert liveness_over(1, processes) == {200}
        for process in processes:
            process.stop()
