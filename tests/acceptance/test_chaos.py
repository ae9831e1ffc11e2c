"""The short form of `make chaos`."""

import json
from itertools import count
from random import Random

import pytest

from testkit.private_servers import own_servers
from testkit.system import System, take
from tests import chaos
from tests.chaos import Chaos, StandsStill, count_unconsumed, judge, reach


@pytest.mark.xdist_group("own servers: PostgreSQL and Kafka")
def test_every_fault_at_once_loses_doubles_and_reorders_nothing() -> None:
    with own_servers("chaos") as work:
        figures, good = judge(Chaos(Random(5), scenarios=3000, kills=12, work=work))
        assert good, json.dumps(figures)


def test_a_number_may_take_its_time_as_long_as_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "STILL_S", 0.3)
    numbers = count()
    reach(lambda: next(numbers), 5, "it")  # a second in all
    with pytest.raises(StandsStill, match=r"the relay stands still at 4 of 5 for 0\.3 s"):
        reach(lambda: 4, 5, "the relay")


def test_commands_that_were_not_consumed_yet_are_counted_and_are_not_lost(system: System) -> None:
    system.submit(10)
    assert count_unconsumed(system) == 10
    with system.consumer() as session:
        take(session, 10)
    assert count_unconsumed(system) == 0
