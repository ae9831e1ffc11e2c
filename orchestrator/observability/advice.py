"""What to do next about an error of a server, by the variable that leads there.

The log has it beside each error: nothing must be known first, and no other command be run.
"""

import logging
import re

from orchestrator.program import PROGRAM

DOCTOR = f"`{PROGRAM} doctor` checks the rest"

NAME_THE_PRIMARY = (
    "it is a standby, or default_transaction_read_only is on: name the primary in DATABASE_URL"
)

# What a server says in English when it refuses a session, and what to do. libpq keeps its SQLSTATE.
CONNECTION_ADVICE = {
    "password|authentication": "set user and password in DATABASE_URL as Postgres has them",
    "pg_hba.conf": "let pg_hba.conf accept this user, database and address, or set sslmode=require",
    "too many|connection slots": "end other sessions, or raise CONNECTION LIMIT or max_connections",
    "not currently accepting": "run ALTER DATABASE ... ALLOW_CONNECTIONS true, or name another one",
    "permission denied for database": "run GRANT CONNECT ON DATABASE ... TO this role",
    "not permitted to log in": "run ALTER ROLE ... LOGIN, or name another role in DATABASE_URL",
    "database .* does not exist|no such database": (
        "create it with ENCODING 'UTF8', or name another one in DATABASE_URL"
    ),
    "role .* does not exist": "create it, or name another one in DATABASE_URL",
    "startup parameter": "remove it from DATABASE_URL, or add it to ignore_startup_parameters",
    "session is read-only|hot standby": NAME_THE_PRIMARY,
    "SSL|certificate": "see sslmode, sslrootcert and sslcert in DATABASE_URL",
}

# As outbox.error_text writes them: an error of Kafka ends with its name, one of Postgres with its
# SQLSTATE, and psycopg's own with nothing.
NEXT_STEPS = {
    r"_AUTHENTICATION\)|SASL": (
        "check KAFKA_CONFIG_SASL_USERNAME, KAFKA_CONFIG_SASL_PASSWORD, KAFKA_CONFIG_SASL_MECHANISM"
    ),
    r"\(_SSL\)|SSL handshake|security\.protocol": (
        "check KAFKA_CONFIG_SECURITY_PROTOCOL and KAFKA_CONFIG_SSL_*"
    ),
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
    r"\(25006\)$": NAME_THE_PRIMARY,
    r"\(42P01\)$": (
        f"run `{PROGRAM} setup`, or correct DATABASE_URL, DATABASE_SCHEMA or the user's search_path"
    ),
    r"^(?:OperationalError|ConnectionTimeout|ServerSilent): |\((?:08...|57P..)\)$": (
        "check host, port, user, password and database in DATABASE_URL, and that Postgres runs there"
    ),
}


def connection_advice(text: str) -> str | None:
    """Return what to do about the reason for which a server refused a session; None: not known."""
    return next((advice for words, advice in CONNECTION_ADVICE.items() if re.search(words, text)), None)


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
