"""The checks of `doctor` on the Postgres server, and on our session there.

A pooler may lend our session to others later: the checks set nothing in it. What `connect` sets may
stay behind, as it does from the processes.
"""

import time
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import NamedTuple

import psycopg
from psycopg.rows import args_row

from orchestrator.consumer.loop import CONSUMER_SESSION
from orchestrator.observability.advice import connection_advice
from orchestrator.operations.doctor.check import Installation, Result
from orchestrator.runtime.database import (
    NEWEST_POSTGRES,
    SESSIONS_NEEDED,
    ServerUnfit,
    check_encoding,
    check_version,
    find_connection_limits,
    find_open_schemas,
    open_session,
    version_text,
)
from orchestrator.runtime.history import tables_of
from orchestrator.runtime.migrations import check_current, read_migrations
from outbox import (
    RELAY_SESSION,
    DatabaseNotReady,
    count_lanes,
    error_text,
    hang_up_after,
    is_server_away,
    query,
    read_standby_wait,
    scalar,
)
from outbox.admin import TransactionPoolingDetected, read_identity, try_session_lock

ANSWER_TIMEOUT_S = 25.0  # longer than reading the markers may wait for Kafka
CLOCK_WARNING_S, CLOCK_FAILED_S = 1.0, 60.0


def postgres_reachable(installation: Installation) -> Result:
    """Open the session that all later checks use."""
    try:
        installation.connection = conn = open_session(installation.settings, "orchestrator doctor")
    except psycopg.Error as error:
        advice = connection_advice(str(error)) or (
            "see that the server runs, accepts our login and is writable, and that DATABASE_URL is"
            " right"
        )
        return "unreachable" if is_server_away(error) else "failed", f"{error_text(error)}: {advice}"
    where = f"{conn.info.host or 'socket'}:{conn.info.port}"
    return "ok", f"database {conn.info.dbname} on {where}, as {conn.info.user}"


def answer_deadline(installation: Installation) -> AbstractContextManager[None]:
    """Disconnect from a Postgres that does not answer within ANSWER_TIMEOUT_S."""
    conn = installation.connection
    return hang_up_after(conn, ANSWER_TIMEOUT_S) if conn else nullcontext()


def error_result(installation: Installation, error: psycopg.Error) -> Result:
    """Return the result of a check that failed in Postgres; without a session, skip later ones."""
    if installation.connection is not None and installation.connection.closed:
        installation.close()
        installation.connection = None
        return "unreachable", f"the connection was lost: {error_text(error)}: run doctor again"
    return "failed", f"could not be checked: {error_text(error)}"


def postgres_version(installation: Installation) -> Result:
    """Check that this version has what we need, and that it was tested."""
    conn = installation.conn
    try:
        check_version(conn)
    except ServerUnfit as error:
        return "failed", str(error)
    text = version_text(conn)
    if conn.info.server_version // 10_000 > NEWEST_POSTGRES:
        return "warning", f"{text}: newer than {NEWEST_POSTGRES}, the newest that was tested"
    return "ok", text


def postgres_schema(installation: Installation) -> Result:
    """Compare the migrations with those of this code."""
    try:
        check_current(installation.conn)
        with suppress(psycopg.errors.InsufficientPrivilege):  # the consumer's role does not need it
            read_identity(installation.conn)
    except DatabaseNotReady as error:
        return "failed", str(error)
    return "ok", "all migrations of this code, and no others"


def open_schemas(installation: Installation) -> Result:
    """See that not every login may create a function that our statements would run."""
    remedies = "; ".join(one.remedy for one in find_open_schemas(installation.conn))
    if remedies:
        return "failed", (
            "every login may create functions that our processes and the owner would run: as the"
            f" schema's owner or a superuser run {remedies}"
        )
    return "ok", "only those whom its owner has chosen create functions in our schemas"


def postgres_encoding(installation: Installation) -> Result:
    """Check that every text that a command may have can be stored."""
    try:
        check_encoding(installation.conn)
    except ServerUnfit as error:
        return "failed", str(error)
    return "ok", "UTF8"


def number_of_lanes(installation: Installation) -> Result:
    """Compare LANES, if it is set, with the number that the first migration fixed."""
    try:
        lanes, configured = count_lanes(installation.conn), installation.settings.lanes
    except DatabaseNotReady as error:
        return "failed", str(error)
    if configured not in {None, lanes}:
        text = f"{lanes}; LANES={configured} is ignored, the number is fixed: set LANES={lanes}"
        return "warning", text
    return "ok", str(lanes)


