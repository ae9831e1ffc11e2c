"""Migrations run once each, all or nothing, and never touch what is the platform's."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from orchestrator.embedded import Servers
from orchestrator.runtime import migrations
from orchestrator.runtime.migrations import SchemaBehind, SchemaRefused, check_current
from orchestrator.runtime.setup import migrate_database, set_up
from outbox.admin import Migration
from testkit.empty_installation import bare_system, run_command
from testkit.eventually import eventually
from testkit.system import System

FILES = [
    "001_workers.sql",
    "002_outbox.sql",
    "003_consumed_offsets.sql",
    "004_repairs.sql",
    "005_dead_letters_handled.sql",
    "006_retry_once.sql",
    "007_transactional_lane.sql",
    "008_server_run.sql",
    "009_words.sql",
    "010_words.sql",
    "011_deferred.sql",
    "012_log_decides.sql",
    "013_decided_once.sql",
    "014_sendable_rows.sql",
]
NEXT = len(FILES) + 1

# As the platform makes it.
PLATFORMS_OWN = """
    CREATE TABLE workers (
        id SERIAL PRIMARY KEY,
        worker_id UUID UNIQUE NOT NULL,
        scenario_uuid UUID NOT NULL,
        camera_url TEXT NOT NULL,
        status VARCHAR(50) NOT NULL DEFAULT 'pending',
        process_pid INTEGER,
        created_at TIMESTAMP DEFAULT NOW(),
        updated_at TIMESTAMP DEFAULT NOW()
    )
"""
PLATFORMS_ROWS = """
    INSERT INTO workers (worker_id, scenario_uuid, camera_url, status, process_pid)
    VALUES (gen_random_uuid(), gen_random_uuid(), 'rtsp://camera/1', 'running', 17),
           (gen_random_uuid(), gen_random_uuid(), 'rtsp://camera/2', 'failed', NULL)
"""
LOOK_AT_WORKERS = """
    SELECT relfilenode, reloptions::text,
           (SELECT array_agg(attname || format_type(atttypid, atttypmod) || attnotnull ORDER BY attnum)
              FROM pg_attribute WHERE attrelid = pg_class.oid AND attnum > 0),
           (SELECT array_agg(pg_get_indexdef(indexrelid) ORDER BY indexrelid)
              FROM pg_index WHERE indrelid = pg_class.oid),
           (SELECT array_agg(workers::text ORDER BY id) FROM workers)
      FROM pg_class
     WHERE oid = 'workers'::regclass
