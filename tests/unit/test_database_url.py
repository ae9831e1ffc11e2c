"""DATABASE_URL: forms of other clients are refused with what to write instead; no value is quoted."""

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from orchestrator.config.database_url import parse_database_url
from orchestrator.observability.advice import connection_advice
from outbox import error_text, is_server_away

SECRET = "S3CRET"
URL = f"postgresql://user:{SECRET}@host/db"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"jdbc:{URL}?user=me", "is a URL of JDBC: write postgresql://USER:PASSWORD@HOST/DATABASE"),
        (f"JDBC:{URL}", "is a URL of JDBC"),
        (f"postgresql+psycopg://user:{SECRET}@host/db", "of SQLAlchemy.*without the driver"),
        (f"postgresql+asyncpg://user:{SECRET}@host/db?ssl=require", "of SQLAlchemy"),
        (f"postgis://user:{SECRET}@host/db", "a scheme that libpq does not know: write postgresql://"),
        (f"PSQL://user:{SECRET}@host/db", "a scheme that libpq does not know"),
        (f"mysql://user:{SECRET}@host/db?x=y", "a scheme that libpq does not know"),
        (f"'{URL}'", "quotes around it: remove them"),
        (f'"{URL}"', "quotes around it: remove them"),
        (f'{URL}"', "a quote at its end"),
        (f"postgresql://user:{SECRET}\n@host/db", "a line break in it"),
        (f"postgresql://user:50%{SECRET}@host/db", "a % that begins no code: write it as %25"),
        (f"postgresql://user:{SECRET}%@host/db", "write it as %25"),
        (f"postgresql://user:{SECRET}%00@host/db", "write it as %25"),
        (f"{URL}?schema=public", r"schema: set DATABASE_SCHEMA instead"),
        (f"{URL}?currentSchema=ours", r"currentSchema: set DATABASE_SCHEMA instead"),
        (f"{URL}?connection_limit=5&pgbouncer=true", r"connection_limit: remove it, pgbouncer: remove"),
        (f"{URL}?ssl=require", "ssl: write sslmode=require or sslmode=verify-full"),
        (f"{URL}?sslkey=pkcs11:{SECRET}", "has an engine of OpenSSL in sslkey, which is code"),
        (f"{URL}?sslmode=no-verify", "a value of sslmode that libpq refuses: write disable, prefer"),
        (f"host=host dbname=db password={SECRET} sslmode=yes", "a value of sslmode that libpq refuses"),
        (f"{URL}?channel_binding=on", "a value of channel_binding that libpq refuses"),
        (f"{URL}?ssl_min_protocol_version=1.2", "a value of ssl_min_protocol_version that"),
        (f"postgresql://user:{SECRET}@host:70000/db", "a port that is no number from 1 to 65535"),
        (f"postgresql://user:{SECRET}@one:5432,two:0/db", "a port that is no number from 1 to 65535"),
        ("service=no_such_service", "a value of service that libpq refuses"),
        (f"postgresql://user:{SECRET}@host", "names no database: write postgresql://"),
        (f"host=host user=user password={SECRET}", "names no database"),
        (f"{SECRET}", "is no connection string"),
    ],
)
def test_a_form_that_libpq_does_not_take_is_named_with_what_to_write(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        parse_database_url(text)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        URL,
        "postgres://host/db",
        f"postgresql://user:a?{SECRET}=x@host/db",
        "postgresql://one:5432,two:5433/db?target_session_attrs=read-write",
        "postgresql://[::1]:5432/db",
        "postgresql://user:%40%2F%3A%25@host/db?sslmode=verify-full&sslrootcert=/etc/ca.pem",
        "postgresql:///db?host=/var/run/postgresql",
        "postgresql://host/db?ssl=true",
        "postgresql://host/db?options=-c%20search_path%3Dours",
        "host=host dbname=db password='a b'",
        "host=one,two hostaddr=10.0.0.1,10.0.0.2 dbname=db",
    ],
)
def test_what_libpq_takes_is_taken(text: str) -> None:
    assert conninfo_to_dict(parse_database_url(text)) == conninfo_to_dict(text)


REFUSED = 'connection failed: connection to server at "127.0.0.1", port 5432 failed: '


@pytest.mark.parametrize(
    ("text", "away", "advice"),
    [
        (f'{REFUSED}FATAL:  password authentication failed for user "x"', False, "set user and"),
        (f"{REFUSED}fe_sendauth: no password supplied", False, "set user and password"),
        (f'{REFUSED}ВАЖНО:  пользователь "x" не прошёл проверку подлинности', False, None),
        (f'{REFUSED}FATAL:  database "x" does not exist', False, "create it with ENCODING"),
        (f'{REFUSED}FATAL:  role "x" does not exist', False, "create it, or name another"),
        (f'{REFUSED}FATAL:  no pg_hba.conf entry for host "::1"', False, "let pg_hba.conf"),
        (f"{REFUSED}FATAL:  sorry, too many clients already", False, "raise CONNECTION LIMIT"),
        (f'{REFUSED}FATAL:  too many connections for role "x"', False, "raise CONNECTION LIMIT"),
        (f"{REFUSED}FATAL:  remaining connection slots are reserved", False, "end other sessions"),
        (f'{REFUSED}FATAL:  database "x" is not currently accepting connections', False, "ALLOW_CONN"),
        (f'{REFUSED}FATAL:  permission denied for database "x"', False, "GRANT CONNECT"),
        (f"{REFUSED}session is read-only", False, "name the primary"),
        (f"{REFUSED}server does not support SSL, but SSL was required", False, "see sslmode"),
        (f"{REFUSED}FATAL:  unsupported startup parameter: options", False, "remove it from"),
        (f"{REFUSED}FATAL:  the database system is starting up", True, None),
        (f"{REFUSED}FATAL:  server login has been failing (server_login_retry)", True, None),
        (f"{REFUSED}Connection refused", True, None),
        ("connection timeout expired", True, None),
        ("[Errno -2] Name or service not known", True, None),
        ("server closed the connection unexpectedly", True, None),
        ("SSL error: unexpected eof while reading", True, None),
    ],
)
def test_a_server_that_answers_is_not_unreachable(text: str, away: bool, advice: str | None) -> None:
    assert is_server_away(psycopg.OperationalError(text)) == away
    if advice or not away:
        assert (advice or "None") in str(connection_advice(text))


def test_an_sqlstate_decides_where_there_is_one() -> None:
    errors = psycopg.errors
    assert is_server_away(errors.AdminShutdown())
    assert is_server_away(errors.ConnectionFailure())
    assert not is_server_away(errors.TooManyConnections())
    assert not is_server_away(errors.LockNotAvailable())
    assert not is_server_away(errors.QueryCanceled())
    assert not is_server_away(errors.InsufficientPrivilege())


def test_of_several_hosts_each_is_named() -> None:
    header = "\nMultiple connection attempts failed. All failures were:\n"
    attempts = "- host: 'a': FATAL:  password authentication failed\n- host: 'b': Connection refused"
    error = psycopg.OperationalError(f"connection failed{header}{attempts}")
    assert not is_server_away(error)
    assert error_text(error) == (
        "OperationalError: host: 'a': FATAL:  password authentication failed;"
        " host: 'b': Connection refused"
    )
