"""A Runner as the README allows one: it keeps rows of `workers` locked while orders are delivered."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from threading import Event, Thread
from uuid import UUID

import psycopg
import pytest
from confluent_kafka import Consumer

from orchestrator.contract.messages import order_ids
from testkit import summary
from testkit.eventually import eventually
from testkit.system import System

HELD_S = 3.0
EACH = 10  # every tenth worker is held
LOAD_S, PAUSE_S = 20.0, 0.1
ROUNDS = 2  # of each, in turn
NEAR = 2.0  # times the p90 without a held row, and at least ROOM_S: the machine may be busy
ROOM_S = 0.5

START = "UPDATE workers SET status = 'running', process_pid = 7 WHERE worker_id = %s"


class Runner:
    """Reads orders; sets every tenth worker to running, in a transaction that it keeps open."""

    def __init__(self, system: System, held_s: float) -> None:
        self.arrived: dict[UUID, float] = {}
        self.started: list[UUID] = []
        self.stop = Event()
        self._system = system
        self._held_s = held_s

    def run(self) -> None:
        """Read until stopped."""
        config = {"group.id": "runner", "isolation.level": "read_committed"}
        config |= {"auto.offset.reset": "earliest", "enable.auto.commit": "false"}
        consumer = Consumer({**self._system.settings.kafka, **config})
        consumer.subscribe([self._system.settings.output_topic])
        holding = []
        with closing(consumer):
            while not self.stop.is_set():
                record = consumer.poll(0.05)
                if record is None or record.error():
                    continue
                worker = order_ids(record).worker_id
                assert worker is not None
                self.arrived[worker] = time.monotonic()
                if len(self.arrived) % EACH == 1:
                    self.started.append(worker)
                    holding.append(Thread(target=self._hold, args=[worker]))
                    holding[-1].start()
        for thread in holding:
            thread.join()

    def _hold(self, worker: UUID) -> None:
        with psycopg.connect(self._system.settings.database_url) as conn:
            conn.execute(START, [worker])
            time.sleep(self._held_s)


@contextmanager
def running(runner: Runner) -> Iterator[None]:
    """Run the Runner in a thread while the block runs."""
    thread = Thread(target=runner.run)
    thread.start()
    try:
        yield
    finally:
        runner.stop.set()
        thread.join()


def p90_of_delivery(system: System, held_s: float) -> float:
    """Accept workers one after the other; return the p90 of the time until the Runner has an order."""
    runner, sent = Runner(system, held_s), dict[UUID, float]()
    with running(runner):
        (first,) = system.accept(1)  # the Runner has its partitions
        eventually(lambda: first in runner.arrived)
        end = time.monotonic() + LOAD_S
        while time.monotonic() < end:
            (worker,) = system.accept(1)
            sent[worker] = time.monotonic()
            time.sleep(PAUSE_S)
        eventually(lambda: sent.keys() <= runner.arrived.keys())
    assert len(runner.started) >= len(sent) // EACH
    statuses = dict(system.query("SELECT worker_id, status FROM workers"))
    assert {statuses[worker] for worker in runner.started} == {"running"}
    took = sorted(runner.arrived[worker] - at for worker, at in sent.items())
    return took[int(len(took) * 0.9)]


@pytest.mark.slow
@pytest.mark.fault(42)
@pytest.mark.xdist_group("measures")
def test_delivery_does_not_wait_for_a_runner_that_holds_every_tenth_worker(system: System) -> None:
    system.start("relay", OUTBOX_TIMINGS="")
    usual, held = [], []
    for _ in range(ROUNDS):
        usual.append(p90_of_delivery(system, 0.0))
        held.append(p90_of_delivery(system, HELD_S))
    shown = [[round(p90 * 1000) for p90 in rounds] for rounds in (usual, held)]
    summary.lines.append(f"p90 of delivery in ms: {shown[0]}; every tenth worker held: {shown[1]}")
    assert min(held) < max(NEAR * min(usual), ROOM_S), (usual, held)
    eventually(lambda: system.query("SELECT count(*) FROM outbox_deferred") == [(0,)], 60)
    assert system.statuses().keys() == {"running", "deployed"}
    assert system.audit().passed
