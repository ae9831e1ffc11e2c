"""Fixtures for faults in the network: a broker whose clients come through a proxy."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.embedded import Servers
from tests.faults.wired import WiredKafka, wired_kafka
from tests.system import System, new_system


@pytest.fixture(scope="session")
def wired() -> Iterator[WiredKafka]:
    """A broker that can be reached through a proxy, too."""
    with wired_kafka() as kafka:
        yield kafka


@pytest.fixture
def wired_lane(servers: Servers, template: str, wired: WiredKafka, tmp_path: Path) -> Iterator[System]:
    """An installation on that broker, with one lane."""
    behind = Servers(servers.database_url, wired.bootstrap_servers)
    with new_system(behind, template, tmp_path, lanes=1) as made:
        yield made
