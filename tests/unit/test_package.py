"""The library as a package of its own, and inside the service's."""

import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "outbox"


def build(directory: Path, target: str, into: Path) -> Path:
    """Build a wheel or an sdist; return the file."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(into)]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)
    (built,) = into.iterdir()
    return built


def contents(wheel: Path) -> dict[str, bytes]:
    """Return the files of the library in a wheel."""
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.startswith("outbox/")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(LIBRARY, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_has_all_that_the_library_is(wheel: Path) -> None:
    ours = ("pyproject.toml", "LICENSE")
    files = [file for file in LIBRARY.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    wanted = {str(file.relative_to(ROOT)): file.read_bytes() for file in files if file.name not in ours}
    assert {"outbox/py.typed", "outbox/README.md", "outbox/schema/002_outbox.sql"} <= wanted.keys()
    assert contents(wheel) == wanted


def test_the_wheel_of_the_service_has_the_same(wheel: Path, tmp_path: Path) -> None:
    assert contents(build(ROOT, "wheel", tmp_path)) == contents(wheel)


def test_a_wheel_from_the_sdist_is_the_same(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(LIBRARY, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("vap_outbox-*")
    assert contents(build(source, "wheel", tmp_path / "wheel")) == contents(wheel)
    assert (source / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_library_asks_for_what_the_service_does() -> None:
    service, library = (
        tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in (ROOT, LIBRARY)
    )
    assert library["requires-python"] == service["requires-python"]
    extras = library["optional-dependencies"]
    wanted = [*library["dependencies"], *extras["binary"]]
    assert set(wanted) - {"psycopg>=3.2.4"} <= set(service["dependencies"])
    tested = service["optional-dependencies"]["test"]
    assert {name for extra in ("asyncpg", "django", "sqlalchemy") for name in extras[extra]} <= {
        *tested
    }
