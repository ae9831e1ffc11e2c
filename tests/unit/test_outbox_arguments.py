"""`python -m outbox`: what it is given is named where it is wrong, without a secret in it."""

from pathlib import Path

import pytest

from outbox.__main__ import main

UNREADABLE = [
    "postgresql://user:p%zzsecret@127.0.0.1:1/database",
    "postgresql://user:pa/secret@127.0.0.1:1/database",
    "postgresql://user:pa@secret@127.0.0.1:1/database",
    "host=127.0.0.1 port=1 password=my secret",
]


@pytest.mark.parametrize("url", UNREADABLE)
def test_an_unreadable_address_is_refused_without_its_password(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    assert main(["check"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("DATABASE_URL is no connection string of libpq: ")
    assert "secret" not in printed.out + printed.err


def test_properties_that_cannot_be_used_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = tmp_path / "kafka.properties"
    refused.write_text("acks = 1\n")
    for file, told in (
        (tmp_path / "missing", "No such file or directory"),
        (refused, "acks: must not be set"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["topics", "--kafka", str(file)])
        assert told in capsys.readouterr().err
