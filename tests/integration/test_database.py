"""Setup meets a database as it is: names that are taken, no permission, limits; it refuses by name."""

import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from orchestrator.config.settings import read_settings
from orchestrator.embedded import Servers
from orchestrator.operations.doctor.check import Finding
from orchestrator.operations.doctor.runner import run_all_checks
from orchestrator.runtime import migrations
from orchestrator.runtime.database import SESSIONS_NEEDED, open_session
from orchestrator.runtime.migrations import (
    SchemaRefused,
    check_current,
    migrate,
    read_migrations,
)
from orchestrator.runtime.setup import set_up
from outbox.admin import Migration
from testkit.empty_installation import bare_system, run_command
from testkit.eventually import eventually
from testkit.system import System
from tests.acceptance.test_roles import roles_made
from tests.integration.test_migrations import PLATFORMS_OWN

pytestmark = pytest.mark.fault(68)


@pytest.fixture
def bare(servers: Servers, tmp_path: Path) -> Iterator[System]:
    with bare_system(servers, tmp_path) as system:
        yield system


def relations(system: System) -> list[tuple[Any, ...]]:
    """Return all relations and types that are not Postgres's own."""
    return system.query(
        "SELECT relnamespace::regnamespace::text, relname, relkind, relfilenode FROM pg_class"
        " WHERE relnamespace::regnamespace::text !~ '^pg_|information_schema' ORDER BY 1, 2"
    )


def set_up_again(system: System, **environ: str) -> subprocess.CompletedProcess[str]:
    return run_command(system.environ | environ, "setup")


def check_refused(system: System, *words: str, **environ: str) -> None:
    """See that setup names what is wrong, exits with 1 and changes nothing."""
    before = relations(system)
    refused = set_up_again(system, **environ)
    assert refused.returncode == 1, refused.stderr
    for word in words:
        assert word in refused.stderr
    assert "Traceback" not in refused.stderr
    assert relations(system) == before


@contextmanager
def login(system: System) -> Iterator[str]:
    """Create a login without any permission; yield its name, which is its password, too."""
    role = f"login_{uuid4().hex[:12]}"
    system.query(f"CREATE ROLE {role} LOGIN PASSWORD '{role}'")
    try:
        yield role
    finally:
        system.query(f"DROP OWNED BY {role} CASCADE")
        system.query(f"DROP ROLE {role}")


def url_of(system: System, role: str) -> str:
    return make_conninfo(system.settings.database_url, user=role, password=role)


def look(system: System, url: str) -> dict[str, Finding]:
    """Return what the doctor finds under another login."""
    settings = read_settings(system.environ | {"DATABASE_URL": url})
    return {finding.check: finding for finding in run_all_checks(settings)}


# ---- the table of migrations ----------------------------------------------------------------------

OTHERS = {
    "golang-migrate": ("version BIGINT PRIMARY KEY, dirty BOOLEAN NOT NULL", "17, false"),
    "Rails": ("version VARCHAR PRIMARY KEY", "'20260101000000'"),
    "Ecto": ("version BIGINT PRIMARY KEY, inserted_at TIMESTAMP(0)", "20260101000000, now()"),
    "dbmate": ("version VARCHAR(128) PRIMARY KEY", "'20260101000000'"),
    "one like ours": (
        "version INTEGER PRIMARY KEY, checksum TEXT NOT NULL, applied_at TIMESTAMPTZ NOT NULL",
        "1, 'of another file', now()",
    ),
}


@pytest.mark.parametrize("tool", OTHERS)
def test_another_tools_table_of_migrations_is_left_alone(bare: System, tool: str) -> None:
    columns, row = OTHERS[tool]
    bare.query(f"CREATE TABLE schema_migrations ({columns})")
    bare.query("INSERT INTO schema_migrations VALUES (" + row + ")")  # noqa: S608  # ours
    before = bare.query("SELECT *, tableoid::bigint FROM schema_migrations")
    for _ in range(2):
        set_up(bare.settings)
        assert bare.query("SELECT *, tableoid::bigint FROM schema_migrations") == before
    assert bare.query("SELECT max(version) FROM orchestrator_migrations") == [
        (read_migrations()[-1].version,)
    ]
    with closing(bare.connect()) as conn:
        check_current(conn)


