"""What a command starts with: the settings, and a session on a database that this release can use."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

from orchestrator.cli.addresses import with_addresses
from orchestrator.config.environment import Environment, read_logging
from orchestrator.config.settings import Settings, read_settings
from orchestrator.kafka.topics import check_access
from orchestrator.observability import logs
from orchestrator.runtime.database import open_session
from orchestrator.runtime.migrations import check_current
from outbox import Connection


def load_settings() -> Settings:
    """Read the settings of a process, and set up the logs as they say. Raises SettingsError."""
    level, form = read_logging(Environment(os.environ))  # first: reading settings may log a warning
    logs.configure_logging(level or "INFO", form)
    return read_settings(os.environ)


def load_settings_quietly() -> Settings:
    """Read the settings of an operator's command, or those of the embedded servers of `run`.

    It logs warnings alone, and nothing of Kafka's client: what it cannot do, its error says.
    """
    _, form = read_logging(Environment(os.environ))
    logs.configure_logging("WARNING", form, client_level="CRITICAL")
    return read_settings(with_addresses(os.environ))


@contextmanager
def operator_session(
    name: str, kafka: bool = True, statement_timeout_s: float = 0
) -> Iterator[tuple[Settings, Connection]]:
    """Give the settings and a session on a database whose schema is this release's.

    kafka: the command needs the brokers, too: if they refuse us, fail at once with their reason.
    """
    settings = load_settings_quietly()
    session = open_session(settings, f"orchestrator {name}", statement_timeout_s=statement_timeout_s)
    with closing(session) as conn:
        check_current(conn)
        if kafka:
            check_access(settings.kafka)
        yield settings, conn
