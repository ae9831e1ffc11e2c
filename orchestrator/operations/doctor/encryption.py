"""The checks of `doctor` on what crosses the network in the clear: passwords and camera URLs."""

import socket
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from orchestrator.config.kafka import variable_of
from orchestrator.operations.doctor.check import Installation, Result, combine

# What libpq verifies: https://www.postgresql.org/docs/current/libpq-ssl.html
UNVERIFIED = {
    "verify-ca": "the server's name is not compared with its certificate",
    "require": "the server's certificate is not verified",
}
VERIFY = "set sslmode=verify-full and sslrootcert in DATABASE_URL"
TOKEN_URL = "sasl.oauthbearer.token.endpoint.url"  # noqa: S105  # the name of a property


def is_local(host: str) -> bool:
    """Say whether what is sent to a host stays on this machine; a path is that of a Unix socket."""
    if host.startswith(("/", "@")):
        return True
    try:
        addresses = {ip_address(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return all(
        ((isinstance(one, IPv6Address) and one.ipv4_mapped) or one).is_loopback for one in addresses
    )


def postgres_encryption(installation: Installation) -> Result:
    """See that the session on Postgres is encrypted, and with whom."""
    conn = installation.conn
    mode = conn.info.get_parameters().get("sslmode", "prefer")
    return session_result(conn.info.hostaddr or conn.info.host, conn.pgconn.ssl_in_use, mode)


def session_result(host: str, is_encrypted: bool, sslmode: str) -> Result:
    """Return what to say of a session with a server on this host."""
    if is_local(host):
        return "ok", "not needed: the server is on this machine"
    if not is_encrypted:
        return "warning", f"nothing is encrypted, nor are passwords in camera URLs: {VERIFY}"
    if sslmode == "verify-full":
        return "ok", "encrypted, and the server is verified"
    why = UNVERIFIED.get(sslmode, "a session without encryption would be accepted, too")
    return "warning", f"encrypted with sslmode={sslmode}: {why}: {VERIFY}"


def kafka_encryption(installation: Installation) -> Result:
    """See that connections to the brokers are encrypted, and with whom."""
    are_local = all(is_local(node.host) for node in installation.brokers)
    faults = kafka_faults(installation.kafka, are_local=are_local)
    return combine(
        [("warning", one) for one in faults],
        "not needed: the brokers are on this machine"
        if are_local
        else "encrypted, and the brokers are verified",
    )


def kafka_faults(kafka: Mapping[str, str], *, are_local: bool = False) -> Iterable[str]:
    """Yield what is in the clear, or not verified, with these properties.

    are_local: the brokers are on this machine; the server that gives tokens may be elsewhere.
    """
    if not are_local:
        yield from _broker_faults(kafka)
    url = urlsplit(kafka.get(TOKEN_URL, ""))
    if url.scheme == "http" and not is_local(url.hostname or ""):
        yield f"the secret of the client is sent in the clear: set {variable_of(TOKEN_URL)}=https://..."


def _broker_faults(kafka: Mapping[str, str]) -> Iterable[str]:
    protocol = kafka.get("security.protocol", "plaintext").upper()
    if protocol not in {"SSL", "SASL_SSL"}:
        sasl = "SASL_" * protocol.startswith("SASL")
        yield (
            f"{protocol}: nothing is encrypted, nor are passwords in camera URLs: set"
            f" {variable_of('security.protocol')}={sasl}SSL"
        )
    elif kafka.get("enable.ssl.certificate.verification", "true").lower() == "false":
        yield (
            "the brokers' certificates are not verified: unset"
            f" {variable_of('enable.ssl.certificate.verification')}"
        )
    elif kafka.get("ssl.endpoint.identification.algorithm", "https").lower() == "none":
        yield (
            "the brokers' names are not compared with their certificates: unset"
            f" {variable_of('ssl.endpoint.identification.algorithm')}"
        )
