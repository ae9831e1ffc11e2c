"""`created_at` and `updated_at` of workers mean the same, ours and those of the platform."""

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest

from outbox import Connection, connect
from testkit.empty_installation import run_command
from testkit.system import System

ZONE, AHEAD = "Asia/Novosibirsk", timedelta(hours=7)
A_MINUTE = timedelta(minutes=1)

# As the API and the Runner do it, in sessions of their own.
THEIRS = (
    "INSERT INTO workers (worker_id, scenario_uuid, camera_url, status) VALUES (%s, %s, '/dev/video0',"
    " 'running')"
)
HOW_OLD = "SELECT worker_id, LOCALTIMESTAMP - created_at, LOCALTIMESTAMP - updated_at FROM workers"
SHOW_ZONE = "SELECT current_setting('TimeZone')"


@pytest.fixture
def in_novosibirsk(system: System) -> System:
    """An installation whose database has a time zone of its own."""
    system.query(
        f"ALTER DATABASE {system.query('SELECT current_database()')[0][0]} SET timezone = '{ZONE}'"
    )
    return system


def zone_of(conn: Connection) -> object:
    """Return the time zone of a session."""
    (row,) = conn.execute(SHOW_ZONE)
    return row[0]


def test_our_rows_have_the_times_of_the_platforms_own(in_novosibirsk: System) -> None:
    system, theirs = in_novosibirsk, uuid4()
    processes = [system.start("consumer"), system.start("relay")]
    (scenario,) = system.submit(1)
    system.check_exactly_once(1)
    with psycopg.connect(system.settings.database_url, autocommit=True) as conn:
        conn.execute(THEIRS, (theirs, uuid4()))
        ages = {worker: (made, changed) for worker, made, changed in conn.execute(HOW_OLD)}
        local = conn.execute("SELECT LOCALTIMESTAMP").fetchone()
    assert local
    assert abs(local[0] - datetime.now(UTC).replace(tzinfo=None) - AHEAD) < A_MINUTE
    assert len(ages) == 2
    assert all(abs(age) < A_MINUTE for both in ages.values() for age in both)

    explained = json.loads(run_command(system.environ, "explain", str(scenario), "--json").stdout)
    (order,) = explained["workers"]
    for name in ("command_time", "created_at", "updated_at"):
        at = datetime.fromisoformat(order[name])
        assert at.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - at) < A_MINUTE
    told = run_command(system.environ, "explain", str(scenario)).stdout
    assert f"{datetime.now(UTC):%Y-%m-%d}" in told

    # Their worker has no order, and its status is not ours: it is no fault either.
    system.query("DELETE FROM workers WHERE worker_id = %s", theirs)
    audited = json.loads(run_command(system.environ, "audit", "--since", "10m", "--json").stdout)
    assert audited["accepted"] == 1
    system.query("UPDATE workers SET created_at = created_at - interval '20 minutes'")
    audited = json.loads(run_command(system.environ, "audit", "--since", "10m", "--json").stdout)
    assert audited["accepted"] == 0
    for process in processes:
        process.stop()


def test_the_zone_of_the_database_counts_and_not_that_of_a_role_or_a_client(
    in_novosibirsk: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = in_novosibirsk.settings.database_url
    database = in_novosibirsk.query("SELECT current_database()")[0][0]
    monkeypatch.setenv("PGTZ", "America/New_York")
    in_novosibirsk.query(f"ALTER ROLE current_user IN DATABASE {database} SET timezone = 'Asia/Tokyo'")
    with closing(connect(url, "test")) as conn:
        assert zone_of(conn) == ZONE
    in_novosibirsk.query(f"ALTER DATABASE {database} RESET timezone")
    with closing(connect(url, "test")) as conn:
        assert zone_of(conn) == "America/New_York"  # nothing says otherwise
