"""No secret appears anywhere but in the tables and the topics."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import cast
from urllib.error import HTTPError
from urllib.request import urlopen
from uuid import uuid4

import psycopg
import pytest
from confluent_kafka import Message as Record
from psycopg.conninfo import make_conninfo

from orchestrator.embedded import Servers
from testkit.empty_installation import bare_system, run_command
from testkit.eventually import eventually
from testkit.system import Running, System

_numbers = count(1)


def secret() -> str:
    """Return one more planted secret; all match one pattern, each has its number."""
    return f"S3CRET{next(_numbers):03}"


FOUND = re.compile("S3CRET[0-9]*")


@contextmanager
def new_login(servers: Servers) -> Iterator[dict[str, str]]:
    """Make a role with a planted password, for servers that ask for one; give what logs it in."""
    login = {"user": f"login_{uuid4().hex[:12]}", "password": secret()}
    with psycopg.connect(servers.database_url, autocommit=True) as admin:
        new = "CREATE ROLE {user} SUPERUSER LOGIN PASSWORD '{password}'"
        admin.execute(new.format(**login).encode())
        yield login
        admin.execute("DROP ROLE {user}".format(**login).encode())


@pytest.fixture
def bare(servers: Servers, tmp_path: Path) -> Iterator[System]:
    with new_login(servers) as login, bare_system(servers, tmp_path) as system:
        planted = {
            "DATABASE_URL": make_conninfo(system.environ["DATABASE_URL"], **login),
            "KAFKA_CONFIG_SASL_PASSWORD": secret(),  # unused without SASL, and there all the same
            "LOG_LEVEL": "DEBUG",
            "MAX_MESSAGE_BYTES": "4096",
        }
        yield System(system.environ | planted, tmp_path, system._running)


def command(url: str, **fields: object) -> bytes:
    return json.dumps({"scenario_uuid": str(uuid4()), "camera_url": url} | fields).encode()


def headers_of(record: Record) -> dict[str, bytes]:
    return cast("dict[str, bytes]", dict(record.headers() or ()))


def good() -> list[bytes]:
    """Commands that are accepted, with secrets wherever a URL has room for one."""
    return [
        command(f"rtsp://{secret()}:{secret()}@camera/1"),
        command(f"rtsps://user:p@{secret()}/with/slashes@camera/2"),
        command(f"https://camera/3?token={secret()}&password={secret()}"),
        command(f"http://camera/4#{secret()}"),
        command(f"rtsp://user:quo'te\"{secret()}@camera/5"),
        command(
            f"rtsp://the user:{secret()} {secret()}@\u043a\u0430\u043c\u0435\u0440\u0430/{secret()}"
        ),
        command(f"rtmp://{secret()}:{secret()}@camera/live"),
        command(f"srt://camera:9000?passphrase={secret()} {secret()}&streamid={secret()}"),
        command(f"onvif://{secret()}:{secret()}@camera/"),
        command(f"udp://{secret()}@239.0.0.1:1234"),
        command(f"file:///data/{secret()} {secret()}.mp4"),
        command(f"v4l2:///dev/{secret()}"),
        command(f"/dev/{secret()}"),
        command("rtsp://camera/6", password=secret(), nested={"token": [secret()]}),
    ]


BAD: dict[str, Callable[[], list[bytes]]] = {
    "not_json": lambda: [b"rtsp://user:%s@camera" % secret().encode(), command(secret())[:-1]],
    "wrong_fields": lambda: [
        command(f"rtsp://user:{secret()}@camera", scenario_uuid=secret()),
        json.dumps({"scenario_uuid": str(uuid4()), "camera_url": [secret()]}).encode(),
        json.dumps(secret()).encode(),
    ],
    "url_characters": lambda: [command(f"rtsp://user:{secret()}\x00@camera")],
    "url_scheme": lambda: [command(f"ftp://user:{secret()}@camera"), command(f"{secret()}@camera")],
    "too_long": lambda: [command(f"rtsp://user:{secret()}@camera/{'x' * 5000}")],
}


def answers(process: Running) -> str:
    """Return all answers of the HTTP server."""
    said = []
    for path in ("metrics", "readyz", "livez"):
        try:
            with urlopen(f"http://127.0.0.1:{process.port()}/{path}", timeout=5) as answer:
                said.append(answer.read().decode())
        except HTTPError as error:
            with error:
                said.append(error.read().decode())
    return "\n".join(said)


def check(*texts: str) -> None:
    """See that there is text, and no planted secret in it."""
    for text in texts:
        assert text
        assert not FOUND.findall(text)


def test_secrets_of_valid_and_invalid_commands_are_in_no_log_metric_or_header(bare: System) -> None:
    bad = {reason: make() for reason, make in BAD.items()}
    made = run_command(bare.environ, "setup")
    sent = run_command(bare.environ, "submit", f"rtsp://user:{secret()}@camera/7", "--count", "2")
    consumer, relay = bare.start("consumer"), bare.start("relay")
    accepted = good()
    bare.produce(*accepted, key=b"key")
    for values in bad.values():
        bare.produce(*values)
    bare.produce(None, headers=[("authorization", secret().encode())])
    letters = sum(map(len, bad.values())) + 1
    eventually(lambda: len(bare.read(bare.settings.dead_letter_topic)) == letters, 30)
    bare.check_exactly_once(len(accepted) + 2)

    reasons = set()
    for record in bare.read(bare.settings.dead_letter_topic):
        headers = headers_of(record)
        headers.pop("authorization", None)  # the record's own travels on, byte for byte
        reasons.add(headers["dlq-reason"].decode())
        check(*(f"{name}={value!r}" for name, value in headers.items()))
    assert reasons == {*BAD, "empty"}
    check(answers(consumer), answers(relay))
    consumer.stop()
    relay.stop()
    check(consumer.log.read_text(), relay.log.read_text(), made.stderr)
    assert made.stdout == ""
    check(sent.stdout)
    check(sent.stdout + sent.stderr)
    assert next(_numbers) > 20


CONSTRAINT = "ALTER TABLE workers ADD CONSTRAINT no_more CHECK (starts_with(camera_url, 'x'))"
UNIQUE = "ALTER TABLE workers ADD CONSTRAINT one_camera UNIQUE (camera_url)"


@pytest.mark.parametrize(
    ("ddl", "sqlstate"),
    [pytest.param(CONSTRAINT, "23514", id="CHECK"), pytest.param(UNIQUE, "23505", id="UNIQUE")],
)
def test_the_error_of_an_insert_quotes_no_row(bare: System, ddl: str, sqlstate: str) -> None:
    assert run_command(bare.environ, "setup").returncode == 0
    bare.query(ddl)
    consumer = bare.start("consumer")
    bare.produce(*2 * [command(f"rtsp://user:{secret()}@camera/1")])
    eventually(lambda: consumer.logged(f"({sqlstate})"))
    said = answers(consumer)
    assert sqlstate in said  # /readyz tells it, too
    consumer.stop()
    check(said, consumer.log.read_text())
    assert not consumer.logged("DETAIL")


@pytest.mark.parametrize("name", ["consumer", "relay"])
@pytest.mark.parametrize("form", ["url", "keywords"])
def test_an_unreachable_database_is_reported_without_its_password(
    bare: System, name: str, form: str
) -> None:
    password = rf"it\'s {secret()}" if form == "keywords" else secret()
    wrong = {
        "url": f"postgresql://user:{password}@no-such-host.invalid:1/db?sslmode=disable",
        "keywords": f"host=127.0.0.1 port=1 user=user password='{password}' dbname=db",
    }
    process = bare.start(name, DATABASE_URL=wrong[form])
    eventually(lambda: process.logged(f"{name} waiting"))
    said = answers(process)
    process.stop()
    check(said, process.log.read_text())
