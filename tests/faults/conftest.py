"""Fixtures for faults: a Postgres that may be harmed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.embedded import EmbeddedPostgres, Servers
from testkit.system import System
from tests.faults.postgres_servers import installed, own_postgres


@pytest.fixture(scope="module")
def postgres() -> Iterator[EmbeddedPostgres]:
    with own_postgres() as running:
        yield running


@pytest.fixture
def own(postgres: EmbeddedPostgres, servers: Servers, tmp_path: Path) -> Iterator[System]:
    """An installation on a Postgres of the module's own."""
    with installed(Servers(postgres.url, servers.bootstrap_servers), tmp_path) as system:
        yield system
