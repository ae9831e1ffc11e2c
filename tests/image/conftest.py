"""Fixtures for the tests of the container image. They need Docker, and are not run without."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from testkit.containers import (
    KAFKA_IMAGE,
    POSTGRES_IMAGE,
    ServerContainers,
    docker_fault,
    server_containers,
)
from testkit.empty_installation import bare_system
from tests.image.installation import IMAGE, Installation, run

BASE_IMAGE = "python:3.13-slim-bookworm"


@pytest.fixture(scope="session")
def image() -> str:
    """Build the image with `make image`; return its name."""
    if os.environ.get("TEST_BACKEND") == "embedded":
        pytest.skip("TEST_BACKEND=embedded")
    if fault := docker_fault(BASE_IMAGE, POSTGRES_IMAGE, KAFKA_IMAGE):
        pytest.skip(fault)
    run("make", "image")
    return IMAGE


@pytest.fixture(scope="session")
def server_pair(image: str) -> Iterator[ServerContainers]:
    """PostgreSQL and Kafka that may be stopped: the other tests have their own."""
    assert image
    with server_containers() as running:
        yield running


@pytest.fixture
def bare_installation(server_pair: ServerContainers, tmp_path: Path) -> Iterator[Installation]:
    """An empty database, no topics, no processes."""
    with bare_system(server_pair.servers, tmp_path) as system, ExitStack() as running:
        yield Installation(server_pair, system, running)


@pytest.fixture
def installation(bare_installation: Installation) -> Installation:
    """The same after its setup."""
    bare_installation.run("setup")
    return bare_installation
