"""An installation before its setup: an empty database and no topics; and running a command."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch
from uuid import uuid4

import psutil  # type: ignore[import-untyped]
import psycopg

from orchestrator.cli.main import run
from orchestrator.embedded import Servers
from testkit.system import INHERITED, System, delete_topics, environ_of

COMMAND_S = 60  # for a command that ends by itself


@contextmanager
def bare_system(servers: Servers, directory: Path) -> Iterator[System]:
    """Create an empty database, with names of topics that do not exist; delete all of it afterwards."""
    name = uuid4().hex[:12]

    def administer(statement: str) -> None:  # in a session of its own: the server may be restarted
        with psycopg.connect(servers.database_url, autocommit=True) as admin:
            admin.execute(statement.encode())

    administer(f"CREATE DATABASE test_{name} ENCODING 'UTF8' TEMPLATE template0")
    system = System(environ_of(servers, name), directory)
    try:
        yield system
    finally:
        end_all(system)
        administer(f"DROP DATABASE test_{name} WITH (FORCE)")
        delete_topics(system)


def end_all(system: System) -> None:
    """End all processes, also the children of a `run` that a failed test left running."""
    for running in system._running:
        if running.process.poll() is None:
            children = psutil.Process(running.process.pid).children(recursive=True)
            running.kill()
            for child in children:
                child.kill()


def run_command(
    environ: Mapping[str, str], *command: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `orchestrator COMMAND` to its end. An empty variable counts as not set."""
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *command],
        env={**INHERITED, "PYTHONPATH": path, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
        cwd=cwd,
    )


def run_in_process(environ: Mapping[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """Do the same in this process, which is faster; the logs are then as they were before."""
    out, err = StringIO(), StringIO()
    client = logging.getLogger("librdkafka")
    handlers, filters = logging.root.handlers[:], client.filters[:]
    levels = {logger: logger.level for logger in (logging.root, client)}
    with (
        patch.dict(os.environ, {**INHERITED, **environ}, clear=True),
        Path(os.devnull).open() as nothing,
        patch.object(sys, "stdin", nothing),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            code = run(command)
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            logging.root.handlers[:], client.filters[:] = handlers, filters
            for logger, level in levels.items():
                logger.setLevel(level)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())
