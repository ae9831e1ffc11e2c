"""What is installed is locked by hash, in every file the same, and CI runs what it says it runs."""

import os
import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text()

RUNTIME: list[str] = PROJECT["dependencies"]
FOR_DEVELOPERS = ("test", "bench", "otel", "dev")
WITH_SERVERS = RUNTIME + EXTRAS["embedded"]
WANTED = {  # what pyproject.toml asks for, by the file that must hold it
    "requirements.txt": RUNTIME,
    "requirements-embedded.txt": WITH_SERVERS,
    "requirements-dev.txt": list(chain(WITH_SERVERS, *(EXTRAS[extra] for extra in FOR_DEVELOPERS))),
    "requirements-supply.txt": EXTRAS["supply"],
    "requirements-build.txt": PYPROJECT["build-system"]["requires"],
}
PIN = re.compile(r"([\w.-]+)==(\S+)(?: --hash=sha256:[0-9a-f]{64})+")


def locked_lines(file: str) -> list[str]:
    """Return the lines of a requirements file, joined where they go on, without comments."""
    text = re.sub(r"\s*\\\n\s*", " ", (ROOT / file).read_text())
    return [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]


def locked(file: str) -> dict[str, str]:
    """Return the version of each package in a requirements file."""
    pins = [pin.groups() for line in locked_lines(file) if (pin := PIN.fullmatch(line))]
    return {canonicalize_name(name): version for name, version in pins}


def parsed(file: str) -> Any:
    return yaml.safe_load((ROOT / file).read_text())


JOBS = parsed(".github/workflows/ci.yml")["jobs"]
RELEASE = parsed(".github/workflows/release.yml")
STEPS: list[dict[str, Any]] = [
    step for job in (*JOBS.values(), *RELEASE["jobs"].values()) for step in job["steps"]
]


def test_every_requirements_file_is_known_here() -> None:
    assert {file.name for file in ROOT.glob("requirements*")} == WANTED.keys()


def test_every_extra_is_in_a_file() -> None:
    assert set(chain(*EXTRAS.values())) <= set(chain(*WANTED.values()))


@pytest.mark.parametrize("file", WANTED)
def test_every_package_is_locked_by_hash_and_no_address_is_named(file: str) -> None:
    assert [line for line in locked_lines(file) if not PIN.fullmatch(line)] == []
    assert "://" not in (ROOT / file).read_text()


@pytest.mark.parametrize("file", WANTED)
def test_a_file_locks_what_pyproject_requires(file: str) -> None:
    for wanted in map(Requirement, WANTED[file]):
        assert locked(file)[canonicalize_name(wanted.name)] in wanted.specifier, f"{wanted} in {file}"


def test_a_package_has_one_version_in_all_files() -> None:
    versions: dict[str, set[str]] = {}
    for file in WANTED:
        for name, version in locked(file).items():
            versions.setdefault(name, set()).add(version)
    assert [name for name, found in versions.items() if len(found) > 1] == []


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ("requirements.txt", "requirements-embedded.txt"),
        ("requirements-embedded.txt", "requirements-dev.txt"),
        ("requirements-build.txt", "requirements-dev.txt"),
    ],
)
def test_the_larger_file_holds_the_smaller(smaller: str, larger: str) -> None:
    assert locked(smaller).items() <= locked(larger).items()


# pip installs with hashes what a file of ours gives hashes for.
SAFE_INSTALL = r"--require-hashes -|--no-deps .*[.]$|pip install -r requirements\.txt(?! *[\w-])"


def test_nothing_names_a_package_that_is_on_no_index_of_ours() -> None:
    """Anyone could take that name. pip installs what is locked by hash, or this checkout."""
    files = [file for part in INSTALLS for file in ROOT.glob(part)]
    lines = [line for file in files for line in file.read_text().splitlines() if "pip install" in line]
    assert lines
    assert [line for line in lines if not re.search(SAFE_INSTALL, line)] == []


INSTALLS = ("orchestrator/**/*.py", "outbox/**/*.py", "docs/*.md", "*.md", "Makefile", "Dockerfile")


def test_ci_runs_the_oldest_python_and_the_one_of_the_image() -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=")
    image = re.findall(r"^FROM python:(\d+\.\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert image
    assert {oldest, *image} <= {leg["python"] for leg in JOBS["test"]["strategy"]["matrix"]["include"]}


def test_ci_calls_targets_that_the_makefile_has() -> None:
    commands = "\n".join(step.get("run", "") for step in STEPS)
    called = [word for line in re.findall(r"\bmake ([a-z -]+)", commands) for word in line.split()]
    assert "ci" in called
    assert set(called) <= set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))


