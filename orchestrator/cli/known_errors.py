"""Errors that an operator can put right: they end a command with one line instead of a traceback.

Imports the clients of both servers, so it is imported itself only once a command has failed.
"""

import psycopg
from confluent_kafka import KafkaException

from orchestrator.cli.exit_codes import CHECK_FAILED, UNREACHABLE, USAGE
from orchestrator.errors import NotRepaired, ServerStartError
from orchestrator.kafka.topics import NO_ANSWER, TopicMissing
from orchestrator.observability.advice import next_step
from outbox import DatabaseNotReady, InDoubt, OwnershipLost, error_text, is_server_away
from outbox.admin import LaneBusy


def explain_error(error: Exception) -> tuple[int, *tuple[str, ...]] | None:
    """Return the exit code and the lines to print; None for an error that is a bug."""
    match error:
        case ModuleNotFoundError():  # of the optional extra
            return USAGE, str(error)
        case ServerStartError():
            return UNREACHABLE, *str(error).splitlines()  # with the end of the server's log
        case DatabaseNotReady() | TopicMissing() | NotRepaired() | LaneBusy() | OwnershipLost():
            return CHECK_FAILED, str(error)
        case KafkaException() | InDoubt() | psycopg.Error():
            code = UNREACHABLE if is_unreachable(error) else CHECK_FAILED
            text = error_text(error)
            return code, ": ".join(filter(None, (text, next_step(text))))
        case _:
            return None


def is_unreachable(error: Exception) -> bool:
    """Say whether a server gave no answer; that it rejects a password, too, is an answer."""
    if isinstance(error, InDoubt):
        return True
    if isinstance(error, psycopg.Error):
        return is_server_away(error)
    return isinstance(error, KafkaException) and error.args[0].code() in NO_ANSWER
