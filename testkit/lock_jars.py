"""`make lock-jars`: resolve the first line of each lock, and write the jars' SHA-256 below it.

With M2_REPO as an empty directory all files are downloaded: no file of a cache is trusted.
"""

import hashlib
import sys
from pathlib import Path

import jgo


def write_lock(lock: Path) -> None:
    """Write a lock again. Raises ValueError for what is no plain jar."""
    header = lock.read_text().splitlines()[0]
    lines = [header]
    for artifact in jgo.resolve(header.removeprefix("# ")):
        if artifact.classifier or artifact.packaging != "jar":
            raise ValueError(f"{lock}: {artifact} is not a plain jar")
        sha256 = hashlib.sha256(artifact.resolve().read_bytes()).hexdigest()
        lines.append(f"{sha256}  {artifact.groupId}:{artifact.artifactId}:{artifact.version}")
    lock.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    for each in sys.argv[1:]:
        write_lock(Path(each))
