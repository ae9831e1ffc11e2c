"""`healthcheck`: is the process in this container alive, or what does it wait for?

A container asks every few seconds, so this imports little: no client of Postgres or Kafka.
"""

import argparse
import json
import os
from http.client import HTTPConnection, HTTPException
from typing import NamedTuple

from orchestrator.cli.exit_codes import CHECK_FAILED, OK
from orchestrator.config.environment import read_metrics_address
from orchestrator.observability.masking import printable

ANSWER_S = 3.0  # below the usual time-out of a container's health check


class HealthAnswer(NamedTuple):
    """What a process answered, or why it did not. ok: with status 200."""

    ok: bool
    text: str


def check_health(options: argparse.Namespace) -> int:
    """Ask the process, or both under `run`, and print the answers. Raises SettingsError."""
    path = "/readyz" if options.ready else "/livez"
    host, port = read_metrics_address(os.environ)
    no_process = HealthAnswer(False, f"no process listens on port {port}: METRICS_PORT?")
    answers = [ask_process(host, port, path) or no_process]
    if (beside := port_beside(answers[0].text)) and (answer := ask_process(host, beside, path)):
        answers.append(answer)
    for answer in answers:  # perhaps another program's
        print(printable(answer.text.rstrip("\n")))
    return OK if all(answer.ok for answer in answers) else CHECK_FAILED


def port_beside(answer: str) -> int | None:
    """Return the port of the relay that `run` started beside this process. Others are not asked."""
    try:
        return int(json.loads(answer)["beside"])
    except (ValueError, TypeError, KeyError):
        return None


def ask_process(host: str, port: int, path: str) -> HealthAnswer | None:
    """Ask one process; None if the connection is refused."""
    host = "127.0.0.1" if host in {"::", "0.0.0.0"} else host  # noqa: S104  # every address: this one, too
    connection = HTTPConnection(host, port, timeout=ANSWER_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return HealthAnswer(response.status == 200, response.read().decode(errors="replace"))
    except ConnectionRefusedError:
        return None
    except (OSError, HTTPException) as error:
        return HealthAnswer(False, f"no answer on port {port}: {type(error).__name__}")
    finally:
        connection.close()
