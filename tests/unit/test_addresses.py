"""The addresses of embedded servers: kept for this user's other terminals, and for no other user."""

import os
from pathlib import Path

import pytest

from orchestrator.cli.addresses import ADDRESSES, DATA, export_addresses, with_addresses
from orchestrator.cli.terminal import UsageError

KEPT = {
    "DATABASE_URL": "postgresql://postgres:planted@127.0.0.1:1/postgres",
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:2",
}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses kept in a directory of the test's own; those of an earlier checkout were open."""
    monkeypatch.chdir(tmp_path)
    for name in KEPT:
        monkeypatch.setenv(name, "unchanged")  # restored afterwards
    DATA.mkdir()
    ADDRESSES.write_text("export KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:1\n")
    ADDRESSES.chmod(0o644)
    export_addresses(KEPT)


@pytest.mark.usefixtures("kept")
def test_they_lead_another_terminal_to_the_servers(capsys: pytest.CaptureFixture[str]) -> None:
    assert with_addresses({}) == KEPT
    for own in ("KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL", "DATABASE_URL_FILE"):
        assert with_addresses({own: "own"}) == {own: "own"}
    assert ADDRESSES.stat().st_mode & 0o777 == 0o600
    assert "planted" not in "".join(capsys.readouterr())


@pytest.mark.usefixtures("kept")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_user_is_told_whose_they_are() -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(UsageError, match=r"the user of the servers:.*addresses"):
            with_addresses({})
    finally:
        os.seteuid(0)


def test_without_any_the_environment_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_addresses({"A": "b"}) == {"A": "b"}
