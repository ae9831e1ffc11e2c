"""The platform's table `workers` is looked at before it is written to, wherever it is."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from orchestrator.consumer.commands import check_database as check_for_consumer
from orchestrator.contract.workers_table import WorkersRefused
from orchestrator.embedded import Servers
from orchestrator.observability.masking import mask_text
from orchestrator.operations.doctor.check import Installation
from orchestrator.operations.doctor.workers_table import id_sequences, workers_table
from orchestrator.relay import check_database as check_for_relay
from orchestrator.runtime.setup import migrate_database
from outbox import connect
from testkit.cases import cases
from testkit.empty_installation import bare_system, run_command
from testkit.system import System, take
from tests.integration.test_migrations import PLATFORMS_OWN


@pytest.fixture
def bare(servers: Servers, tmp_path: Path) -> Iterator[System]:
    with bare_system(servers, tmp_path) as system:
        yield system


def change(system: System, ddl: str) -> None:
    """Change the schema, by several statements perhaps."""
    with closing(psycopg.connect(system.settings.database_url, autocommit=True)) as conn:
        conn.execute(ddl.encode())


def tables(system: System) -> list[str]:
    """Return the tables and views of the database, with their schemas."""
    rows = system.query(
        "SELECT oid::regclass::text FROM pg_class"
        " WHERE relkind IN ('r', 'p', 'v', 'm', 'f')"
        " AND relnamespace::regnamespace::text !~ '^pg_|^info'"
    )
    return [name for (name,) in rows]


def refusals(system: System) -> list[str]:
    """Return what both processes and `doctor` say of the table."""
    said = []
    with closing(connect(system.settings.database_url, "test")) as conn:
        for check in (check_for_consumer, check_for_relay):
            with pytest.raises(WorkersRefused) as refused:
                check(conn)
            said.append(str(refused.value))
        state, text = workers_table(Installation(system.settings, connection=conn))
    assert state == "failed"
    return [*said, text]


def check_accepted(system: System) -> None:
    """See that setup, both processes and `doctor` take the table as it is."""
    migrate_database(system.settings)
    with closing(connect(system.settings.database_url, "test")) as conn:
        check_for_consumer(conn)
        check_for_relay(conn)
        state, text = workers_table(Installation(system.settings, connection=conn))
    assert state == "ok", text


ADD_UNIQUE = "ALTER TABLE public.workers ADD UNIQUE (worker_id)"
NOT_UNIQUE = "ALTER TABLE workers DROP CONSTRAINT workers_worker_id_key;"
ENUM = """
    CREATE TYPE state AS ENUM ({labels});
    ALTER TABLE workers ALTER status DROP DEFAULT, ALTER status TYPE state USING status::text::state,
                        ALTER status SET DEFAULT 'pending'
"""
PARTITIONED = """
    DROP TABLE workers;
    CREATE TABLE workers (
        worker_id UUID NOT NULL, scenario_uuid UUID NOT NULL, camera_url TEXT NOT NULL,
        status VARCHAR(50) NOT NULL DEFAULT 'pending', process_pid INTEGER, id SERIAL,
        created_at TIMESTAMP DEFAULT NOW(), updated_at TIMESTAMP DEFAULT NOW(), UNIQUE ({unique})
    ) PARTITION BY {by};
"""
FILL_TENANT = """
    ALTER TABLE workers ADD tenant TEXT NOT NULL;
    CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN NEW.tenant = 1; RETURN NEW; END';
    CREATE TRIGGER fill BEFORE INSERT ON workers FOR EACH ROW EXECUTE FUNCTION fill()
