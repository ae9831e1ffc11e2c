"""Several relays at once: fair shares, take-over, zombies."""

import json
import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import pytest

from orchestrator.relay import new_relay
from testkit.eventually import eventually
from testkit.system import LANES, Running, System, end_sessions

TAKE_OVER_S = 2.0  # from the kill of an owner to work by another


def lanes_of(relay: Running) -> int:
    """Return how many lanes a relay says it owns."""
    found = re.findall(r"^outbox_lanes_owned (\d+)", relay.get("/metrics"), re.MULTILINE)
    return int(found[0])


@pytest.mark.fault(21)
@pytest.mark.parametrize(("relays", "shares"), [(2, [2, 2]), (3, [1, 1, 2]), (5, [0, 1, 1, 1, 1])])
def test_relays_share_the_lanes_fairly(system: System, relays: int, shares: list[int]) -> None:
    running = [system.start("relay") for _ in range(relays)]
    eventually(lambda: sorted(lanes_of(relay) for relay in running) == shares)
    eventually(lambda: all('"ready": true' in relay.get("/readyz") for relay in running))
    epochs = system.query("SELECT sum(epoch) FROM outbox_lane")
    system.accept(100)
    system.check_exactly_once(100)
    assert system.query("SELECT sum(epoch) FROM outbox_lane") == epochs  # no relay fences another


@pytest.mark.fault(21)
def test_a_relay_that_joins_gets_its_share_and_one_that_leaves_gives_it_back(system: System) -> None:
    first = system.start("relay")
    eventually(lambda: lanes_of(first) == LANES)
    second = system.start("relay")
    eventually(lambda: (lanes_of(first), lanes_of(second)) == (2, 2))
    system.accept(50)
    second.stop()
    eventually(lambda: lanes_of(first) == LANES)
    system.check_exactly_once(50)


@pytest.mark.xdist_group("measures")
def test_the_lanes_of_a_killed_relay_are_taken_over_within_two_seconds(system: System) -> None:
    first, second = system.start("relay"), system.start("relay")
    eventually(lambda: (lanes_of(first), lanes_of(second)) == (2, 2))
    first.kill()
    killed = time.monotonic()
    system.accept(40)  # for all lanes
    eventually(lambda: system.statuses() == {"deployed": 40})
    assert time.monotonic() - killed < TAKE_OVER_S
    system.check_exactly_once(40)


@pytest.mark.fault(20)
def test_a_frozen_relay_loses_its_lanes_by_itself(one_lane: System) -> None:
    silence = json.dumps({"session_silence_s": 2})  # Postgres ends the frozen relay's session then
    zombie = one_lane.start("relay", crash_at="relay.published:2:freeze", OUTBOX_TIMINGS=silence)
    one_lane.accept(3)
    zombie.wait_frozen()
    one_lane.start("relay")
    one_lane.check_exactly_once(3)
    zombie.thaw()
    eventually(lambda: zombie.logged("relay waiting"))
    one_lane.accept(3)
    one_lane.check_exactly_once(6)


@pytest.mark.fault(20)
@pytest.mark.parametrize(
    "point",
    [
        pytest.param("owner_checked", marks=pytest.mark.slow),
        pytest.param("fenced", marks=pytest.mark.slow),
        pytest.param("evidence_read", marks=pytest.mark.slow),
        "decided",
        "claimed:2",
        pytest.param("begun:2", marks=pytest.mark.slow),
        pytest.param("produced:3", marks=pytest.mark.slow),
        "published:3",
    ],
)
def test_a_zombie_that_wakes_up_does_no_harm(one_lane: System, point: str) -> None:
    name, _, hit = point.partition(":")
    one_lane.accept(4)
    zombie = one_lane.start("relay", crash_at=f"relay.{name}:{hit or 1}:freeze", BATCH_SIZE="2")
    zombie.wait_frozen()
    end_sessions(one_lane, "outbox %")  # as Postgres does after 10 s of silence
    eventually(lambda: one_lane.query(SESSIONS) == [(0,)])
    successor = one_lane.start("relay", BATCH_SIZE="2")
    one_lane.check_exactly_once(4)
    one_lane.accept(4)
    zombie.thaw()
    one_lane.check_exactly_once(8)
    one_lane.accept(4)
    one_lane.check_exactly_once(12)
    successor.stop()
    zombie.stop()


SESSIONS = """
    SELECT count(*) FROM pg_stat_activity
     WHERE datname = current_database() AND application_name LIKE 'outbox %%'
"""


def test_relays_started_and_killed_at_random_lose_and_double_nothing(system: System) -> None:
    relays = [system.start("relay", BATCH_SIZE="20") for _ in range(3)]
    for turn in range(9):
        system.accept(100)
        relays[turn % 3].kill()
        relays[turn % 3] = system.start("relay", BATCH_SIZE="20")
    system.check_exactly_once(900)


@pytest.mark.fault(12)
def test_a_terminated_backend_is_an_unknown_outcome_that_is_found_out(system: System) -> None:
    system.start("relay", BATCH_SIZE="5")
    for _ in range(10):
        system.accept(30)
        end_sessions(system, "outbox %")
    system.check_exactly_once(300)


def test_a_relay_goes_on_when_its_connections_to_kafka_are_cut(system: System) -> None:
    stop = Event()
    thread = Thread(target=new_relay(system.settings).run, args=[stop])
    thread.start()
    try:
        system.accept(40)
        eventually(lambda: system.statuses() == {"deployed": 40})
        for _ in range(3):
            eventually(lambda: cut_connections(system.settings.kafka["bootstrap.servers"]) > 0)
            system.accept(40)
        system.check_exactly_once(160)
    finally:
        stop.set()
        thread.join(10)


def test_a_connection_lost_in_silence_renews_the_producer(one_lane: System) -> None:
    with one_lane.lane() as lane:
        lane.recover()
        assert not lane.publisher.needs_renewal
        cut_connections(one_lane.settings.kafka["bootstrap.servers"])

        def needs_renewal() -> bool:
            lane.publisher.producer.poll(0)  # as the end of every batch does
            return lane.publisher.needs_renewal

        eventually(needs_renewal)


def test_a_relay_that_gave_its_producer_up_needs_no_new_one(one_lane: System) -> None:
    with one_lane.lane() as lane:
        lane.recover()
        lane.publisher.note_possible_retry()
        assert lane.publisher.needs_renewal
        lane.publisher.discard()  # as a relay without lanes does: it would renew it in a busy loop
        assert not lane.publisher.needs_renewal


def cut_connections(server: str) -> int:
    """Shut down this process's connections to a server, as a network would; return how many."""
    host, _, port = server.partition(":")
    address = (socket.gethostbyname(host), int(port))
    cut = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as connection:
            if connection.getpeername()[:2] == address:
                connection.shutdown(socket.SHUT_RDWR)
                cut += 1
    return cut