def test_our_table_of_an_earlier_release_gets_its_new_name(
    bare: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(bare.connect()) as conn:
        migrate(conn, 4)
        bare.query("ALTER TABLE orchestrator_migrations RENAME TO schema_migrations")
        before = bare.query("SELECT * FROM schema_migrations")
        check_current(conn)  # the processes work before the next setup, too
        assert migrate(conn, 4) == []
        assert bare.query("SELECT * FROM orchestrator_migrations") == before

        bare.query("ALTER TABLE orchestrator_migrations RENAME TO schema_migrations")
        every = read_migrations()
        more = Migration(every[-1].version + 1, "more.sql", "CREATE TABLE more ()")
        monkeypatch.setattr(migrations, "read_migrations", lambda: [*every, more])
        assert migrate(conn, 4) == [more]
    assert bare.query("SELECT to_regclass('schema_migrations')") == [(None,)]
    assert bare.query("SELECT count(*) FROM orchestrator_migrations") == [(len(every) + 1,)]


# ---- names that are taken -------------------------------------------------------------------------

TAKEN = {
    "table outbox": "CREATE TABLE outbox (id BIGINT PRIMARY KEY, payload JSONB)",
    "table consumed_offsets": "CREATE TABLE consumed_offsets (a INT) PARTITION BY LIST (a)",
    "table orchestrator_migrations": "CREATE TABLE orchestrator_migrations (id INT)",
    "view outbox_lane": "CREATE VIEW outbox_lane AS SELECT 1 AS lane",
    "materialized view outbox_identity": "CREATE MATERIALIZED VIEW outbox_identity AS SELECT 1",
    "sequence repairs": "CREATE SEQUENCE repairs",
    "type outbox_parked": "CREATE TYPE outbox_parked AS ENUM ('parked')",
    "type dead_letters_handled": "CREATE TYPE dead_letters_handled AS (a INT)",
    "index outbox_deferred_next": "CREATE TABLE a (b INT); CREATE INDEX outbox_deferred_next ON a (b)",
}


@pytest.mark.parametrize("taken", TAKEN)
def test_a_name_that_is_taken_is_refused_before_anything_is_created(bare: System, taken: str) -> None:
    bare.query(TAKEN[taken])
    words = f"schema public has {taken}, of another program: set DATABASE_SCHEMA=orchestrator"
    check_refused(bare, words)
    ours = System(bare.environ | {"DATABASE_SCHEMA": "orchestrator"}, bare.directory)
    set_up(ours.settings)
    with closing(ours.connect()) as conn:
        check_current(conn)


def test_a_schema_of_our_own_is_created_and_all_works_there(bare: System) -> None:
    bare.query(TAKEN["table outbox"])
    bare.query("INSERT INTO outbox VALUES (1, '{}')")
    bare.query(PLATFORMS_OWN)
    ours = System(bare.environ | {"DATABASE_SCHEMA": "vap", "LANES": "2"}, bare.directory)
    try:
        assert set_up_again(ours).returncode == 0
        consumer, relay = ours.start("consumer"), ours.start("relay")
        ours.submit(20)
        ours.check_exactly_once(20)
        assert ours.query("SELECT count(*) FROM vap.outbox_lane") == [(2,)]
        eventually(lambda: "outbox_pending_rows{" in relay.get("/metrics"))
        for command in (["status"], ["audit"], ["dlq", "list"], ["parked", "list"], ["setup"]):
            done = run_command(ours.environ, *command)
            assert done.returncode == 0, done.stderr
        for process in (consumer, relay):
            process.stop()
    finally:
        ours.end()
    assert bare.query("SELECT * FROM public.outbox") == [(1, {})]
    assert bare.query("SELECT to_regclass('vap.workers')") == [(None,)]  # the platform's is used


def test_one_installation_has_one_schema(bare: System) -> None:
    set_up(bare.settings)
    words = "our tables are in schema public, and DATABASE_SCHEMA is vap: unset it"
    check_refused(bare, words, DATABASE_SCHEMA="vap")
    bare.query("CREATE SCHEMA vap")
    check_refused(bare, words, DATABASE_SCHEMA="vap")
    ours = System(bare.environ | {"DATABASE_SCHEMA": "vap"}, bare.directory)
    with closing(ours.connect()) as conn, pytest.raises(SchemaRefused, match=words):
        check_current(conn)


def test_a_table_that_hides_ours_from_a_login_is_named(bare: System) -> None:
    set_up(bare.settings)
    bare.query("CREATE SCHEMA app")
    bare.query("CREATE TABLE app.outbox (id INT)")
    hidden = make_conninfo(bare.settings.database_url, options="-c search_path=app,public")
    other = System(bare.environ | {"DATABASE_URL": hidden}, bare.directory)
    words = (
        "table outbox is not beside orchestrator_migrations, in schema public: it is in schema app:"
        " restore it, or set DATABASE_SCHEMA=public"
    )
    with closing(other.connect()) as conn, pytest.raises(SchemaRefused, match=words):
        check_current(conn)
    ours = System(other.environ | {"DATABASE_SCHEMA": "public"}, bare.directory)
    with closing(ours.connect()) as conn:
        check_current(conn)
    bare.query("DROP TABLE public.repairs")
    with closing(ours.connect()) as conn, pytest.raises(SchemaRefused, match=r"repairs.*it is missing"):
        check_current(conn)


def test_a_copy_without_rows_is_named(bare: System) -> None:
    set_up(bare.settings)
    bare.query("TRUNCATE orchestrator_migrations, outbox_lane, outbox_identity")
    check_refused(bare, "orchestrator_migrations is empty: is it a copy without rows", "pg_dump")


def test_a_copy_without_the_rows_of_a_table_is_named(bare: System) -> None:
    set_up(bare.settings)
    bare.query("DELETE FROM outbox_identity")
    check_refused(bare, "table outbox_identity is empty")


# ---- permissions, limits, the server --------------------------------------------------------------


def test_a_login_that_may_create_nothing_is_told_what_to_grant(bare: System) -> None:
    bare.query("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    with login(bare) as role:
        url = url_of(bare, role)
        words = f"{role} may create no table in schema public: run as its owner GRANT CREATE ON SCHEMA"
        check_refused(bare, words, DATABASE_URL=url)
        words = f"schema vap is missing, and {role} may not create it: run CREATE SCHEMA vap AUTHORIZ"
        check_refused(bare, words, DATABASE_URL=url, DATABASE_SCHEMA="vap")
        bare.query("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
        check_refused(bare, f"no schema of {role}'s search_path is there", DATABASE_URL=url)
        bare.query(f"CREATE SCHEMA vap AUTHORIZATION {role}")
        assert set_up_again(bare, DATABASE_URL=url, DATABASE_SCHEMA="vap").returncode == 0


def test_a_schema_in_which_every_login_may_create_is_named_until_it_is_closed(bare: System) -> None:
    bare.query("GRANT CREATE ON SCHEMA public TO PUBLIC")  # as in PostgreSQL 14
    statement = "REVOKE CREATE ON SCHEMA public FROM PUBLIC"
    with login(bare) as role:
        url = url_of(bare, role)
        done = set_up_again(bare, DATABASE_URL=url)  # it may not close the schema
        assert done.returncode == 0, done.stderr
        assert '"schema open"' in done.stderr
        assert statement in done.stderr
        found = look(bare, url)["postgres open schemas"]
        assert found.state == "failed"
        assert f"as the schema's owner or a superuser run {statement}" in found.text
        done = set_up_again(bare)
        assert '"schema closed"' in done.stderr
        assert '"schema open"' not in done.stderr
        assert look(bare, url)["postgres open schemas"].state == "ok"
        assert "schema" not in set_up_again(bare).stderr


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_cannot_hold_every_text_is_refused(bare: System, encoding: str) -> None:
    name = f"test_{uuid4().hex[:12]}"
    bare.query(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
    try:
        url = make_conninfo(bare.settings.database_url, dbname=name)
        other = System(bare.environ | {"DATABASE_URL": url}, bare.directory)
        check_refused(other, f"encoding is {encoding}", "create a database with ENCODING 'UTF8'")
    finally:
        bare.query(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_limit_of_connections_is_said_before_it_is_met(bare: System) -> None:
    bare.query("GRANT CREATE ON SCHEMA public TO PUBLIC")
    with login(bare) as role:
        bare.query(f"ALTER ROLE {role} CONNECTION LIMIT 1")
        url = url_of(bare, role)
        warned = set_up_again(bare, DATABASE_URL=url)
        assert warned.returncode == 0, warned.stderr
        assert '"connection limit low"' in warned.stderr
        assert f'"owner": "ROLE {role}", "limit": 1, "needed": {SESSIONS_NEEDED}' in warned.stderr
        found = look(bare, url)["postgres connections"]
        assert (found.state, f"ALTER ROLE {role}" in found.text) == ("warning", True)
        words = ("too many connections for role", "raise CONNECTION LIMIT")
        with psycopg.connect(url):
            check_refused(bare, *words, DATABASE_URL=url)


def test_a_login_that_is_refused_is_no_server_that_is_away(bare: System) -> None:
    database = bare.query("SELECT current_database()")[0][0]
    with login(bare) as role:
        url = url_of(bare, role)
        bare.query(f"ALTER ROLE {role} SET default_transaction_read_only = on")
        check_refused(bare, "session is read-only", "name the primary", DATABASE_URL=url)
        bare.query(f"REVOKE CONNECT ON DATABASE {database} FROM PUBLIC")
        check_refused(bare, "permission denied for database", "GRANT CONNECT", DATABASE_URL=url)
        bare.query(f"ALTER ROLE {role} NOLOGIN")
        check_refused(bare, "not permitted to log in", "ALTER ROLE ... LOGIN", DATABASE_URL=url)
    url = url_of(bare, "no_such_role")
    check_refused(bare, "no_such_role", "DATABASE_URL", DATABASE_URL=url)


def test_a_database_that_lets_no_session_in_is_named(bare: System) -> None:
    name = f"test_{uuid4().hex[:12]}"
    bare.query(f"CREATE DATABASE {name} ALLOW_CONNECTIONS false")
    try:
        url = make_conninfo(bare.settings.database_url, dbname=name)
        check_refused(bare, "not currently accepting connections", "ALLOW_CONN", DATABASE_URL=url)
    finally:
        bare.query(f"DROP DATABASE {name}")


# ---- row-level security ---------------------------------------------------------------------------


@pytest.mark.fault(67)
@pytest.mark.parametrize("table", ["outbox", "workers", "outbox_lane"])
def test_a_policy_that_would_hide_rows_is_an_error_by_name(system: System, table: str) -> None:
    with roles_made(system) as logins:
        system.accept(10)
        system.query(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        system.query(f"CREATE POLICY mine ON {table} TO {logins.login('owner')} USING (true)")
        words = f'policy for table "{table}"' if table == "outbox" else f'"{table}"'
        relay = logins.start("relay")
        eventually(lambda: words in relay.get("/readyz") or relay.logged(words.replace('"', '\\"')))
        found = look(system, logins.url("relay"))["postgres row security"]
        assert (found.state, f"on for {table}" in found.text) == ("failed", True)
        system.query(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
        system.check_exactly_once(10)


def test_a_session_sees_all_rows_or_an_error(system: System) -> None:
    with login(system) as role:
        system.accept(10)
        system.query(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        system.query("ALTER TABLE outbox ENABLE ROW LEVEL SECURITY")
        system.query("CREATE POLICY none ON outbox USING (false)")
        settings = System(
            system.environ | {"DATABASE_URL": url_of(system, role)}, system.directory
        ).settings
        with (
            closing(open_session(settings, "test")) as conn,
            pytest.raises(psycopg.errors.InsufficientPrivilege, match='"outbox"'),
        ):
            conn.execute("SELECT count(*) FROM outbox")