"""
HARMLESS = {
    "as the platform makes it": "",
    "a primary key": NOT_UNIQUE
    + "ALTER TABLE workers DROP CONSTRAINT workers_pkey, ADD PRIMARY KEY (worker_id)",
    "a unique index alone": NOT_UNIQUE + "CREATE UNIQUE INDEX ON workers (worker_id)",
    "one with another column included": NOT_UNIQUE
    + "CREATE UNIQUE INDEX ON workers (worker_id) INCLUDE (status)",
    "a partial one beside it": "CREATE UNIQUE INDEX ON workers (worker_id) WHERE status = 'pending'",
    "an invalid partial one beside it": "CREATE UNIQUE INDEX ON workers (worker_id, status)",
    "an enum": ENUM.format(labels="'pending', 'deployed', 'running', 'failed', 'stopped'"),
    "a domain": "CREATE DOMAIN key AS uuid; ALTER TABLE workers ALTER worker_id TYPE key",
    "times with a zone": "ALTER TABLE workers ALTER updated_at TYPE timestamptz",
    "a shorter URL": "ALTER TABLE workers ALTER camera_url TYPE varchar(2048)",
    "a bigint id": "ALTER TABLE workers ALTER id TYPE bigint",
    "more columns": "ALTER TABLE workers ADD tenant int NOT NULL DEFAULT 1, ADD note text",
    "an identity": "ALTER TABLE workers ADD n int GENERATED ALWAYS AS IDENTITY",
    "a generated column": "ALTER TABLE workers ADD n int NOT NULL GENERATED ALWAYS AS (1) STORED",
    "a trigger that fills a column": FILL_TENANT,
    "partitions by worker_id": PARTITIONED.format(unique="worker_id", by="HASH (worker_id)")
    + "CREATE TABLE all_of_them PARTITION OF workers FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
}
WHOLE_WAY = ("an enum", "a trigger that fills a column", "partitions by worker_id")


@pytest.mark.parametrize("ddl", HARMLESS.values(), ids=HARMLESS)
def test_a_table_with_all_that_is_needed_is_adopted(bare: System, ddl: str) -> None:
    change(bare, PLATFORMS_OWN + ";" + ddl)
    check_accepted(bare)


@pytest.mark.parametrize("ddl", cases(HARMLESS, *WHOLE_WAY))
def test_an_adopted_table_is_used_from_the_command_to_the_audit(one_lane: System, ddl: str) -> None:
    change(one_lane, "ALTER TABLE workers ALTER created_at TYPE timestamptz;" + ddl)
    (scenario,) = one_lane.submit(1)
    one_lane.submit(9)
    with one_lane.consumer() as session, one_lane.lane() as lane:
        take(session, 10)
        lane.recover()
        assert lane.drain() == 10
    one_lane.check_exactly_once(10)
    explained = run_command(one_lane.environ, "explain", str(scenario))
    assert "accepted: worker and outbox row written" in explained.stdout, explained.stderr


BROKEN_INDEX = """
    CREATE UNIQUE INDEX broken ON workers (worker_id);
    UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'broken'::regclass
