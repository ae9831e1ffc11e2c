"""deploy/compose.yaml: no password that is known, and no process that is a superuser."""

import re
import subprocess
from pathlib import Path
from shutil import copy
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "deploy" / "compose.yaml").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(TEXT)["services"]
LOGINS = {"consumer": "vap_consumer", "relay": "vap_relay", "setup": "vap_owner"}


def test_each_process_has_a_login_of_its_own_and_no_superuser() -> None:
    urls = {name: SERVICES[name]["environment"]["DATABASE_URL"] for name in LOGINS}
    assert {name: re.split("[/:]+", url)[1] for name, url in urls.items()} == LOGINS


def test_no_password_has_a_default() -> None:
    passwords = re.findall(r"PASSWORD[^@\n]*", TEXT)
    assert passwords
    assert not [one for one in passwords if ("${" in one and ":?" not in one) or ":-" in one]
    for url in re.findall(r"postgresql://\S+?:(\S*?)@", TEXT.replace(" ", "")):
        assert url.startswith("${")


def test_make_writes_random_passwords_for_this_user_alone(tmp_path: Path) -> None:
    def made(folder: str) -> dict[str, str]:
        (tmp_path / folder / "deploy").mkdir(parents=True)
        copy(ROOT / "Makefile", tmp_path / folder)
        subprocess.run(
            ["/usr/bin/env", "make", "deploy/.env"],
            cwd=tmp_path / folder,
            check=True,
            capture_output=True,
        )
        file = tmp_path / folder / "deploy" / ".env"
        assert file.stat().st_mode & 0o777 == 0o600
        return dict(line.split("=") for line in file.read_text().splitlines())

    first, second = made("first"), made("second")
    assert first.keys() == set(re.findall(r"\$\{(\w+_PASSWORD)", TEXT))
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in first.values())
    assert len({*first.values(), *second.values()}) == 8
