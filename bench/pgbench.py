"""The SQL half by pgbench: equivalent statements that generate their rows in the server."""

import shutil
import subprocess
import time
from contextlib import closing
from pathlib import Path

from bench.load import fill_outbox
from bench.sql import BATCH, TOPIC_ID
from bench.testbed import Testbed
from orchestrator.consumer import offsets
from orchestrator.embedded.postgres import postgres_binaries
from testkit.system import System


def find_pgbench() -> str | None:
    """Return the path of pgbench, of the embedded PostgreSQL or of this system; None if missing."""
    embedded = postgres_binaries() / "pgbench"
    return str(embedded) if embedded.exists() else shutil.which("pgbench")


def sql_pgbench(testbed: Testbed, rows: int) -> dict[str, float]:
    """Measure equivalent statements run by pgbench, both sides at once."""
    program = find_pgbench()
    if program is None:
        raise FileNotFoundError("pgbench is not installed")
    with testbed.system(lanes=1) as system:
        fill_outbox(system, rows)
        with closing(system.connect()) as conn:
            offsets.insert_position(conn, "in", 0, TOPIC_ID, 0)
        began = time.time()
        sides = [
            start_pgbench(program, system, script, rows // BATCH)
            for script in ("pgbench_insert.sql", "pgbench_relay.sql")
        ]
        for side in sides:
            output, _ = side.communicate()
            if side.returncode:
                raise RuntimeError(output)
        return {"rate": rows / (time.time() - began)}


def start_pgbench(
    program: str, system: System, script: str, transactions: int
) -> subprocess.Popen[str]:
    """Start one side, one client."""
    file = str(Path(__file__).with_name(script))
    return subprocess.Popen(
        [
            program,
            "-n",
            "-M",
            "prepared",
            "-t",
            str(transactions),
            "-f",
            file,
            system.settings.database_url,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