"""


@pytest.fixture
def bare(servers: Servers, tmp_path: Path) -> Iterator[System]:
    with bare_system(servers, tmp_path) as system:
        yield system


def tables(system: System) -> list[str]:
    return [
        name
        for (name,) in system.query(
            "SELECT relname FROM pg_class WHERE relkind = 'r'"
            " AND relnamespace = 'public'::regnamespace ORDER BY relname"
        )
    ]


def history(system: System) -> list[tuple[Any, ...]]:
    return system.query("SELECT * FROM orchestrator_migrations ORDER BY version")


def migrate(system: System, lanes: int = 4) -> list[str]:
    with closing(system.connect()) as conn:
        return [migration.name for migration in migrations.migrate(conn, lanes)]


def add_migration(monkeypatch: pytest.MonkeyPatch, *added: Migration) -> None:
    every = [*migrations.read_migrations(), *added]
    monkeypatch.setattr(migrations, "read_migrations", lambda: every)


def test_an_empty_database_gets_every_table(bare: System) -> None:
    assert migrate(bare) == FILES
    assert tables(bare) == [
        "consumed_offsets",
        "dead_letters_handled",
        "orchestrator_migrations",
        "outbox",
        "outbox_deferred",
        "outbox_identity",
        "outbox_lane",
        "outbox_parked",
        "repairs",
        "workers",
    ]
    assert [row[0] for row in history(bare)] == list(range(1, NEXT))


def test_a_second_run_does_nothing(bare: System) -> None:
    migrate(bare)
    before = history(bare), bare.query("SELECT * FROM outbox_identity")
    assert migrate(bare) == []
    assert (history(bare), bare.query("SELECT * FROM outbox_identity")) == before


def test_check_exits_with_1_if_a_migration_is_pending_and_changes_nothing(bare: System) -> None:
    behind = run_command(bare.environ, "migrate", "--check")
    assert behind.returncode == 1
    assert behind.stdout.splitlines() == [f"pending: {name}" for name in FILES]
    assert tables(bare) == []
    migrate(bare)
    current = run_command(bare.environ, "migrate", "--check")
    assert (current.returncode, current.stdout) == (0, "")


def test_sql_prints_every_file_and_needs_no_settings() -> None:
    printed = run_command({"DATABASE_URL": "", "KAFKA_BOOTSTRAP_SERVERS": ""}, "migrate", "--sql")
    assert printed.returncode == 0
    for migration in migrations.read_migrations():
        assert f"-- {migration.name}\n" in printed.stdout
        assert migration.sql in printed.stdout


@pytest.mark.parametrize(("before", "lanes"), [("", 4), ("SET outbox.lanes = 7;", 7)])
def test_the_printed_sql_can_be_run_by_hand(bare: System, before: str, lanes: int) -> None:
    printed = run_command({}, "migrate", "--sql").stdout
    with closing(psycopg.connect(bare.settings.database_url, autocommit=True)) as conn:
        conn.execute((before + printed).encode())
    assert bare.query("SELECT count(*) FROM outbox_lane") == [(lanes,)]
    assert migrate(bare) == []
    with closing(bare.connect()) as conn:
        check_current(conn)


@pytest.mark.parametrize("schema", ["public", "platform"])
@pytest.mark.parametrize("path", ["ours, public", "ours, platform"])
def test_the_printed_sql_makes_no_second_table_workers(bare: System, schema: str, path: str) -> None:
    printed = run_command({}, "migrate", "--sql").stdout
    url = make_conninfo(bare.settings.database_url, options=f"-c search_path={path.replace(' ', '')}")
    with closing(psycopg.connect(url, autocommit=True)) as conn:
        conn.execute("CREATE SCHEMA ours; CREATE SCHEMA platform")
        conn.execute(f"SET search_path = {schema}; {PLATFORMS_OWN}; RESET search_path".encode())
        if is_shown := schema in path:
            conn.execute(printed.encode())
        else:
            with pytest.raises(psycopg.errors.RaiseException, match="search_path does not show"):
                conn.execute(printed.encode())
            conn.execute("ROLLBACK")
        found = conn.execute(
            "SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'workers'"
        ).fetchall()
        assert found == [(schema,)]
        assert bool(conn.execute("SELECT to_regclass('outbox')").fetchall()[0][0]) == is_shown


def test_the_platforms_own_workers_table_is_adopted_untouched_with_its_rows(bare: System) -> None:
    bare.query(PLATFORMS_OWN)
    bare.query(PLATFORMS_ROWS)
    before = bare.query(LOOK_AT_WORKERS)
    assert migrate(bare) == FILES
    assert bare.query(LOOK_AT_WORKERS) == before
    bare.accept(1)
    assert bare.query("SELECT id, status FROM workers WHERE id > 2") == [(3, "pending")]


def test_the_number_of_lanes_is_not_guessed_where_their_rows_are_gone(bare: System) -> None:
    with closing(psycopg.connect(bare.settings.database_url, autocommit=True)) as conn:
        for migration in migrations.read_migrations():
            if migration.version == 14:
                conn.execute("DELETE FROM outbox_lane")
                with pytest.raises(psycopg.errors.RaiseException, match="restore its rows first"):
                    conn.execute(migration.sql.encode())
                return
            conn.execute(migration.sql.encode())


def test_a_database_newer_than_the_code_is_a_named_error(bare: System) -> None:
    migrate(bare)
    bare.query(
        "INSERT INTO orchestrator_migrations (version, checksum) VALUES (99, 'of a later release')"
    )
    before = history(bare)
    with pytest.raises(SchemaRefused, match=rf"has migration 099, .* none after {NEXT - 1:03}"):
        migrate(bare)
    refused = run_command(bare.environ, "migrate")
    assert refused.returncode == 1
    assert "migration 099" in refused.stderr
    assert history(bare) == before


def test_a_file_changed_after_it_was_applied_is_a_named_error(
    bare: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(bare)
    first, second, *others = migrations.read_migrations()
    changed = [first, second._replace(sql=second.sql + "-- one more word"), *others]
    monkeypatch.setattr(migrations, "read_migrations", lambda: changed)
    with pytest.raises(SchemaRefused, match=r"002_outbox\.sql was changed after it was applied"):
        migrate(bare)


@pytest.mark.parametrize("strange", ["newer", "changed"])
def test_nothing_is_applied_if_a_file_is_wrong(
    bare: System, monkeypatch: pytest.MonkeyPatch, strange: str
) -> None:
    migrate(bare)
    if strange == "newer":
        bare.query("INSERT INTO orchestrator_migrations (version, checksum) VALUES (99, '')")
    else:
        bare.query("UPDATE orchestrator_migrations SET checksum = 'other' WHERE version = 3")
    add_migration(monkeypatch, Migration(NEXT, f"{NEXT:03}_more.sql", "CREATE TABLE more ()"))
    with pytest.raises(SchemaRefused):
        migrate(bare)
    assert "more" not in tables(bare)


WAITING = """
    SELECT count(*)
      FROM pg_locks
     WHERE locktype = 'advisory' AND NOT granted
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def test_two_runners_at_once_both_succeed_and_share_the_work(bare: System) -> None:
    lock = "SELECT pg_advisory_xact_lock(%s)"
    with ThreadPoolExecutor(2) as threads:
        with psycopg.connect(bare.settings.database_url) as conn:
            conn.execute(lock, (migrations.MIGRATION_LOCK,))  # so that both wait for the same moment
            runs = [threads.submit(migrate, bare) for _ in range(2)]
            eventually(lambda: bare.query(WAITING) == [(2,)])
        assert sorted(name for run in runs for name in run.result()) == FILES


