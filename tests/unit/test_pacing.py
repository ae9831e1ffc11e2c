"""A small batch is followed by a pause as long as what it waited for."""

import pytest

from outbox.pacing import AdaptivePause

LONGEST_S = 0.1


@pytest.fixture
def pace() -> AdaptivePause:
    """Give the pace of a lane whose quickest batch took 10 ms."""
    pace = AdaptivePause(LONGEST_S)
    pace.after(0.01)
    return pace


def test_the_first_batch_is_followed_at_once() -> None:
    """Nothing is known yet of what a batch takes."""
    assert AdaptivePause(LONGEST_S).after(5.0) == 0


def test_where_nothing_waits_there_is_no_pause(pace: AdaptivePause) -> None:
    """A batch as quick as the quickest gives nothing back."""
    assert pace.after(0.01) == 0


def test_the_pause_equals_the_time_that_a_batch_waited(pace: AdaptivePause) -> None:
    """The pause is what the batch took beyond the quickest."""
    assert pace.after(0.04) == pytest.approx(0.03)


def test_a_quicker_batch_is_the_new_measure(pace: AdaptivePause) -> None:
    """The wait is counted from the quickest so far."""
    assert pace.after(0.004) == 0
    assert pace.after(0.01) == pytest.approx(0.006)


def test_no_pause_is_longer_than_the_longest(pace: AdaptivePause) -> None:
    """A server that was away for seconds causes no pause when it is back."""
    assert pace.after(5.0) == LONGEST_S
