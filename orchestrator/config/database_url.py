"""DATABASE_URL: what is accepted, and what to write instead of the forms of other clients.

libpq is asked, without a network. No fault quotes a value: a password with an @, / or ? that is not
encoded would be in the host, the port or the name of a parameter.
"""

import os
import re

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

EXAMPLE = "postgresql://USER:PASSWORD@HOST/DATABASE"
SCHEMES = ("postgresql://", "postgres://")  # those of libpq
JDBC, SQLALCHEMY = (
    re.compile("jdbc:", re.IGNORECASE),
    re.compile(r"[a-z]+\+[a-z0-9]+://", re.IGNORECASE),
)
SCHEME = re.compile(r"[a-z][a-z0-9_]*://", re.IGNORECASE)
BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
URL_PARAMETER = re.compile(r"[?&]([A-Za-z_]+)=")
PORT_LIST, PORTS = re.compile(r"[0-9,]*"), frozenset(map(str, range(1, 65_536)))
SCHEMA_NAME = re.compile(r"(?!pg_|information_schema$)[a-z_][a-z0-9_]{0,62}")

# Parameters of other clients' URLs, and what to do about each.
USE_SCHEMA, USE_SSLMODE = "set DATABASE_SCHEMA instead", "write sslmode=require or sslmode=verify-full"
FOREIGN_PARAMETERS = {
    **dict.fromkeys(("schema", "currentSchema", "search_path"), USE_SCHEMA),
    **dict.fromkeys(("ssl", "sslaccept", "use_ssl", "tls"), USE_SSLMODE),
    **dict.fromkeys(
        (
            *("connection_limit", "pgbouncer", "pool_timeout", "socket_timeout", "sslidentity"),
            *("statement_cache_size", "prepared_statement_cache_size", "command_timeout", "charset"),
            *("encoding", "pool_size", "max_overflow", "pool_pre_ping", "conn_max_age", "stringtype"),
            *("prepareThreshold", "reWriteBatchedInserts", "ApplicationName", "loginTimeout"),
            *("uselibpqcompat", "pool_max_conns", "default_query_exec_mode", "serverVersion"),
        ),
        "remove it",
    ),
}


def parse_database_url(text: str) -> str:
    """Accept what libpq accepts, once it names a database."""
    if text.startswith(SCHEMES) and (not text.isprintable() or text[-1] in "'\""):
        raise ValueError("has a quote at its end, or a line break in it: remove it")
    try:
        found = conninfo_to_dict(text)
    except psycopg.ProgrammingError:
        raise ValueError(reason_of_refusal(text)) from None
    parts = {name: str(value) for name, value in found.items() if value is not None}
    # A password with a bare @ or / ends too early: its rest would be in the host, and so in errors.
    host, database, ports = (parts.get(part, "") for part in ("host", "dbname", "port"))
    if "://" in text and ("@" in host + database or not PORT_LIST.fullmatch(ports)):
        raise ValueError("is ambiguous: in user and password write @ as %40 and / as %2F")
    if not all(port in PORTS for port in ports.split(",") if port):
        raise ValueError("has a port that is no number from 1 to 65535")
    if not {"dbname", "service"} & parts.keys() and not {"PGDATABASE", "PGSERVICE"} & os.environ.keys():
        raise ValueError(f"names no database: write {EXAMPLE}")
    if ":" in parts.get("sslkey", ""):
        raise ValueError("has an engine of OpenSSL in sslkey, which is code: name a file")
    if options := refused_options(parts):
        advice = "write disable, prefer, require, verify-ca or verify-full"
        advice = f": {advice}" if options == ["sslmode"] else ""
        raise ValueError(f"has a value of {' or '.join(options)} that libpq refuses{advice}")
    return make_conninfo("", **parts)


def reason_of_refusal(text: str) -> str:
    """Return what is wrong with a text that is no connection string, and what to write instead."""
    if text[0] in "'\"":
        return "has quotes around it: remove them"
    if JDBC.match(text):
        return f"is a URL of JDBC: write {EXAMPLE}"
    if SQLALCHEMY.match(text):
        return f"is a URL of SQLAlchemy: write {EXAMPLE}, without the driver"
    if text.startswith(SCHEMES):
        if BAD_PERCENT.search(text):
            return "has a % that begins no code: write it as %25"
        known = [name for name in URL_PARAMETER.findall(text) if name in FOREIGN_PARAMETERS]
        if known:
            advice = ", ".join(f"{name}: {FOREIGN_PARAMETERS[name]}" for name in known)
            return f"has parameters that only other clients know ({advice})"
    elif SCHEME.match(text):
        return f"has a scheme that libpq does not know: write {EXAMPLE}"
    return f"is no connection string: write {EXAMPLE}"


def refused_options(parts: dict[str, str]) -> list[str]:
    """Return the options of whose values libpq complains before it connects; here to nowhere."""
    nowhere = {"host": "/nowhere", "hostaddr": "", "port": "5432"}
    conn = pq.PGconn.connect_start(make_conninfo("", **parts | nowhere).encode())
    complaint = conn.error_message.decode(errors="replace")
    conn.finish()
    if nowhere["host"] in complaint:  # that it is not there
        return []
    return [name for name in parts if re.search(rf"\b{name}\b", complaint)] or ["an option"]


def parse_schema(text: str) -> str:
    """Accept the name of a schema that needs no quotes; "" stands for a variable that is not set."""
    if text and not SCHEMA_NAME.fullmatch(text):
        raise ValueError("is no name of a schema of ours: use a-z, 0-9 and _, a letter first")
    return text
