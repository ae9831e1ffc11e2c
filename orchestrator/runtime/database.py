"""Our sessions on the database, and what it must be before anything is created in it."""

import logging
import re
from typing import NamedTuple

from psycopg.rows import args_row
from psycopg.sql import SQL, Identifier

from orchestrator.config.settings import Settings
from outbox import Connection, DatabaseNotReady, Session, connect, query, scalar

log = logging.getLogger(__name__)

OLDEST_POSTGRES, NEWEST_POSTGRES = 14, 18  # as in the README's table of supported versions
SESSIONS_NEEDED = 5  # consumer, relay, its gauges, a command and the look for a pooler


def open_session(settings: Settings, name: str, *, statement_timeout_s: float = 0) -> Connection:
    """Open a session on the database of the settings, as `outbox.connect` does."""
    return connect(
        settings.database_url,
        name,
        schema=settings.database_schema,
        statement_timeout_s=statement_timeout_s,
    )


# ---- the server -----------------------------------------------------------------------------------


class ServerUnfit(DatabaseNotReady):
    """This server, or this database, cannot be used."""


SERVER_VERSION = "SELECT version()"
SERVER_ENCODING = "SHOW server_encoding"
# They speak the protocol, and lack advisory locks, SKIP LOCKED, or commits in the order of their locks.
OTHER_SERVERS = re.compile("CockroachDB|-YB-|Greenplum|Redshift|Materialize|openGauss|QuestDB")


def check_server(conn: Connection) -> None:
    """Raise ServerUnfit unless it is PostgreSQL, new enough, and the database's encoding is UTF8."""
    check_version(conn)
    check_encoding(conn)


def check_version(conn: Connection) -> None:
    """Raise ServerUnfit unless it is PostgreSQL, and new enough."""
    wanted = f"PostgreSQL {OLDEST_POSTGRES} or newer is needed"
    if other := other_server(scalar(conn, str, SERVER_VERSION)):
        raise ServerUnfit(f"the server says that it is {other}: {wanted}")
    if conn.info.server_version < OLDEST_POSTGRES * 10_000:
        raise ServerUnfit(f"{version_text(conn)}: {wanted}: upgrade the server")


def other_server(version: str) -> str | None:
    """Return what a server that only speaks like PostgreSQL says that it is; None: it is PostgreSQL."""
    if version.startswith("PostgreSQL ") and not OTHER_SERVERS.search(version):
        return None
    return version.split(" on ")[0]


def version_text(conn: Connection) -> str:
    """Return the server's version."""
    return ".".join(map(str, divmod(conn.info.server_version, 10_000)))


def check_encoding(conn: Connection) -> None:
    """Raise ServerUnfit unless the database can hold every text that a command may carry."""
    if (encoding := scalar(conn, str, SERVER_ENCODING)) != "UTF8":
        raise ServerUnfit(
            f"the database's encoding is {encoding}, which cannot hold all texts of commands: create a"
            " database with ENCODING 'UTF8' TEMPLATE template0"
        )


class ConnectionLimit(NamedTuple):
    """A limit of connections that is too low. owner: a role or a database."""

    owner: str
    limit: int


FIND_LIMITS = """
    SELECT owner, connection_limit
      FROM (SELECT 'ROLE ' || pg_catalog.quote_ident(rolname), rolconnlimit
              FROM pg_roles
             WHERE rolname = session_user
         UNION ALL
            SELECT 'DATABASE ' || pg_catalog.quote_ident(datname), datconnlimit
              FROM pg_database
             WHERE datname = current_database()
           ) AS limited (owner, connection_limit)
     WHERE connection_limit BETWEEN 0 AND %(needed)s - 1
       AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = session_user)
"""


def find_connection_limits(conn: Connection) -> list[ConnectionLimit]:
    """Return the limits under which one consumer, one relay and a command cannot all be connected."""
    return query(conn, args_row(ConnectionLimit), FIND_LIMITS, {"needed": SESSIONS_NEEDED})


