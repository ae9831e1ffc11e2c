"""Follows the platform team's README line by line, from a fresh clone, on real servers.

    python -m tests.readme             with nothing but Python
    python -m tests.readme docker      with `docker build` and `docker run`

What is printed is the transcript: a line with `+` is typed. The exit code is 1 if one of them fails.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from testkit.servers import BACKENDS

HERE = Path(__file__).parent
# The name of the clone, and the directory from which it is started.
PLACES = {"python": {"orchestrator": ".", "clone": "orchestrator"}, "docker": {"orchestrator": "."}}
SERVERS = {"python": "embedded", "docker": "docker"}


def follow(way: str, name: str, inside: str) -> bool:
    """Run a way's script in an empty directory, on empty servers; return whether all went well."""
    venv = str(Path(sys.executable).parent)
    path = [one for one in os.environ["PATH"].split(os.pathsep) if one != venv]
    with BACKENDS[SERVERS[way]]() as servers, TemporaryDirectory() as empty:
        own = {
            "DATABASE_URL": servers.database_url,
            "KAFKA_BOOTSTRAP_SERVERS": servers.bootstrap_servers,
            "CHECKOUT": str(HERE.parent.parent),
            "NAME": name,
            "INSIDE": inside,
            "PATH": os.pathsep.join(path),
            "METRICS_PORT": "0",
        }
        done = subprocess.run(["/bin/bash", HERE / f"{way}.sh"], cwd=empty, env={**os.environ, **own})
    return done.returncode == 0


def main() -> int:
    """Follow one of the ways, in each of its places."""
    way = sys.argv[1] if len(sys.argv) > 1 else "python"
    passed = all(follow(way, name, inside) for name, inside in PLACES[way].items())
    print("passed" if passed else "FAILED", flush=True)
    return 1 - passed


if __name__ == "__main__":
    sys.exit(main())
