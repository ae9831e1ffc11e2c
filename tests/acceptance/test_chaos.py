"""The short form of `make chaos`."""

import json
from random import Random

import pytest

from testkit.private_servers import own_servers
from tests.chaos import Chaos, judge

pytestmark = pytest.mark.xdist_group("own servers: PostgreSQL and Kafka")


def test_every_fault_at_once_loses_doubles_and_reorders_nothing() -> None:
    with own_servers("chaos") as work:
        figures, good = judge(Chaos(Random(5), scenarios=3000, kills=12, work=work))
        assert good, json.dumps(figures)
