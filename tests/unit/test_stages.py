"""The log tells of each message while they are few, and of many by one line."""

import pytest

from orchestrator.observability.stages import LINES_PER_S, SUMMARY_S, StageLog


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines() -> list[object]:
    """What was logged: each message, or how many there were in how many seconds."""
    return []


@pytest.fixture
def stage(clock: Clock, lines: list[object]) -> StageLog[int]:
    return StageLog(lines.append, lambda count, seconds: lines.append((count, seconds)), clock)


def test_few_have_a_line_each(stage: StageLog[int], clock: Clock, lines: list[object]) -> None:
    for number in range(30):
        stage.tell(2, [number, -number])
        clock.now += 0.5
    assert lines == [sign * number for number in range(30) for sign in (1, -1)]


def test_many_have_one_line_now_and_then(
    stage: StageLog[int], clock: Clock, lines: list[object]
) -> None:
    stage.tell(1000)
    for _ in range(9):
        clock.now += 1
        stage.tell(5, range(5))
    assert lines == []
    clock.now += SUMMARY_S - 9
    stage.flush()
    stage.flush()
    assert lines == [(1045, SUMMARY_S)]
    stage.tell(1, [7])  # and few have a line each again
    assert lines[1:] == [7]


def test_a_line_for_each_ends_where_there_are_too_many_in_a_second(
    stage: StageLog[int], clock: Clock, lines: list[object]
) -> None:
    half = range(LINES_PER_S // 2)
    for _ in range(3):
        stage.tell(len(half), half)
    assert lines == [*half, *half]
    clock.now += SUMMARY_S
    stage.flush()
    assert lines[-1] == (len(half), SUMMARY_S)
