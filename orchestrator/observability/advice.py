"""What to do next about an error of a server, by the variable that leads there.

The log has it beside each error: nothing must be known first, and no other command be run.
"""

import logging
import re

from orchestrator.config.database_url import connection_advice
from orchestrator.program import PROGRAM

DOCTOR = f"`{PROGRAM} doctor` checks the rest"

# As outbox.error_text writes them: an error of Kafka ends with its name, one of Postgres with its
# SQLSTATE, and psycopg's own with nothing.
NEXT_STEPS = {
    r"_AUTHENTICATION\)|SASL": (
        "check KAFKA_CONFIG_SASL_USERNAME, KAFKA_CONFIG_SASL_PASSWORD, KAFKA_CONFIG_SASL_MECHANISM"
    ),
    r"\(_SSL\)|SSL handshake": "check KAFKA_CONFIG_SECURITY_PROTOCOL and KAFKA_CONFIG_SSL_*",
    r"_AUTHORIZATION_FAILED\)": (
        "give the login of KAFKA_CONFIG_SASL_USERNAME the ACLs of docs/security.md, or correct"
        " INPUT_TOPIC, OUTPUT_TOPIC, DEAD_LETTER_TOPIC, MARKER_TOPIC, CONSUMER_GROUP"
    ),
    r"\btopic .* is missing": "INPUT_TOPIC, OUTPUT_TOPIC, DEAD_LETTER_TOPIC, MARKER_TOPIC name topics",
    r"/(?:bootstrap|\d+): |\((?:_TRANSPORT|_ALL_BROKERS_DOWN|_RESOLVE|_TIMED_OUT)\)$": (
        "check KAFKA_BOOTSTRAP_SERVERS, that the brokers run, and that their advertised.listeners"
        " can be reached from here"
    ),
    r"\(42501\)$": "give the user of DATABASE_URL the permissions of schema/roles.sql",
    r"\(42P01\)$": (
        f"run `{PROGRAM} setup`, or correct DATABASE_URL, DATABASE_SCHEMA or the user's search_path"
    ),
    r"^(?:OperationalError|ConnectionTimeout|ServerSilent): |\((?:08...|57P..)\)$": (
        "check host, port, user and database in DATABASE_URL, and that Postgres runs there"
    ),
}


def next_step(error: str) -> str | None:
    """Return what to do about an error, as `outbox.error_text` shows it; None: it is not known."""
    step = connection_advice(error) if error.startswith("OperationalError: ") else None
    step = step or next((do for sign, do in NEXT_STEPS.items() if re.search(sign, error)), None)
    return step and f"{step}; {DOCTOR}"


class AdviceFilter(logging.Filter):
    """Adds the field `advice` to what has the field `error`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        fields = vars(record)
        if isinstance(error := fields.get("error"), str) and (step := next_step(error)):
            fields["advice"] = step
        return True
