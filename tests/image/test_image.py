"""The image, and its processes as containers beside containers of PostgreSQL and Kafka."""

import time

import docker  # type: ignore[import-untyped]
import pytest

from testkit import summary as report
from testkit.containers import ServerContainers
from testkit.eventually import eventually
from tests.image.installation import Installation

pytestmark = [pytest.mark.image, pytest.mark.xdist_group("own servers: the image")]
COMMANDS = 10_000


def test_the_image_meets_the_requirements_of_a_cluster(image: str) -> None:
    built = docker.from_env().images.get(image)
    config = built.attrs["Config"]
    user, _, group = config["User"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert config["Entrypoint"] == ["orchestrator"], "a shell before it would not pass SIGTERM on"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "orchestrator", "healthcheck"]
    labels = {name.rpartition(".")[2]: text for name, text in config["Labels"].items()}
    assert labels["title"] == image
    assert labels["version"][0].isdigit()
    assert labels["revision"]
    copied = [layer["Size"] for layer in built.history() if "COPY /installed" in layer["CreatedBy"]]
    ours, dependencies = copied
    assert ours < 3_000_000, "what changes with each release"
    assert ours + dependencies < 60_000_000
    report.lines.append(
        f"image: {built.attrs['Size'] / 1e6:.0f} MB, of them dependencies {dependencies / 1e6:.1f},"
        f" ours {ours / 1e6:.2f} MB"
    )


def test_the_image_has_no_compiler_no_pip_and_no_cache_and_works(image: str) -> None:
    for script in (
        "! command -v gcc && ! command -v cc",
        "! find / -xdev -path '*/.cache/*' | grep .",
        "! python -m pip --version && ! python -m ensurepip --version && ! command -v pip",
        "! find / -xdev -name '*.whl' | grep .",
        "orchestrator migrate --sql | grep -q 'CREATE TABLE'",
    ):
        docker.from_env().containers.run(
            image, ["-ec", script], entrypoint="sh", read_only=True, remove=True
        )


def test_nothing_is_lost_or_doubled_when_each_container_is_killed_twice(
    installation: Installation,
) -> None:
    system = installation.system
    processes = [
        installation.start("consumer", BATCH_SIZE="50", KAFKA_CONFIG_GROUP_INSTANCE_ID="first"),
        installation.start("consumer", BATCH_SIZE="50", KAFKA_CONFIG_GROUP_INSTANCE_ID="second"),
        installation.start("relay", BATCH_SIZE="50"),
        installation.start("relay", BATCH_SIZE="50"),
    ]
    for process in processes:
        process.wait_ready()
    portion = COMMANDS // (4 * len(processes))
    submitted, in_hand = 0, 0
    for process in processes * 2:
        system.submit(portion)
        process.kill()
        submitted += portion
        in_hand += system.statuses().get("deployed", 0) < submitted
        system.submit(portion)
        submitted += portion
        process.start()
    system.check_exactly_once(COMMANDS, 60)
    took_s = [process.stop() for process in processes]
    assert in_hand > 0, "every kill met processes that had nothing to do"
    report.lines.append(
        f"containers: {COMMANDS:,} scenarios, 8 kills, {in_hand} of them with work in hand:"
        f" {system.audit()}; docker stop took at most {max(took_s):.1f} s"
    )


def test_without_a_command_it_sets_up_and_runs_both_processes(
    bare_installation: Installation,
) -> None:
    whole = bare_installation.start()
    took_s = whole.wait_ready()
    eventually(whole.is_healthy)
    report.lines.append(f"from docker run until set up and consuming: {took_s:.1f} s")
    bare_installation.system.submit(100)
    bare_installation.system.check_exactly_once(100)
    whole.stop()


def test_a_container_whose_setup_waits_is_healthy_and_stops(bare_installation: Installation) -> None:
    waiting = bare_installation.start(DATABASE_URL="postgresql://user@192.0.2.1/name")
    eventually(waiting.is_unready)
    eventually(waiting.is_healthy, 60)
    assert waiting.readiness()["checks"]["setup"]
    waiting.stop()


def test_a_setup_that_waits_for_postgres_obeys_sigterm(
    bare_installation: Installation, server_pair: ServerContainers
) -> None:
    """It is PID 1, for which Linux ignores signals that it does not handle."""
    postgres = server_pair.postgres.get_wrapped_container()
    postgres.pause()
    try:
        setup = bare_installation.start("setup")
        connected = b" 01 "  # the state of a connection there
        eventually(lambda: connected in setup.container.exec_run(["cat", "/proc/net/tcp"]).output)
        began = time.monotonic()
        setup.container.kill("TERM")
        assert setup.container.wait(timeout=30)["StatusCode"] == 143
        assert time.monotonic() - began < 5
    finally:
        postgres.unpause()


def test_processes_that_hang_become_unhealthy_and_recover(installation: Installation) -> None:
    processes = [installation.start("consumer"), installation.start("relay")]
    for process in processes:
        eventually(process.is_healthy, 60)
        process.container.kill("STOP")
    for process in processes:
        eventually(process.is_unhealthy, 60)
        process.container.kill("CONT")
    for process in processes:
        eventually(process.is_healthy, 60)


def test_processes_are_ready_soon_and_unready_while_postgres_is_stopped(
    installation: Installation, server_pair: ServerContainers
) -> None:
    processes = [installation.start("consumer"), installation.start("relay")]
    took_s = [process.wait_ready() for process in processes]
    assert max(took_s) < 45, took_s
    report.lines.append("from docker run until ready: {:.1f} and {:.1f} s".format(*took_s))
    postgres = server_pair.postgres.get_wrapped_container()
    postgres.stop()
    try:
        for process in processes:
            eventually(process.is_unready)
            assert not process.is_unhealthy(), "to wait for a server is not to hang"
    finally:
        postgres.start()
        eventually(server_pair.postgres_answers, 30)
    for process in processes:
        process.wait_ready()
    installation.system.submit(100)
    installation.system.check_exactly_once(100)
