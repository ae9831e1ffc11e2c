"""What the operators' commands share: a session on the database, and printing without secrets."""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Protocol

from orchestrator.cli.terminal import settings_for_a_person
from orchestrator.config.settings import Settings
from orchestrator.kafka.topics import check_access
from orchestrator.observability.logs import mask, masked
from orchestrator.runtime.migrations import check_current
from outbox import Connection, connect


class Add(Protocol):
    """Adds a command to the command line and returns its parser, to be given arguments."""

    def __call__(
        self, name: str, command: Callable[[argparse.Namespace], int], example: str
    ) -> argparse.ArgumentParser:
        """Add it; example: how a person would call it."""
        ...


@contextmanager
def on_duty(name: str, kafka: bool = True) -> Iterator[tuple[Settings, Connection]]:
    """Give the settings and a session on a database that is as this release needs it.

    kafka: whether the command asks the brokers anything: then it says first why they refuse.
    """
    settings = settings_for_a_person()
    with closing(connect(settings.database_url, f"orchestrator {name}")) as conn:
        check_current(conn)
        if kafka:
            check_access(settings.kafka)
        yield settings, conn


def print_json(fields: object) -> None:
    """Print for a script: one JSON value, with every text in it masked."""
    print(json.dumps(masked(fields), indent=2), flush=True)


def print_lines(lines: Iterable[str]) -> None:
    """Print for a person, each line masked."""
    print("\n".join(map(mask, lines)), flush=True)
