"""Functions and operators that another login planted in `public`: no statement of ours runs one.

PostgreSQL 14, and each database that was upgraded from it, lets every login create them there. One
whose types fit better than those of Postgres's own is preferred, wherever `pg_catalog` is searched.
"""

import re
from pathlib import Path

import psycopg
import pytest

from testkit.empty_installation import run_in_process
from testkit.eventually import eventually
from testkit.system import System

PACKAGES = [Path(__file__).parent.parent.parent / name for name in ("orchestrator", "outbox")]
CALL = re.compile(r"(?<=\bpg_catalog\.)[a-z_0-9]+(?=\()")
UNQUALIFIED = {
    "count",
    "max",
    "min",
    "octet_length",
    "isfinite",
    "unnest",
    "bool_and",
    "now",
    "version",
    "pg_backend_pid",
}

# A twin of each function that we call, for many types of its arguments, and each operator that Postgres
# lacks for a pair of types: all raise.
PLANT = r"""
DO $plant$
DECLARE
    types CONSTANT text[] := ARRAY[
        'smallint', 'int', 'bigint', 'oid', 'regclass', 'regtype', 'name', 'text', 'varchar', '"char"',
        'uuid', 'bytea', 'json', 'jsonb', 'timestamptz', 'interval', 'real', 'float8', 'numeric',
        'bool', 'xid', 'inet', 'int2vector', 'smallint[]', 'bigint[]', 'uuid[]', 'text[]', 'name[]'];
    few CONSTANT text[] := ARRAY[
        'smallint', 'int', 'bigint', 'name', 'text', 'oid', 'regclass', 'bool'];
    body CONSTANT text := $$ LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''PLANTED''; END'$$;
    f text; a text; b text; c text; op text;
BEGIN
    FOREACH f IN ARRAY current_setting('planted.functions')::text[] LOOP
        EXECUTE format('CREATE FUNCTION public.%I() RETURNS text', f) || body;
        FOREACH a IN ARRAY types LOOP
            EXECUTE format('CREATE FUNCTION public.%I(%s) RETURNS text', f, a) || body;
            FOREACH b IN ARRAY few LOOP
                EXECUTE format('CREATE FUNCTION public.%I(%s, %s) RETURNS text', f, a, b) || body;
            END LOOP;
        END LOOP;
        FOREACH a IN ARRAY few LOOP FOREACH b IN ARRAY few LOOP FOREACH c IN ARRAY few LOOP
            EXECUTE format('CREATE FUNCTION public.%I(%s, %s, %s) RETURNS text', f, a, b, c) || body;
        END LOOP; END LOOP; END LOOP;
    END LOOP;
    FOREACH a IN ARRAY types LOOP FOREACH b IN ARRAY types LOOP
        EXECUTE format('CREATE FUNCTION public.planted(%s, %s) RETURNS bool', a, b) || body;
        FOREACH op IN ARRAY ARRAY['=', '<>', '<', '>', '<=', '>=', '||', '+', '-', '*', '/', '&',
                                  '<@', '@>', '~', '!~', '~*', '~~', '!~~', '->', '->>'] LOOP
            CONTINUE WHEN to_regoperator(format('pg_catalog.%s(%s,%s)', op, a, b)) IS NOT NULL;
            EXECUTE format('CREATE OPERATOR public.%s (FUNCTION = public.planted, LEFTARG = %s,'
                           ' RIGHTARG = %s)', op, a, b);
        END LOOP;
    END LOOP; END LOOP;
END $plant$;
"""


INSERT_FOREIGN = """
    INSERT INTO public.outbox (lane, topic, key, value) VALUES (0, 'elsewhere', 'k', 'v')
"""


def unharmed(system: System) -> psycopg.Connection:
    """Return a session of the test's own, for which nothing is planted."""
    return psycopg.connect(system.settings.database_url, options="-c search_path=pg_catalog")


def deployed(system: System) -> int:
    with unharmed(system) as conn:
        found = conn.execute("SELECT FROM public.workers WHERE status = 'deployed'")
        return found.rowcount


def plant(system: System) -> None:
    """Plant twins of all functions that our statements call, in `public`, where our tables are."""
    called = {
        name
        for path in PACKAGES
        for file in path.rglob("*.py")
        for name in CALL.findall(file.read_text())
    }
    with unharmed(system) as conn:
        names = "{" + ",".join(sorted(called | UNQUALIFIED)) + "}"
        conn.execute("SELECT set_config('planted.functions', %s, false)", [names])
        conn.execute(PLANT)


def order_in_search_path(system: System, path: str) -> None:
    database = system.query("SELECT current_database()")[0][0]
    system.query(f"ALTER DATABASE {database} SET search_path = {path}")


@pytest.mark.fault(84)
@pytest.mark.slow
@pytest.mark.parametrize("path", ['"$user", public', "public, pg_catalog"])
def test_no_process_and_no_command_runs_what_is_planted(system: System, path: str) -> None:
    plant(system)
    order_in_search_path(system, path)
    processes = [system.start("consumer"), system.start("relay")]
    scenario = str(system.submit(20)[0])
    system.produce(b"no JSON", key=b"k")
    with unharmed(system) as conn:
        conn.execute(INSERT_FOREIGN)
    try:
        eventually(lambda: deployed(system) == 20)
    finally:
        shown = "".join(process.log.read_text() for process in processes)
        assert not re.findall(".*(?:PLANTED|is not unique).*", shown)
    for words in (
        *("doctor", "status", f"explain {scenario}", "audit", "setup"),
        *("dlq list", "dlq retry --all --yes", "dlq discard --all --yes"),
        *("parked list", "parked show 0:1 --payload", "parked retry --all --yes"),
        *("parked discard --all --yes", "repair lane all --yes", "repair partition all --yes"),
    ):
        ran = run_in_process(system.environ, *words.split())
        shown = ran.stdout + ran.stderr
        assert not re.findall(".*(?:PLANTED|is not unique|Traceback|could not be checked).*", shown)
