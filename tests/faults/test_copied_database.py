"""A copy of the database, with the same identity, at work beside the original.

A staging environment made from a backup, a second primary: both count on from the same batch number,
under the same transactional ids. Each fences the other; the token in the marker tells them apart.
"""

from collections.abc import Mapping
from uuid import UUID

import pytest

from outbox import InDoubt
from outbox.evidence import Evidence, Search
from testkit.disagreement import copied, repair
from testkit.eventually import eventually
from testkit.system import System

KEY = UUID(int=7)


def workers_sent(system: System) -> list[UUID]:
    """Return the workers of this database whose orders are in the topic, once for each order."""
    ours = {worker for (worker,) in system.query("SELECT worker_id FROM workers")}
    return sorted(order.worker_id for order in system.orders() if order.worker_id in ours)


def check_sent_once(system: System) -> None:
    """Check that each worker of this database has one order."""
    workers = system.query("SELECT worker_id FROM workers ORDER BY worker_id")
    assert [(worker,) for worker in workers_sent(system)] == workers


@pytest.mark.fault(40)
def test_a_batch_of_the_copy_is_not_taken_for_ours(one_lane: System) -> None:
    """Guard: tokens, not numbers, tell two histories apart. Batches of one size have equal numbers."""
    one_lane.accept(5, KEY)
    with one_lane.lane(0, batch_size=5) as before:
        before.recover()
        before.drain()
    with copied(one_lane) as copy:
        one_lane.accept(5, KEY)
        copy.accept(5, KEY)
        with one_lane.lane(0, batch_size=5) as original, copy.lane(0, batch_size=5) as other:
            original.recover()
            rows = original.claim()
            other.recover()
            assert other.drain() == 5
            with pytest.raises(InDoubt):
                original.session.batches.publish({0: rows})
            original.recover()
            assert original.lane.status.reason == "marker_foreign"
            assert one_lane.query("SELECT count(*) FROM outbox") == [(5,)]
        repair_and_finish(one_lane)


@pytest.mark.fault(40)
@pytest.mark.parametrize("in_flight", [False, True])
def test_rows_that_both_have_are_sent_once(one_lane: System, in_flight: bool) -> None:
    one_lane.accept(5, KEY)
    with one_lane.lane(0) as before:
        before.recover()
        if in_flight:
            before.claim()
    with copied(one_lane) as copy:
        with copy.lane(0) as other:
            other.recover()
            other.drain()
        with one_lane.lane(0) as original:
            original.recover()
            original.drain()
            refused = original.lane.refused
        assert refused or one_lane.query("SELECT count(*) FROM outbox") == [(0,)]
        assert len(workers_sent(one_lane)) == 5
        if refused:
            repair_and_finish(one_lane)
        check_sent_once(one_lane)


@pytest.mark.fault(40)
def test_a_copy_that_publishes_while_the_original_recovers_is_seen(
    one_lane: System,
) -> None:
    """Guard: the publishing producer is made before the evidence is read, not after."""
    one_lane.accept(5, KEY)
    with one_lane.lane(0) as before:
        before.recover()
    with copied(one_lane) as copy, one_lane.lane(0) as original, copy.lane(0) as other:
        read = original.publisher.read_evidence

        def read_slowly(searches: Mapping[int, Search]) -> dict[int, Evidence]:
            found = read(searches)
            other.recover()
            assert other.drain() == 5
            return found

        original.publisher.read_evidence = read_slowly  # type: ignore[method-assign]
        original.recover()  # sees its own marker: the other one's batch came later
        with pytest.raises(InDoubt):
            original.run_once()
        original.publisher.read_evidence = read  # type: ignore[method-assign]
        original.recover()
        assert original.lane.refused
        assert len(workers_sent(one_lane)) == 5


@pytest.mark.fault(40)
def test_both_processes_at_work_lose_nothing_and_say_so(one_lane: System) -> None:
    relay = one_lane.start("relay")
    one_lane.accept(10)
    eventually(lambda: one_lane.statuses() == {"deployed": 10})
    relay.kill()
    with copied(one_lane) as copy:
        relays = [one_lane.start("relay"), copy.start("relay")]
        for system in (one_lane, copy) * 3:
            system.accept(10)
        eventually(lambda: any("refused: marker_" in one.get("/readyz") for one in relays), 60)
        for relay in relays:
            relay.kill()
        repair_and_finish(one_lane)


def repair_and_finish(system: System) -> None:
    """Repair the lane if it is refused, and publish the rest; check that nothing is lost or doubled."""
    code, said = repair(system, "lane", "all", "--yes")
    assert code == 0, said
    relay = system.start("relay")
    eventually(lambda: relay.logged("lane active"), 60)
    eventually(lambda: system.query("SELECT count(*) FROM outbox") == [(0,)], 60)
    relay.stop()
    check_sent_once(system)