"""
FAULTS = {
    "no unique constraint": (NOT_UNIQUE, ADD_UNIQUE),
    "a partial index": (
        NOT_UNIQUE + "CREATE UNIQUE INDEX half ON workers (worker_id) WHERE status = 'pending'",
        "public.workers.worker_id has no UNIQUE constraint (half: partial, of an expression, or of"
        " more columns): " + ADD_UNIQUE,
    ),
    "an index of an expression": (
        NOT_UNIQUE + "CREATE UNIQUE INDEX cast_index ON workers (CAST(worker_id AS text))",
        "(cast_index: partial",
    ),
    "more columns": (NOT_UNIQUE + "ALTER TABLE workers ADD UNIQUE (worker_id, status)", ADD_UNIQUE),
    "a deferrable constraint": (
        NOT_UNIQUE + "ALTER TABLE workers ADD CONSTRAINT late UNIQUE (worker_id) DEFERRABLE",
        "DROP CONSTRAINT late, ADD UNIQUE (worker_id)",
    ),
    "a deferrable constraint beside a good one": (
        "ALTER TABLE workers ADD CONSTRAINT late UNIQUE (worker_id) DEFERRABLE",
        "constraint late of public.workers is DEFERRABLE",
    ),
    "an invalid index": (
        NOT_UNIQUE + BROKEN_INDEX,
        "the unique index broken of public.workers is not valid: REINDEX INDEX CONCURRENTLY broken",
    ),
    "partitions by something else": (
        PARTITIONED.format(unique="worker_id, created_at", by="RANGE (created_at)"),
        "no partitioned table can have that unless worker_id alone is its partition key",
    ),
    "a child": (
        "CREATE TABLE archived () INHERITS (workers)",
        "ALTER TABLE archived NO INHERIT public.workers",
    ),
    "a view": (
        "ALTER TABLE workers RENAME TO all_workers; CREATE VIEW workers AS SELECT * FROM all_workers",
        "public.workers is a view, and must be a table",
    ),
    "an unlogged table": ("ALTER TABLE workers SET UNLOGGED", "ALTER TABLE public.workers SET LOGGED"),
    "a rule": (
        "CREATE RULE aside AS ON INSERT TO workers DO INSTEAD NOTHING",
        "DROP RULE aside ON public.workers",
    ),
    "no status": (
        "ALTER TABLE workers DROP status",
        "ALTER TABLE public.workers ADD COLUMN status varchar(50) NOT NULL DEFAULT 'pending'",
    ),
    "no worker_id": ("ALTER TABLE workers DROP worker_id", "ADD COLUMN worker_id uuid UNIQUE"),
    "ids as text": (
        "ALTER TABLE workers ALTER worker_id TYPE text",
        "ALTER TABLE public.workers ALTER COLUMN worker_id TYPE uuid USING CAST(worker_id AS uuid)",
    ),
    "a number as status": (
        "ALTER TABLE workers ALTER status DROP DEFAULT, ALTER status TYPE int USING 1",
        "public.workers.status is integer, and must be text",
    ),
    "a short status": (
        "ALTER TABLE workers ALTER status TYPE varchar(7)",
        "public.workers.status is character varying(7), too short for 'deployed'",
    ),
    "an enum without deployed": (
        ENUM.format(labels="'pending', 'running'"),
        "ALTER TYPE state ADD VALUE 'deployed'",
    ),
    "another default": (
        "ALTER TABLE workers ALTER status SET DEFAULT 'new'",
        "ALTER TABLE public.workers ALTER COLUMN status SET DEFAULT 'pending'",
    ),
    "no default": ("ALTER TABLE workers ALTER status DROP DEFAULT", "SET DEFAULT 'pending'"),
    "a column to be filled": (
        "ALTER TABLE workers ADD tenant int NOT NULL",
        "ALTER TABLE public.workers ALTER COLUMN tenant SET DEFAULT ...",
    ),
    "an id without a default": (
        "ALTER TABLE workers ALTER id DROP DEFAULT",
        "public.workers.id is NOT",
    ),
    "no URL": (
        "ALTER TABLE workers DROP camera_url",
        "ALTER TABLE public.workers ADD COLUMN camera_url text",
    ),
    "a URL as bytes": (
        "ALTER TABLE workers ALTER camera_url TYPE bytea USING camera_url::bytea",
        "ALTER COLUMN camera_url TYPE text USING CAST(camera_url AS text)",
    ),
    "a generated URL": (
        "ALTER TABLE workers DROP camera_url, ADD camera_url text GENERATED ALWAYS AS ('x') STORED",
        "ALTER TABLE public.workers ALTER COLUMN camera_url DROP EXPRESSION",
    ),
}


@pytest.mark.fault(81)
@pytest.mark.parametrize(("ddl", "named"), FAULTS.values(), ids=FAULTS)
def test_a_table_that_lacks_something_is_refused_before_anything_is_written(
    bare: System, ddl: str, named: str
) -> None:
    change(bare, PLATFORMS_OWN + ";" + ddl)
    before = tables(bare)
    with pytest.raises(WorkersRefused) as refused:
        migrate_database(bare.settings)
    assert named in mask_text(str(refused.value))  # as log, /readyz and commands show it
    assert tables(bare) == before


@pytest.mark.fault(81)
@pytest.mark.parametrize(("ddl", "named"), FAULTS.values(), ids=FAULTS)
def test_what_a_table_loses_later_is_seen_by_the_next_session(
    bare: System, ddl: str, named: str
) -> None:
    migrate_database(bare.settings)
    change(bare, ddl)
    assert all(named in text for text in refusals(bare)), refusals(bare)


def test_setup_says_it_in_a_line(bare: System) -> None:
    change(bare, PLATFORMS_OWN + ";" + NOT_UNIQUE)
    done = run_command(bare.environ, "setup")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert ADD_UNIQUE in line


# ---- where it is --------------------------------------------------------------------------------


def with_path(system: System, path: str) -> System:
    """Return the same installation for a login with another search_path."""
    url = psycopg.conninfo.make_conninfo(
        system.settings.database_url, options=f"-c search_path={path.replace(' ', '')}"
    )
    return System(system.environ | {"DATABASE_URL": url}, system.directory)


@pytest.mark.fault(81)
def test_a_table_further_on_in_the_search_path_is_adopted(bare: System) -> None:
    change(bare, PLATFORMS_OWN + "; CREATE SCHEMA ours")
    ours = with_path(bare, "ours, public")
    check_accepted(ours)
    assert [name for name in tables(bare) if name.endswith("workers")] == ["workers"]
    assert "ours.outbox" in tables(bare)


@pytest.mark.fault(81)
def test_a_table_that_the_search_path_does_not_show_is_refused(bare: System) -> None:
    change(bare, PLATFORMS_OWN + "; CREATE SCHEMA ours")
    ours = with_path(bare, "ours")
    with pytest.raises(WorkersRefused) as refused:
        migrate_database(ours.settings)
    user = bare.query("SELECT quote_ident(current_user)")[0][0]
    assert f"ALTER ROLE {user} SET search_path = ours, public" in str(refused.value)
    assert tables(bare) == ["workers"]


@pytest.mark.fault(81)
def test_a_table_hidden_later_is_refused_by_the_processes(bare: System) -> None:
    migrate_database(bare.settings)
    change(bare, "CREATE SCHEMA aside; ALTER TABLE workers SET SCHEMA aside")
    assert all("table aside.workers exists, and the search_path" in text for text in refusals(bare))
    change(bare, "DROP TABLE aside.workers")
    assert all("create it with schema/001_workers.sql" in text for text in refusals(bare))
    with pytest.raises(WorkersRefused):
        migrate_database(bare.settings)


@pytest.mark.fault(81)
def test_two_tables_in_the_search_path_are_refused(bare: System) -> None:
    change(bare, PLATFORMS_OWN + "; CREATE SCHEMA ours; SET search_path = ours;" + PLATFORMS_OWN)
    both = with_path(bare, "ours, public")
    with pytest.raises(
        WorkersRefused, match=r"more than one table workers: ours\.workers, .* public\."
    ):
        migrate_database(both.settings)
    check_one = with_path(bare, "public")
    migrate_database(check_one.settings)
    with closing(connect(check_one.settings.database_url, "test")) as conn:
        state, text = workers_table(Installation(check_one.settings, connection=conn))
    assert state == "warning"
    assert "ours.workers is another table workers" in text


def test_a_table_of_another_program_is_no_matter(bare: System) -> None:
    change(bare, "CREATE SCHEMA queue; CREATE TABLE queue.workers (pid int)")
    check_accepted(bare)
    assert {"queue.workers", "workers"} <= set(tables(bare))


def test_a_schema_that_the_role_may_not_use_is_named_with_the_grant(bare: System) -> None:
    role = f"outsider_{bare.settings.consumer_group.removeprefix('group-')}"
    change(bare, f"CREATE SCHEMA theirs; SET search_path = theirs; {PLATFORMS_OWN}; CREATE ROLE {role}")
    change(bare, f"GRANT {role} TO CURRENT_USER; GRANT CREATE ON SCHEMA public TO {role}")
    url = psycopg.conninfo.make_conninfo(bare.settings.database_url, options=f"-c role={role}")
    outsider = System(bare.environ | {"DATABASE_URL": url}, bare.directory)
    try:
        with pytest.raises(WorkersRefused, match=f"GRANT USAGE ON SCHEMA theirs TO {role}"):
            migrate_database(outsider.settings)
    finally:
        change(bare, f"DROP OWNED BY {role}; DROP ROLE {role}")


# ---- sequences ----------------------------------------------------------------------------------

ROWS = {
    "workers": "INSERT INTO workers (worker_id, scenario_uuid, camera_url)"
    " VALUES (gen_random_uuid(), gen_random_uuid(), 'x')",
    "outbox_deferred": "INSERT INTO outbox_deferred (aggregate_id, reason)"
    " VALUES (gen_random_uuid(), 'x')",
    "repairs": "INSERT INTO repairs (command, target, reason, before, after, counts)"
    " VALUES ('x', 'x', 'x', '{}', '{}', '{}')",
}


def sequences(system: System) -> tuple[str, str]:
    """Return what `doctor` says of the sequences."""
    with closing(connect(system.settings.database_url, "test")) as conn:
        return id_sequences(Installation(system.settings, connection=conn))


@pytest.mark.fault(83)
@pytest.mark.parametrize("back", ["setval('{}', 1)", "setval('{}', 1, false)"])
@pytest.mark.parametrize("table", ROWS)
def test_a_sequence_that_was_set_back_is_named_with_its_remedy(
    bare: System, table: str, back: str
) -> None:
    migrate_database(bare.settings)
    assert sequences(bare)[0] == "ok"
    change(bare, ";".join([ROWS[table]] * 3))
    assert sequences(bare)[0] == "ok"
    change(bare, f"SELECT {back.format(table + '_id_seq')}")
    state, text = sequences(bare)
    assert state == "failed"
    remedy = f"SELECT setval('public.{table}_id_seq', 3)"
    assert text.endswith(remedy)
    change(bare, remedy)
    assert sequences(bare)[0] == "ok"


def test_the_id_of_a_parked_row_is_not_given_again(bare: System) -> None:
    migrate_database(bare.settings)
    change(
        bare,
        "INSERT INTO outbox_parked (lane, id, topic, created_at, reason)"
        " VALUES (0, 7, 'x', now(), 'x')",
    )
    assert sequences(bare)[1].endswith("SELECT setval('public.outbox_id_seq', 7)")
