"""The log tells of each message while they are few, and of many by one line."""

import logging

import pytest

from orchestrator.observability.stages import LINES_PER_S, SUMMARY_S, StageLog


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def told(caplog: pytest.LogCaptureFixture) -> list[object]:
    """Return what was logged since the last call: the number of each line, or its count."""
    found = [getattr(one, "number", getattr(one, "count", None)) for one in caplog.records]
    caplog.clear()
    return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stage(clock: Clock, caplog: pytest.LogCaptureFixture) -> StageLog:
    caplog.set_level(logging.INFO)
    return StageLog("one", "many", clock=clock)


def lines(count: int) -> list[dict[str, object]]:
    return [{"number": number} for number in range(count)]


def test_few_have_a_line_each(stage: StageLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(30):
        stage.tell(2, lines(2))
        assert told(caplog) == [0, 1]
        clock.now += 0.5


def test_many_have_one_line_now_and_then(
    stage: StageLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    stage.tell(1000)
    for _ in range(9):
        clock.now += 1
        stage.tell(5, lines(5))
    assert told(caplog) == []
    clock.now += SUMMARY_S - 9
    stage.flush()
    assert told(caplog) == [1045]
    stage.tell(1, lines(1))  # and few have a line each again
    assert told(caplog) == [0]


def test_a_line_for_each_ends_where_there_are_too_many_in_a_second(
    stage: StageLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        stage.tell(LINES_PER_S // 2, lines(LINES_PER_S // 2))
    assert len(told(caplog)) == LINES_PER_S
    clock.now += SUMMARY_S
    stage.flush()
    assert told(caplog) == [LINES_PER_S // 2]


def test_where_the_level_is_higher_nothing_is_counted(
    stage: StageLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    stage.tell(1, lines(1))
    stage.tell(1000)
    clock.now += SUMMARY_S
    stage.flush()
    assert told(caplog) == []
