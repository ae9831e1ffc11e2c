"""An error of a server comes with the variable that leads there, and the next step."""

import json
import logging

import pytest

from orchestrator.observability.advice import NEXT_STEPS, AdviceFilter, next_step
from orchestrator.observability.logs import JsonFormatter

# As error_text shows them; seen with librdkafka 2.15, libpq 18 and PostgreSQL 18.
ERRORS = {
    "127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused": "KAFKA_BOOTSTRAP",
    "Failed to get metadata: Local: Broker transport failure (_TRANSPORT)": "KAFKA_BOOTSTRAP_SERVERS",
    "Failed while waiting for controller: Local: Timed out (_TIMED_OUT)": "KAFKA_BOOTSTRAP_SERVERS",
    "kafka:9092/bootstrap: Failed to resolve 'kafka:9092': no name (_RESOLVE)": "advertised.listeners",
    "b:9092/1: SASL authentication error: password (_AUTHENTICATION)": "KAFKA_CONFIG_SASL_PASSWORD",
    "b:9092/1: SSL handshake failed: certificate verify failed (_SSL)": "KAFKA_CONFIG_SSL_",
    "b:9092/bootstrap: Disconnected while requesting ApiVersion: might be caused by incorrect"
    " security.protocol configuration (connecting to a SSL listener?) (_TRANSPORT)": "_PROTOCOL",
    "Broker: Topic authorization failed (TOPIC_AUTHORIZATION_FAILED)": "ACLs",
    "Broker: Group authorization failed (GROUP_AUTHORIZATION_FAILED)": "CONSUMER_GROUP",
    "TopicMissing: topic init_scenario is missing: create it": "INPUT_TOPIC",
    'OperationalError: connection failed: connection to server at "::1", port 1 failed: Connection'
    " refused": "DATABASE_URL",
    "OperationalError: [Errno -2] Name or service not known": "DATABASE_URL",
    'OperationalError: FATAL:  password authentication failed for user "u"': "in DATABASE_URL",
    'OperationalError: FATAL:  database "d" does not exist': "DATABASE_URL",
    'OperationalError: ВАЖНО:  пользователь "u" не прошёл проверку': "user, password and database",
    "ServerSilent: no answer for 10 s": "DATABASE_URL",
    "terminating connection due to administrator command (57P01)": "DATABASE_URL",
    "permission denied for table workers (42501)": "schema/roles.sql",
    "cannot execute UPDATE in a read-only transaction (25006)": "the primary in DATABASE_URL",
    'relation "outbox_lane" does not exist (42P01)': "setup",
}


@pytest.mark.parametrize(("error", "named"), ERRORS.items())
def test_it_names_the_variable_and_the_next_command(error: str, named: str) -> None:
    step = next_step(error)
    assert step
    assert named in step
    assert step.endswith("doctor` checks the rest")


def test_every_advice_is_given_for_an_error_above() -> None:
    given = {next_step(error) for error in ERRORS}
    assert [do for do in NEXT_STEPS.values() if not any(do in (step or "") for step in given)] == []


@pytest.mark.parametrize(
    "error", ["42 rows left out", "duplicate key value (23505)", "the sequence was set back", ""]
)
def test_of_other_errors_it_says_nothing(error: str) -> None:
    assert next_step(error) is None


def shown(**fields: object) -> dict[str, object]:
    """Return a line of the log."""
    record = logging.makeLogRecord({"msg": "waiting", **fields})
    assert AdviceFilter().filter(record)
    found: dict[str, object] = json.loads(JsonFormatter().format(record))
    return found


def test_a_line_with_such_an_error_has_the_advice() -> None:
    assert "DATABASE_URL" in str(shown(error="ServerSilent: no answer for 10 s")["advice"])
    assert "advice" not in shown(error="something else")
    assert shown(error="something else", advice="wait")["advice"] == "wait"
    assert "advice" not in shown(reason="ServerSilent: no answer for 10 s")