class CommitSettings(NamedTuple):
    """What decides when a commit is acknowledged."""

    synchronous_commit: str
    standbys: str


# reset_val is what a session begins with; ours override `off`, see outbox.postgres.
COMMIT_SETTINGS = """
    SELECT reset_val, pg_catalog.current_setting('synchronous_standby_names')
      FROM pg_settings
     WHERE name = 'synchronous_commit'
"""


def synchronous_commit(installation: Installation) -> Result:
    """Check that acknowledged commits survive a crash, and a failover."""
    ((value, standbys),) = query(installation.conn, args_row(CommitSettings), COMMIT_SETTINGS)
    if value == "off":
        return "warning", (
            "off for this server, database or role: our own sessions override it, but a crash may lose"
            " commits that others, like the API and the Runner, take for done: set it to on"
        )
    if standbys and value == "local":
        return "warning", (
            "local, though there are synchronous standbys: a failover may lose what was"
            " acknowledged: set it to on"
        )
    wait = read_standby_wait(installation.conn, RELAY_SESSION, CONSUMER_SESSION)
    if wait.is_missing:
        return "failed", wait.text
    waits = "waits for a synchronous standby" if standbys else "there is no synchronous standby"
    return "ok", f"{value}, {waits}"


def connection_limits(installation: Installation) -> Result:
    """Check that the processes can all be connected at once."""
    limits = find_connection_limits(installation.conn)
    if not limits:
        return "ok", "no limit of this role or database is too low"
    text = "; ".join(f"{owner} has CONNECTION LIMIT {limit}" for owner, limit in limits)
    advice = f"consumer, relay and a command need {SESSIONS_NEEDED}: raise it with ALTER"
    return "warning", f"{text}: {advice} {limits[0].owner}"


# row_security_active: whether policies hide rows from this role.
FIND_POLICIES = """
    SELECT oid::regclass::text, pg_catalog.row_security_active(oid)
      FROM pg_class
     WHERE oid IN (SELECT pg_catalog.to_regclass(name)::oid
                     FROM pg_catalog.unnest(%(tables)s::text[]) AS name)
       AND relrowsecurity
     ORDER BY 1
"""


class TablePolicy(NamedTuple):
    """A table with row-level security. hides: from this role."""

    table: str
    hides: bool


def row_security(installation: Installation) -> Result:
    """Look for tables whose rows a policy hides: our sessions fail there instead of seeing a part."""
    tables = [*tables_of(one.sql for one in read_migrations()), "workers"]
    found = query(installation.conn, args_row(TablePolicy), FIND_POLICIES, {"tables": tables})
    role = installation.conn.info.user
    if hidden := ", ".join(one.table for one in found if one.hides):
        advice = f"run ALTER ROLE {role} BYPASSRLS, or disable it for these tables"
        return "failed", f"on for {hidden}, and {role} may not bypass it: {advice}"
    bypassed = ", ".join(one.table for one in found)
    return "ok", f"on for {bypassed}, and {role} bypasses it" if found else "off for our tables"


def postgres_sessions(installation: Installation) -> Result:
    """Check that our session keeps its advisory locks: they are the ownership of lanes."""
    try:
        is_direct = try_session_lock(installation.conn)
    except TransactionPoolingDetected as error:
        return "failed", str(error)
    way = "directly connected" if is_direct else "through a pooler in session mode"
    return "ok", f"{way}; a session keeps its advisory locks"


SERVER_TIME = "SELECT extract(epoch FROM clock_timestamp())::float8"


def postgres_clock(installation: Installation) -> Result:
    """Compare the server's clock with ours; half of the round trip is uncertain."""
    before = time.time()
    server = scalar(installation.conn, float, SERVER_TIME)
    after = time.time()
    skew, uncertain = server - (before + after) / 2, (after - before) / 2
    text = f"{abs(skew):.3f} s {'ahead of' if skew > 0 else 'behind'} ours (± {uncertain:.3f} s)"
    if abs(skew) - uncertain <= CLOCK_WARNING_S:
        return "ok", text
    failed = abs(skew) - uncertain > CLOCK_FAILED_S
    return "failed" if failed else "warning", f"{text}: let both hosts use the same time server (NTP)"
