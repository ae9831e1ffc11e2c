"""Jars from Maven Central. Only files with the SHA-256 that a lock file names are used.

A lock's first line says what was resolved. Each other line is a jar: its SHA-256, its coordinates. The
Maven cache is not trusted either: every file is checked at every start (0.1 s for Kafka).
"""

import hashlib
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path

from jgo.maven import Artifact, MavenContext
from rich.console import Console
from rich.progress import Progress

from orchestrator.errors import ServerStartError

log = logging.getLogger("orchestrator.embedded")


def fetch_jars(lock: Path) -> list[Path]:
    """Return the jars of a lock, from the Maven cache or from Maven Central.

    Raises ServerStartError, and names the jar, if one is not what was locked.
    """
    wanted = dict(read_lock(lock))
    maven = MavenContext()
    artifacts = [artifact_of(maven, coordinates) for coordinates in wanted]
    if not all(artifact.cached_path and artifact.cached_path.exists() for artifact in artifacts):
        log.info("download started", extra={"lock": lock.name, "jars": len(wanted)})
    console = Console(stderr=True)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            jars = [_fetch_jar(artifact) for artifact in bar.track(artifacts, description=lock.stem)]
    except (OSError, RuntimeError, ValueError) as error:
        raise ServerStartError(f"the jars of {lock} could not be downloaded: {error}") from error
    for jar, (coordinates, sha256) in zip(jars, wanted.items(), strict=True):
        _check(jar, coordinates, sha256, lock)
    return jars


def read_lock(lock: Path) -> Iterator[tuple[str, str]]:
    """Yield each jar's coordinates, group:artifact:version, and its SHA-256."""
    if not lock.exists():
        raise ServerStartError(
            f"{lock.stem} has no lock, and only jars of a known SHA-256 are run: write what to resolve"
            f" into {lock}, as in the files beside it, and run `make lock-jars`"
        )
    for line in lock.read_text().splitlines()[1:]:
        sha256, coordinates = line.split()
        yield coordinates, sha256


def artifact_of(maven: MavenContext, coordinates: str) -> Artifact:
    """Return the jar of these coordinates."""
    group, name, version = coordinates.split(":")
    return maven.project(group, name).at_version(version).artifact()


def _fetch_jar(artifact: Artifact) -> Path:
    """Return the artifact's file; an incomplete one is downloaded again."""
    jar = artifact.resolve()
    if not zipfile.is_zipfile(jar):
        jar.unlink()
        jar = artifact.resolve()
    return jar


def _check(jar: Path, coordinates: str, sha256: str, lock: Path) -> None:
    found = hashlib.sha256(jar.read_bytes()).hexdigest()
    if found != sha256:
        raise ServerStartError(
            f"{jar} is not the {coordinates} of {lock}: its SHA-256 is {found}, not {sha256}."
            " Delete the file, and it is downloaded again; if that is the same one, do not use it"
        )
