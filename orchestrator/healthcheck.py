"""`healthcheck`: is the process in this container alive?

A container asks every few seconds, so this imports little: no client of Postgres or Kafka.
"""

import sys
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException

from orchestrator.environment import SettingsError, read_metrics_address

OK, CHECK_FAILED, USAGE = 0, 1, 2
ANSWER_S = 3.0  # below the usual time-out of a container's health check


def check_health(environ: Mapping[str, str]) -> int:
    """Ask /livez of the process, or of both under `run`; return the exit code."""
    try:
        host, port = read_metrics_address(environ)
    except SettingsError as error:
        sys.stderr.write(f"orchestrator: settings:\n{error}\n")
        return USAGE
    alive = is_alive(host, port)
    beside = is_alive(host, port + 1)  # under `run` the relay; otherwise nobody answers
    return OK if alive and beside is not False else CHECK_FAILED


def is_alive(host: str, port: int) -> bool | None:
    """Return what /livez says; None if nobody listens."""
    host = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104  # every address: this one, too
    connection = HTTPConnection(host, port, timeout=ANSWER_S)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except ConnectionRefusedError:
        return None
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
