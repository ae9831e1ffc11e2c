"""Which errors end a command with one line, and the exit code of each."""

import psycopg
import pytest
from confluent_kafka import KafkaError, KafkaException

from orchestrator.cli import main as cli
from orchestrator.cli.exit_codes import CHECK_FAILED, UNREACHABLE, USAGE
from orchestrator.cli.known_errors import explain_error
from orchestrator.cli.terminal import UsageError
from orchestrator.config.environment import SettingsError
from orchestrator.errors import NotRepaired, ServerStartError
from orchestrator.kafka.topics import TopicMissing
from orchestrator.observability import logs
from outbox import DatabaseNotReady, InDoubt, OwnershipLost
from outbox.admin import LaneBusy, TransactionPoolingDetected

AWAY = KafkaException(KafkaError(KafkaError._TRANSPORT, "down"))
REJECTED = KafkaException(KafkaError(KafkaError._AUTHENTICATION))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("no"), USAGE),
        (SettingsError(["LANES must be"]), USAGE),
        (ModuleNotFoundError("needs the extra"), USAGE),
        (ServerStartError("no port"), UNREACHABLE),
        (psycopg.OperationalError("refused"), UNREACHABLE),
        (AWAY, UNREACHABLE),
        (REJECTED, CHECK_FAILED),
        (InDoubt("unknown"), UNREACHABLE),
        (psycopg.ProgrammingError("no table"), CHECK_FAILED),
        (DatabaseNotReady("a migration is missing"), CHECK_FAILED),
        (TransactionPoolingDetected(), CHECK_FAILED),
        (TopicMissing("init_scenario"), CHECK_FAILED),
        (NotRepaired("wait"), CHECK_FAILED),
        (LaneBusy("lane 0"), CHECK_FAILED),
        (OwnershipLost([0]), CHECK_FAILED),
        (KeyboardInterrupt(), CHECK_FAILED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_known_error_is_one_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    fail_with(monkeypatch, error)
    assert cli.run(["setup"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("orchestrator: ")
    assert "Traceback" not in said.err


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let every command raise this error."""

    def fail(_options: object) -> int:
        raise error

    monkeypatch.setattr(cli, "resolve_name", lambda _name: fail)
    monkeypatch.setattr(
        logs, "configure_logging", lambda *_, **__: None
    )  # the handlers of this process stay


def test_an_unknown_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    assert explain_error(ValueError("a bug")) is None
    fail_with(monkeypatch, ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        cli.run(["setup"])
