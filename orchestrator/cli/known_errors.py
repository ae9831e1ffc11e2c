"""Errors that an operator can put right: they end a command with one line instead of a traceback.

Imports the clients of both servers, so it is imported itself only once a command has failed.
"""

import psycopg
from confluent_kafka import KafkaException

from orchestrator.cli.exit_codes import CHECK_FAILED, UNREACHABLE, USAGE
from orchestrator.errors import NotRepaired, ServerStartError
from orchestrator.kafka.topics import NO_ANSWER, TopicMissing
from outbox import DatabaseNotReady, InDoubt, OwnershipLost, error_text
from outbox.admin import LaneBusy


def explain_error(error: Exception) -> tuple[int, str] | None:
    """Return the exit code and the line to print; None for an error that is a bug."""
    match error:
        case ModuleNotFoundError():  # of the optional extra
            return USAGE, str(error)
        case ServerStartError():
            return UNREACHABLE, str(error)
        case DatabaseNotReady() | TopicMissing() | NotRepaired() | LaneBusy() | OwnershipLost():
            return CHECK_FAILED, str(error)
        case KafkaException() | InDoubt():
            return UNREACHABLE if is_unreachable(error) else CHECK_FAILED, error_text(error)
        case psycopg.OperationalError():
            return UNREACHABLE, error_text(error)
        case psycopg.Error():
            return CHECK_FAILED, error_text(error)
        case _:
            return None


def is_unreachable(error: Exception) -> bool:
    """Say whether an error means that Kafka gave no answer; a rejected password, too, is an answer."""
    if isinstance(error, InDoubt):
        return True
    return isinstance(error, KafkaException) and error.args[0].code() in NO_ANSWER
