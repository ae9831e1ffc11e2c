"""The checks of `doctor` on the Postgres server, and on our session there.

The session may be one that a pooler lends: the checks set nothing in it. What `connect` sets may stay
behind there, as that of the processes does.
"""

import time
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import NamedTuple

import psycopg
from psycopg.rows import args_row

from orchestrator.consumer.session import NotUtf8, check_encoding
from orchestrator.operations.doctor.check import Answer, Site
from orchestrator.runtime.migrations import check_current
from outbox import (
    DatabaseNotReady,
    connect,
    count_lanes,
    error_text,
    hang_up_after,
    query,
    scalar,
)
from outbox.admin import TransactionPoolingDetected, read_identity, try_session_lock

OLDEST, NEWEST = 14, 18  # as in the README's table of supported versions
SILENCE_S = 25.0  # longer than the look at the markers may wait for Kafka
CLOCK_WARNING_S, CLOCK_FAILED_S = 1.0, 60.0


def reach(site: Site) -> Answer:
    """Open the session that all later checks use."""
    try:
        site.connection = conn = connect(site.settings.database_url, "orchestrator doctor")
    except psycopg.Error as error:
        return "unreachable", (
            f"{error}: see that the server runs, takes our login and can be written to, and that"
            " DATABASE_URL is right"
        )
    where = f"{conn.info.host or 'socket'}:{conn.info.port}"
    return "ok", f"database {conn.info.dbname} on {where}, as {conn.info.user}"


def patience(site: Site) -> AbstractContextManager[None]:
    """Hang up on a Postgres that does not answer within SILENCE_S."""
    return hang_up_after(site.connection, SILENCE_S) if site.connection else nullcontext()


def fault(site: Site, error: psycopg.Error) -> Answer:
    """Answer for a check that Postgres ended; without a session no later one is made."""
    if site.connection is not None and site.connection.closed:
        site.close()
        site.connection = None
        return "unreachable", f"the connection was lost: {error_text(error)}: run doctor again"
    return "failed", f"could not be looked at: {error_text(error)}"


def version(site: Site) -> Answer:
    """Look whether this version has what we need, and whether anybody has tried it."""
    number = site.conn.info.server_version
    major, text = number // 10_000, f"{number // 10_000}.{number % 10_000}"
    if major < OLDEST:
        return "failed", f"{text}: the oldest that works is {OLDEST}: upgrade the server"
    if major > NEWEST:
        return "warning", f"{text}: newer than {NEWEST}, the newest that was tried: try it first"
    return "ok", text


def schema(site: Site) -> Answer:
    """Compare the migrations with those of this code."""
    try:
        check_current(site.conn)
        with suppress(psycopg.errors.InsufficientPrivilege):  # the consumer's role need not see it
            read_identity(site.conn)
    except DatabaseNotReady as error:
        return "failed", str(error)
    return "ok", "all migrations of this code, and no others"


def encoding(site: Site) -> Answer:
    """Look whether every text that a command may carry can be stored."""
    try:
        check_encoding(site.conn)
    except NotUtf8 as error:
        return "failed", str(error)
    return "ok", "UTF8"


def lanes(site: Site) -> Answer:
    """Compare LANES, if somebody set it, with the number that the first migration fixed."""
    made, wanted = count_lanes(site.conn), site.settings.lanes
    if not made:
        return "failed", "outbox_lane is empty, nothing can be accepted: restore its rows"
    if wanted not in {None, made}:
        return "warning", f"{made}; LANES={wanted} is ignored, the number is fixed: set LANES={made}"
    return "ok", str(made)


class CommitSettings(NamedTuple):
    """What decides when a commit is acknowledged."""

    synchronous_commit: str
    standbys: str


# reset_val is what a session begins with; ours override `off`, see outbox.postgres.
SYNCHRONOUS_COMMIT = """
    SELECT reset_val, current_setting('synchronous_standby_names')
      FROM pg_settings
     WHERE name = 'synchronous_commit'
"""


def synchronous_commit(site: Site) -> Answer:
    """Look whether acknowledged commits outlive a crash, and a failover."""
    ((value, standbys),) = query(site.conn, args_row(CommitSettings), SYNCHRONOUS_COMMIT)
    if value == "off":
        return "warning", (
            "off for this server, database or role: our own sessions override it, but a crash may"
            " lose what others, as the API and the Runner, were told is done: set it to on"
        )
    if standbys and value == "local":
        return "warning", (
            "local, though there are synchronous standbys: a failover may lose what was"
            " acknowledged: set it to on"
        )
    waits = "waits for a synchronous standby" if standbys else "there is no synchronous standby"
    return "ok", f"{value}, {waits}"


def sessions(site: Site) -> Answer:
    """Look for a pooler, then take a session's lock and see it: lanes are owned by such locks."""
    try:
        is_direct = try_session_lock(site.conn)
    except TransactionPoolingDetected as error:
        return "failed", str(error)
    way = "directly connected" if is_direct else "through a pooler in session mode"
    return "ok", f"{way}; a session's advisory lock stays with it"


SERVER_TIME = "SELECT extract(epoch FROM clock_timestamp())::float8"


def clock(site: Site) -> Answer:
    """Compare the server's clock with ours; half of the round trip is not known."""
    before = time.time()
    there = scalar(site.conn, float, SERVER_TIME)
    after = time.time()
    skew, doubt = there - (before + after) / 2, (after - before) / 2
    text = f"{abs(skew):.3f} s {'ahead of' if skew > 0 else 'behind'} ours (± {doubt:.3f} s)"
    if abs(skew) - doubt <= CLOCK_WARNING_S:
        return "ok", text
    grave = abs(skew) - doubt > CLOCK_FAILED_S
    return "failed" if grave else "warning", f"{text}: let both hosts follow one time server (NTP)"