def test_a_runner_that_waits_for_another_one_ends_on_sigterm(bare: System) -> None:
    with psycopg.connect(bare.settings.database_url) as conn:
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (migrations.MIGRATION_LOCK,))
        setup = bare.start("setup")
        eventually(lambda: bare.query(WAITING) == [(1,)])
        setup.process.terminate()
        assert setup.process.wait(5) != 0
    assert tables(bare) == []


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("SELECT 1 / 0", id="in the file"),
        pytest.param(
            f"ALTER TABLE orchestrator_migrations ADD CHECK (version <= {NEXT})", id="after the file"
        ),
    ],
)
def test_a_failing_migration_leaves_nothing_of_itself_and_all_of_those_before(
    bare: System, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    good = Migration(NEXT, f"{NEXT:03}_good.sql", "CREATE TABLE good ()")
    bad = Migration(NEXT + 1, f"{NEXT + 1:03}_bad.sql", f"CREATE TABLE bad (); {fault}")
    with monkeypatch.context() as patched:
        add_migration(patched, good, bad)
        with pytest.raises(psycopg.Error):
            migrate(bare)
    assert {"good", "bad"} & set(tables(bare)) == {"good"}
    assert [row[0] for row in history(bare)] == list(range(1, NEXT + 1))
    add_migration(monkeypatch, good, bad._replace(sql="CREATE TABLE bad ()"))
    assert migrate(bare) == [bad.name]  # mended, it runs; nothing was left in its way


def test_lanes_are_seeded_once_and_another_number_later_is_ignored_with_a_warning(
    bare: System, caplog: pytest.LogCaptureFixture
) -> None:
    assert migrate_database(replace(bare.settings, lanes=7)) == 7
    assert migrate_database(replace(bare.settings, lanes=None)) == 7
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert migrate_database(replace(bare.settings, lanes=3)) == 7
    assert "LANES ignored" in caplog.text
    assert bare.query("SELECT lane FROM outbox_lane ORDER BY 1") == [(lane,) for lane in range(7)]


def test_a_schema_behind_or_ahead_of_the_code_is_an_error(bare: System) -> None:
    with closing(bare.connect()) as conn:
        with pytest.raises(SchemaBehind, match=r"001_workers\.sql.*orchestrator setup"):
            check_current(conn)
        migrate(bare)
        check_current(conn)
        bare.query("INSERT INTO orchestrator_migrations (version, checksum) VALUES (%s, '')", NEXT)
        with pytest.raises(SchemaRefused):
            check_current(conn)


def test_setup_and_work_need_no_more_than_the_owner_of_the_database(bare: System) -> None:
    role, database = f"owner_{uuid4().hex[:12]}", bare.query("SELECT current_database()")[0][0]
    bare.query(f"CREATE ROLE {role}")
    bare.query(f"ALTER DATABASE {database} OWNER TO {role}")
    # The session's role from its start: the same permissions as a login, with any pg_hba.conf.
    url = make_conninfo(bare.settings.database_url, options=f"-c role={role}")
    owned = System(bare.environ | {"DATABASE_URL": url}, bare.directory)
    try:
        set_up(owned.settings)
        assert owned.query("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'") == [
            (role,)
        ]
        consumer, relay = owned.start("consumer"), owned.start("relay")
        owned.submit(20)
        owned.check_exactly_once(20)
        consumer.stop()
        relay.stop()
    finally:
        owned.end()
        bare.query(f"DROP OWNED BY {role} CASCADE")
        bare.query(f"ALTER DATABASE {database} OWNER TO CURRENT_USER")
        bare.query(f"DROP ROLE {role}")
