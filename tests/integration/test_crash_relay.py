"""The relay killed with SIGKILL at every named point, in work and in recovery, and started again."""

import pytest

import outbox
from tests.system import System, crash_points

ROWS = 6
BATCH = {"BATCH_SIZE": "2"}

# Points on the way of a batch, and those that every start passes.
IN_WORK = ["locked", "settled", "claimed", "begun", "produced", "marked", "published"]
IN_RECOVERY = ["taken", "owner_checked", "fenced", "marker_read", "decided"]
WITH_A_REFUSED_RECORD = ["narrowed"]  # in test_lane.py


def test_every_point_has_a_case() -> None:
    found = crash_points(outbox, "relay")
    assert found == {*IN_WORK, *IN_RECOVERY, *WITH_A_REFUSED_RECORD}


@pytest.mark.parametrize("hit", [2, 4])
@pytest.mark.parametrize("point", IN_WORK)
def test_killed_at_work_it_goes_on(one_lane: System, point: str, hit: int) -> None:
    one_lane.accept(ROWS)
    one_lane.start("relay", crash_at=f"relay.{point}:{hit}", **BATCH).wait_killed()
    one_lane.start("relay", **BATCH)
    one_lane.check_exactly_once(ROWS)


@pytest.mark.parametrize("first", ["relay.begun", "relay.published:2"])
def test_killed_in_recovery_again_and_again_it_goes_on(one_lane: System, first: str) -> None:
    one_lane.accept(ROWS)
    one_lane.start("relay", crash_at=first, **BATCH).wait_killed()
    for point in IN_RECOVERY:
        one_lane.start("relay", crash_at=f"relay.{point}", **BATCH).wait_killed()
    one_lane.start("relay", **BATCH)
    one_lane.check_exactly_once(ROWS)
