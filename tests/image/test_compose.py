"""deploy/compose.yaml, as `make up` and `make down` use it."""

import json
import os
import urllib.request
from collections.abc import Iterator
from uuid import uuid4

import pytest

from orchestrator.embedded.server import free_port
from testkit.eventually import eventually
from tests.image.installation import run

pytestmark = [pytest.mark.image, pytest.mark.xdist_group("own servers: the image")]
COMPOSE = ("docker", "compose", "--file", "deploy/compose.yaml")


@pytest.fixture
def project(image: str) -> Iterator[dict[str, str]]:
    """The environment of a compose project of its own, whose containers and volumes end with it."""
    assert image
    name = f"test-{uuid4().hex[:12]}"
    environ = {**os.environ, "COMPOSE_PROJECT_NAME": name, "PROMETHEUS_PORT": str(free_port())}
    yield environ
    run(*COMPOSE, "down", "--volumes", "--timeout", "1", environ=environ)


def test_make_up_ends_in_deployed_workers_and_scraped_processes(project: dict[str, str]) -> None:
    run("make", "up", "CONSUMERS=2", "RELAYS=2", environ=project)
    command = ("orchestrator", "submit", "rtsp://user:pw@cam/1", "--count", "1000")
    scenarios = run(*COMPOSE, "exec", "-T", "consumer", *command, environ=project)
    assert len(scenarios.split()) == 1000

    def deployed() -> bool:
        statuses = "SELECT status, count(*) FROM workers GROUP BY status"
        psql = ("psql", "--username=postgres", "--tuples-only", "--no-align", "orchestrator")
        return (
            run(*COMPOSE, "exec", "-T", "postgres", *psql, "-c", statuses, environ=project)
            == "deployed|1000\n"
        )

    def scraped() -> bool:
        url = f"http://127.0.0.1:{project['PROMETHEUS_PORT']}/api/v1/query?query=up"
        with urllib.request.urlopen(url, timeout=5) as answer:
            found = json.load(answer)["data"]["result"]
        jobs = sorted(one["metric"]["job"] for one in found if one["value"][1] == "1")
        return jobs == ["consumer", "consumer", "relay", "relay"]

    eventually(deployed)
    eventually(scraped, 30)
    shown = run(*COMPOSE, "run", "--rm", "--no-deps", "setup", "status", environ=project)
    assert "UTC, 2 consumer(s), 2 relay(s)" in shown
    run("make", "down", environ=project)
    assert run(*COMPOSE, "ps", "--all", "--quiet", environ=project) == ""
