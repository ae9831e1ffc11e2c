"""`python -m outbox`: the tables, lanes and topic of a service that uses the library alone."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from orchestrator.embedded import Servers
from outbox.__main__ import main
from outbox.migrations import read_migrations, write_script
from testkit.empty_installation import bare_system
from testkit.eventually import eventually
from testkit.system import System


class Answer(NamedTuple):
    """Exit code, stdout and stderr."""

    code: int
    printed: str
    faults: str


Outbox = Callable[..., Answer]


@pytest.fixture
def empty(servers: Servers, tmp_path: Path) -> Iterator[System]:
    with bare_system(servers, tmp_path) as system:
        yield system


@pytest.fixture
def outbox(
    empty: System, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Outbox:
    """Run a command."""
    monkeypatch.setenv("DATABASE_URL", empty.settings.database_url)
    monkeypatch.delenv("DATABASE_SCHEMA", raising=False)

    def run(*words: str) -> Answer:
        return Answer(main(words), *capsys.readouterr())

    return run


LAST = read_migrations()[-1]


def test_tables_and_topic_are_made_and_checked(empty: System, outbox: Outbox, tmp_path: Path) -> None:
    before = outbox("check")
    assert before.code == 1
    assert before.faults.startswith("the database lacks 002_outbox.sql, ")
    created = outbox("migrate", "--lanes", "3")
    assert (created.code, created.printed.count("applied ")) == (0, len(read_migrations()))
    assert outbox("migrate") == (0, "the tables are current, with 3 lanes\n", "")
    other = outbox("migrate", "--lanes", "5")
    assert (other.code, other.printed) == (1, "the tables are current, with 3 lanes\n")
    assert other.faults.startswith("--lanes 5 changes nothing: ")
    assert outbox("check") == (0, "", "")
    lanes = outbox("lanes")
    assert (lanes.code, len(lanes.printed.splitlines())) == (1, 3)
    assert lanes.faults == "no relay is connected\n"

    kafka, topic = tmp_path / "kafka.properties", empty.settings.marker_topic
    kafka.write_text(f"# a comment\nbootstrap.servers = {empty.settings.kafka['bootstrap.servers']}\n")
    options = ("--kafka", str(kafka), "--marker-topic", topic)
    missing = f"topic {topic} is missing: run `python -m outbox topics --create`\n"
    assert outbox("topics", *options) == outbox("check", *options) == (1, "", missing)
    assert outbox("topics", "--create", *options) == (0, f"created {topic}\n", "")
    eventually(lambda: outbox("topics", "--create", *options) == (0, "", ""))
    empty.query("INSERT INTO outbox_lane VALUES (3)")
    empty.query("UPDATE outbox_identity SET lanes = 4")
    assert f"topic {topic} has 3 partitions for 4 lanes" in outbox("check", *options).faults


def test_the_script_makes_what_the_command_makes(empty: System, outbox: Outbox) -> None:
    assert outbox("migrate").code == 0
    refused = outbox("migrate", "--schema", "scripted")
    assert (refused.code, refused.faults.split(",")[0]) == (1, "schema scripted is missing")
    empty.query("CREATE SCHEMA scripted")
    run_script(empty, "scripted", outbox("schema", "--lanes", "7").printed)
    assert outbox("check", "--schema", "scripted") == (0, "", "")
    assert outbox("migrate", "--schema", "scripted").printed.endswith("with 7 lanes\n")
    made = "SELECT table_name, column_name, data_type, column_default FROM information_schema.columns"
    both = [
        empty.query(f"{made} WHERE table_schema = %s ORDER BY 1, ordinal_position", schema)
        for schema in ("public", "scripted")
    ]
    assert both[0]
    assert both[0] == both[1]


def test_tables_of_another_service_in_the_search_path_are_not_taken_for_ours(
    empty: System, outbox: Outbox
) -> None:
    assert outbox("migrate", "--lanes", "3").code == 0
    empty.query("CREATE SCHEMA ours")
    assert outbox("check", "--schema", "ours").faults.startswith("the database lacks 002_outbox.sql, ")
    assert outbox("migrate", "--schema", "ours", "--lanes", "5").printed.endswith("with 5 lanes\n")
    assert outbox("check", "--schema", "ours") == outbox("check") == (0, "", "")
    assert empty.query("SELECT lanes FROM public.outbox_identity") == [(3,)]


def run_script(system: System, schema: str, script: str) -> None:
    with closing(psycopg.connect(system.settings.database_url, autocommit=True)) as conn:
        conn.execute(f"SET search_path = {schema}; BEGIN; {script}; COMMIT".encode())


def test_tables_of_an_older_release_are_upgraded(empty: System, outbox: Outbox) -> None:
    older = write_script(2).partition(f"\n-- {LAST.name}")[0]
    for schema in ("by_command", "by_script"):
        empty.query(f"CREATE SCHEMA {schema}")
        run_script(empty, schema, older)
        assert outbox("check", "--schema", schema).faults.startswith(f"the database lacks {LAST.name}:")
    done = outbox("migrate", "--schema", "by_command")
    assert done.printed == f"applied {LAST.name}\nthe tables are current, with 2 lanes\n"
    previous = read_migrations()[-2].version
    run_script(empty, "by_script", outbox("schema", "--after", str(previous)).printed)
    assert outbox("check", "--schema", "by_script") == (0, "", "")


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("DROP TABLE outbox_migrations", "another tool made it and must upgrade it"),
        ("INSERT INTO outbox_migrations VALUES (99, 'x')", "this code knows none after"),
        ("UPDATE outbox_migrations SET checksum = 'x'", "is not the file that this database had"),
        ("DELETE FROM outbox_lane WHERE lane = 1", "missing: 1"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_changed(
    empty: System, outbox: Outbox, statement: str, told: str
) -> None:
    assert outbox("migrate").code == 0
    empty.query(statement)
    for command in ("check", "migrate"):
        answer = outbox(command)
        assert (answer.code, told in answer.faults) == (1, True)
        assert "applied" not in answer.printed


def test_the_module_runs_as_a_program(empty: System) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "outbox", "check"],
        env={**os.environ, "DATABASE_URL": empty.settings.database_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("the database lacks ")
    assert str(empty.settings.database_url) not in ran.stderr
