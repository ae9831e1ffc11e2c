"""Fixtures for faults: a broker whose clients come through a proxy, a Postgres that may be harmed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.embedded import EmbeddedPostgres, Servers
from tests.faults.postgres_servers import installed, own_postgres
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


@pytest.fixture(scope="module")
def postgres() -> Iterator[EmbeddedPostgres]:
    with own_postgres() as running:
        yield running


@pytest.fixture
def own(postgres: EmbeddedPostgres, servers: Servers, tmp_path: Path) -> Iterator[System]:
    """An installation on a Postgres of the module's own."""
    with installed(Servers(postgres.url, servers.bootstrap_servers), tmp_path) as system:
        yield system
