"""The consumer killed with SIGKILL at every named point, and started again."""

import pytest

import orchestrator
from tests.eventually import eventually
from tests.system import System, crash_points

BATCHES = 4
SETTINGS = {
    "BATCH_SIZE": "1",
    "KAFKA_CONFIG_GROUP_INSTANCE_ID": "the one",  # or the group waits 6 s for a dead member
}

AT_THE_START = ["assigned"]
IN_A_BATCH = ["polled", "advanced", "inserted", "enqueued", "committed", "shown"]
CASES = [(point, hit) for point in IN_A_BATCH for hit in (1, 3)] + [
    (point, 1) for point in AT_THE_START
]


def test_every_point_has_a_case() -> None:
    found = crash_points(orchestrator, "consumer")
    assert found == {point for point, _ in CASES}


@pytest.mark.parametrize(("point", "hit"), CASES)
def test_killed_anywhere_it_accepts_every_command_once(system: System, point: str, hit: int) -> None:
    scenarios = system.submit(BATCHES)
    system.start("consumer", crash_at=f"consumer.{point}:{hit}", **SETTINGS).wait_killed()
    system.start("consumer", **SETTINGS)
    eventually(lambda: system.statuses() == {"pending": BATCHES}, 20)
    workers = system.query("SELECT scenario_uuid FROM workers ORDER BY scenario_uuid")
    assert [scenario for (scenario,) in workers] == sorted(scenarios)
    ((rows, subjects),) = system.query("SELECT count(*), count(DISTINCT subject) FROM outbox")
    assert rows == subjects == BATCHES
    assert system.query("SELECT sum(next_offset) FROM consumed_offsets") == [(BATCHES,)]
