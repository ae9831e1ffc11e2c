"""Sessions one after another: at once, or with a pause that grows."""

from collections.abc import Callable
from threading import Event, Timer

import pytest

from outbox import Backoff

pytestmark = pytest.mark.xdist_group("measures")

SESSIONS = 100


def run(
    session: Callable[[Callable[[], None]], None],
    note: Callable[[Exception], None],
    backoff: Backoff,
    stop: Event,
) -> None:
    """Run sessions as every loop does."""
    while not stop.is_set():
        try:
            session(backoff.healthy)
        except ValueError as error:
            note(error)
            backoff.wait()
        else:
            return


def lives(steady_s: float, each_s: float) -> list[Exception]:
    """Let sessions work and fail for a second, or until SESSIONS have."""
    ended: list[Exception] = []
    stop, waits = Event(), Event()

    def session(good: Callable[[], None]) -> None:
        good()
        waits.wait(each_s)
        raise ValueError

    def note(error: Exception) -> None:
        ended.append(error)
        if len(ended) == SESSIONS:
            stop.set()

    timer = Timer(1, stop.set)
    timer.start()
    run(session, note, Backoff(stop, steady_s), stop)
    timer.cancel()
    return ended


def test_a_session_that_worked_is_followed_at_once() -> None:
    assert len(lives(steady_s=0, each_s=0)) == SESSIONS
    assert len(lives(steady_s=0.005, each_s=0.006)) > SESSIONS / 3


def test_sessions_that_fail_as_soon_as_they_work_back_off() -> None:
    assert 1 < len(lives(steady_s=5, each_s=0)) < SESSIONS / 3


def test_an_error_that_no_session_cures_is_raised() -> None:
    def session(_good: Callable[[], None]) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        run(session, lambda _error: None, Backoff(Event()), Event())


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note how long each pause would be at the longest, and pause not at all."""
    longest: list[float] = []

    def note(_shortest: float, longest_s: float) -> float:
        longest.append(longest_s)
        return 0.0

    monkeypatch.setattr("outbox.backoff.random.uniform", note)
    return longest


def test_pauses_grow_up_to_a_limit_however_long_a_server_is_away(pauses: list[float]) -> None:
    backoff = Backoff(Event())
    for _ in range(3000):
        backoff.wait()
    assert pauses[:3] == [0.1, 0.2, 0.4]
    assert set(pauses[6:]) == {5.0}


def test_the_pauses_begin_again_after_a_session_that_worked(pauses: list[float]) -> None:
    backoff = Backoff(Event())
    for step in (backoff.wait, backoff.wait, backoff.healthy, backoff.wait, backoff.wait):
        step()
    assert pauses == [0.1, 0.2, 0.0, 0.1]