# ---- the schema -----------------------------------------------------------------------------------


class SchemaPlace(NamedTuple):
    """Where our role would create a table; schema: None: nowhere."""

    role: str
    schema: str | None
    may_create: bool | None


FIND_SCHEMA = "SELECT pg_catalog.to_regnamespace(pg_catalog.quote_ident(%(schema)s)) IS NOT NULL"
MAY_CREATE_SCHEMA = "SELECT pg_catalog.has_database_privilege(current_database(), 'CREATE')"
CREATE_SCHEMA = SQL("CREATE SCHEMA {}")
FIND_PLACE = """
    SELECT pg_catalog.quote_ident(current_user), current_schema(),
           pg_catalog.has_schema_privilege(current_schema()::text, 'CREATE')
"""


def own_schema(conn: Connection) -> str:
    """Return the schema that DATABASE_SCHEMA names; "": none."""
    return conn.schema if isinstance(conn, Session) else ""


def create_schema(conn: Connection) -> None:
    """Create the schema that DATABASE_SCHEMA names, unless it is there. Raises DatabaseNotReady."""
    schema = own_schema(conn)
    if not schema or scalar(conn, bool, FIND_SCHEMA, {"schema": schema}):
        return
    if not scalar(conn, bool, MAY_CREATE_SCHEMA):
        role = query(conn, args_row(SchemaPlace), FIND_PLACE)[0].role
        raise ServerUnfit(
            f"schema {schema} is missing, and {role} may not create it: run CREATE SCHEMA {schema}"
            f" AUTHORIZATION {role}"
        )
    conn.execute(CREATE_SCHEMA.format(Identifier(schema)))


def check_place(conn: Connection) -> str:
    """Return the schema in which our role may create tables. Raises DatabaseNotReady."""
    (place,) = query(conn, args_row(SchemaPlace), FIND_PLACE)
    if place.schema is None:
        raise ServerUnfit(
            f"no schema of {place.role}'s search_path is there, or it may use none: set"
            f" DATABASE_SCHEMA, or run GRANT USAGE, CREATE ON SCHEMA public TO {place.role}"
        )
    if not place.may_create:
        raise ServerUnfit(
            f"{place.role} may create no table in schema {place.schema}: run as its owner GRANT CREATE"
            f" ON SCHEMA {place.schema} TO {place.role}, or set DATABASE_SCHEMA to a schema of ours"
        )
    return place.schema


class OpenSchema(NamedTuple):
    """A schema of the search_path in which every login may create functions.

    A statement would run one that fits better than Postgres's own. may_close: our role may revoke it.
    """

    schema: str
    may_close: bool

    @property
    def remedy(self) -> str:
        """Return the statement that closes it."""
        return f"REVOKE CREATE ON SCHEMA {self.schema} FROM PUBLIC"


# PostgreSQL 14, and each database that was upgraded from it, has a schema `public` like that.
FIND_OPEN = """
    SELECT pg_catalog.quote_ident(nspname), pg_catalog.pg_has_role(nspowner, 'USAGE')
      FROM pg_namespace
     WHERE nspname = ANY(pg_catalog.current_schemas(false)) AND nspname::text !~ '^pg_'
       AND pg_catalog.has_schema_privilege('public'::name, oid, 'CREATE')
     ORDER BY nspname
"""


def find_open_schemas(conn: Connection) -> list[OpenSchema]:
    """Return the schemas of our search_path in which every login may create functions, by name."""
    return query(conn, args_row(OpenSchema), FIND_OPEN)


def close_schemas(conn: Connection) -> list[OpenSchema]:
    """Revoke it where our role may; return the schemas that are still open."""
    for one in find_open_schemas(conn):
        if one.may_close:
            conn.execute(one.remedy.encode())
            log.warning("schema closed", extra={"statement": one.remedy})
    return find_open_schemas(conn)
