"""Jars: only what a lock names is run, and every version that we start has a lock."""

import hashlib
import re
import zipfile
from pathlib import Path

import pytest

from orchestrator.embedded import KAFKA_VERSION, ServerStartError
from orchestrator.embedded.jars import fetch_jars, read_lock
from orchestrator.embedded.kafka import LOCKS

ROOT = Path(__file__).parents[2]
COORDINATES = "org.example:tool:1.0"


@pytest.fixture
def jar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A jar in a Maven cache of the test's own."""
    monkeypatch.setenv("M2_REPO", str(tmp_path))
    jar = tmp_path / "org/example/tool/1.0/tool-1.0.jar"
    jar.parent.mkdir(parents=True)
    write_jar(jar, "as released")
    return jar


@pytest.fixture
def lock(jar: Path, tmp_path: Path) -> Path:
    """A lock with that jar."""
    sha256 = hashlib.sha256(jar.read_bytes()).hexdigest()
    lock = tmp_path / "tool-1.0.lock"
    lock.write_text(f"# {COORDINATES}\n{sha256}  {COORDINATES}\n")
    return lock


def write_jar(jar: Path, content: str) -> None:
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr("Tool.class", content)


def test_a_jar_of_the_cache_is_used_if_it_is_the_locked_one(jar: Path, lock: Path) -> None:
    assert fetch_jars(lock) == [jar]


def test_another_jar_in_the_cache_is_refused_by_name(jar: Path, lock: Path) -> None:
    write_jar(jar, "changed")
    with pytest.raises(ServerStartError) as refused:
        fetch_jars(lock)
    for named in (str(jar), COORDINATES, str(lock), "Delete the file"):
        assert named in str(refused.value)


def test_a_version_without_a_lock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match=r"kafka-0\.1 has no lock.*make lock-jars"):
        fetch_jars(tmp_path / "kafka-0.1.lock")


@pytest.mark.parametrize("lock", [*LOCKS.glob("*.lock"), *ROOT.glob("bench/peers/*.lock")], ids=str)
def test_a_lock_names_what_was_resolved_and_a_hash_for_each_jar(lock: Path) -> None:
    wanted = lock.read_text().splitlines()[0].removeprefix("# ").split("+")
    jars = dict(read_lock(lock))
    assert set(wanted) < jars.keys()
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in jars.values())


def test_the_versions_that_are_started_have_a_lock() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    started = {KAFKA_VERSION, *re.findall(r"TEST_KAFKA_VERSION=(\S+)", workflow)}
    locked = {lock.name for lock in LOCKS.glob("*.lock")}
    assert {f"kafka-{version}.lock" for version in started} == locked


def test_all_that_is_started_beside_the_embedded_kafka_has_its_version() -> None:
    assert f"connect-runtime:{KAFKA_VERSION}+" in (ROOT / "bench/peers/connect.lock").read_text()
    assert f"image: apache/kafka:{KAFKA_VERSION}\n" in (ROOT / "deploy/compose.yaml").read_text()