def test_ci_takes_actions_by_their_commit() -> None:
    actions = [step["uses"] for step in STEPS if "uses" in step]
    assert [action for action in actions if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)] == []


def test_only_a_release_may_write_and_only_after_the_scan() -> None:
    assert parsed(".github/workflows/ci.yml")["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in JOBS.values())
    assert RELEASE["permissions"] == {}
    steps = [str(step) for step in RELEASE["jobs"]["image"]["steps"]]
    order = ["make check-images image", "anchore/scan-action@", "docker push", "cosign sign"]
    order += ["actions/attest@", "sbom-path"]
    places = [min(at for at, step in enumerate(steps) if part in step) for part in order]
    assert places == sorted(places)
    named = [step for step in steps if "cosign sign" in step or "actions/attest@" in step]
    assert all("steps.push.outputs.digest" in step for step in named), "a tag may move meanwhile"


# ---- images ---------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that name images, and in bin/ a `docker` that answers with the digest in DIGEST."""
    for name in ("Makefile", "Dockerfile", "deploy/compose.yaml"):
        copy = tmp_path / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(re.sub("@sha256:[0-9a-f]{64}", "", (ROOT / name).read_text()))
    docker = tmp_path / "bin/docker"
    docker.parent.mkdir()
    docker.write_text('#!/bin/sh\ntest "$DIGEST" && echo "sha256:$DIGEST"\n')
    docker.chmod(0o755)
    return tmp_path


def make(checkout: Path, *arguments: str, digest: str = "") -> subprocess.CompletedProcess[str]:
    path, command = f"{checkout / 'bin'}:{os.environ['PATH']}", ["make", *arguments]
    return subprocess.run(
        command,
        cwd=checkout,
        env={"PATH": path, "DIGEST": digest},
        capture_output=True,
        text=True,
        check=False,
    )


def images(checkout: Path) -> list[str]:
    lines = [(checkout / name).read_text() for name in ("Dockerfile", "deploy/compose.yaml")]
    return re.findall(r"^(?:FROM| +image:) (\S+:\S+)", "".join(lines), re.MULTILINE)


def test_make_knows_every_image_that_is_named() -> None:
    services = parsed("deploy/compose.yaml")["services"].values()
    steps = (ROOT / "Dockerfile").read_text()
    bases = re.findall(r"^FROM (?:--\S+ )*(\S+)", steps, re.MULTILINE)
    named = [*bases, *re.findall(r"--from=(\S+)", steps), *(service["image"] for service in services)]
    ours = {"vap-orchestrator", *re.findall(r"^FROM .* AS (\S+)$", steps, re.MULTILINE)}
    assert set(named) - ours == set(images(ROOT))


def test_images_get_their_digests_and_later_newer_ones(checkout: Path) -> None:
    names = images(checkout)
    assert len(names) == 6
    unlocked = make(checkout, "check-images")
    assert unlocked.returncode != 0
    assert all(name in unlocked.stdout for name in names)
    for digest in ("a" * 64, "b" * 64):
        assert make(checkout, "lock-images", digest=digest).returncode == 0
        assert images(checkout) == [f"{name}@sha256:{digest}" for name in names]
        assert make(checkout, "check-images").returncode == 0


def test_an_image_that_no_registry_knows_stays_and_is_reported(checkout: Path) -> None:
    names = images(checkout)
    assert make(checkout, "lock-images").returncode != 0
    assert images(checkout) == names


def test_a_machine_without_a_registry_builds_by_name(checkout: Path) -> None:
    """It is the Dockerfile without its digests, to the letter, that `docker build` gets."""
    before = (checkout / "Dockerfile").read_text()
    make(checkout, "lock-images", digest="c" * 64)
    (checkout / "bin/docker").write_text("#!/bin/sh\ncat\n")
    assert before not in make(checkout, "image").stdout
    assert before in make(checkout, "image", "BY_TAG=1").stdout


def test_compose_never_pulls_an_image_of_our_name() -> None:
    services = parsed("deploy/compose.yaml")["services"].values()
    ours = [service for service in services if service["image"] == "vap-orchestrator"]
    assert [service["pull_policy"] for service in ours] == ["never"] * 3


def test_dependabot_ignores_versions_that_pyproject_excludes() -> None:
    updates = parsed(".github/dependabot.yml")["updates"]
    (pip,) = [update for update in updates if update["package-ecosystem"] == "pip"]
    ignored = {one["dependency-name"]: SpecifierSet(",".join(one["versions"])) for one in pip["ignore"]}
    for wanted in map(Requirement, RUNTIME):
        shut_out = [bound.version for bound in wanted.specifier if bound.operator == "<"]
        assert not shut_out or shut_out[0] in ignored[wanted.name], wanted
