"""`healthcheck`: is the process in this container alive, or what does it wait for?

A container asks every few seconds, so this imports little: no client of Postgres or Kafka.
"""

import sys
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from typing import NamedTuple

from orchestrator.config.environment import SettingsError, read_metrics_address

OK, CHECK_FAILED, USAGE = 0, 1, 2
ANSWER_S = 3.0  # below the usual time-out of a container's health check


class Answer(NamedTuple):
    """What a process said, or why it did not. good: status 200."""

    good: bool
    text: str


def check_health(environ: Mapping[str, str], path: str = "/livez") -> int:
    """Ask the process, or both under `run`; print what they say, and return the exit code."""
    try:
        host, port = read_metrics_address(environ)
    except SettingsError as error:
        sys.stderr.write(f"orchestrator: settings:\n{error}\n")
        return USAGE
    here = ask(host, port, path) or Answer(False, f"nobody listens on port {port}: METRICS_PORT?\n")
    beside = ask(host, port + 1, path) or Answer(True, "")  # under `run` the relay; otherwise nobody
    sys.stdout.write(here.text + beside.text)
    return OK if here.good and beside.good else CHECK_FAILED


def ask(host: str, port: int, path: str) -> Answer | None:
    """Ask one process; None if nobody listens."""
    host = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104  # every address: this one, too
    connection = HTTPConnection(host, port, timeout=ANSWER_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return Answer(response.status == 200, response.read().decode())
    except ConnectionRefusedError:
        return None
    except (OSError, HTTPException) as error:
        return Answer(False, f"no answer on port {port}: {type(error).__name__}\n")
    finally:
        connection.close()
