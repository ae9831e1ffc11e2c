"""What `doctor` says of connections that are in the clear, or to a server that is not verified."""

import pytest

from orchestrator.operations.doctor.encryption import is_local, kafka_faults, session_result

REMOTE, TOKEN_URL = "192.0.2.7", "sasl.oauthbearer.token.endpoint.url"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "/run/pg", "@pg"]
)
def test_an_address_of_this_machine_is_known(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize(
    "host", [REMOTE, "::ffff:192.0.2.7", "2001:db8::1", "0.0.0.0", "no.such.host.invalid", "a" * 300]
)
def test_an_address_of_another_machine_is_known(host: str) -> None:
    assert not is_local(host)


@pytest.mark.parametrize(
    ("host", "encrypted", "sslmode", "state", "words"),
    [
        (REMOTE, False, "disable", "warning", "nothing is encrypted"),
        (REMOTE, False, "prefer", "warning", "set sslmode=verify-full and sslrootcert"),
        (REMOTE, True, "prefer", "warning", "without encryption would be accepted"),
        (REMOTE, True, "allow", "warning", "without encryption would be accepted"),
        (REMOTE, True, "require", "warning", "certificate is not verified"),
        (REMOTE, True, "verify-ca", "warning", "name is not compared"),
        (REMOTE, True, "verify-full", "ok", "the server is verified"),
        ("127.0.0.1", False, "prefer", "ok", "on this machine"),
        ("/run/postgresql", False, "prefer", "ok", "on this machine"),
    ],
)
def test_a_session_on_postgres_is_judged(
    host: str, encrypted: bool, sslmode: str, state: str, words: str
) -> None:
    found, text = session_result(host, encrypted, sslmode)
    assert found == state
    assert words in text


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({}, "KAFKA_CONFIG_SECURITY_PROTOCOL=SSL"),
        ({"security.protocol": "plaintext"}, "KAFKA_CONFIG_SECURITY_PROTOCOL=SSL"),
        ({"security.protocol": "SASL_PLAINTEXT"}, "KAFKA_CONFIG_SECURITY_PROTOCOL=SASL_SSL"),
        ({"security.protocol": "sasl_ssl"}, ""),
        ({"security.protocol": "SSL", "enable.ssl.certificate.verification": "false"}, "not verified"),
        ({"security.protocol": "SSL", "ssl.endpoint.identification.algorithm": "none"}, "not compared"),
        ({"security.protocol": "SASL_SSL", TOKEN_URL: "http://192.0.2.9/token"}, "TOKEN_ENDPOINT_URL"),
        ({"security.protocol": "SASL_SSL", TOKEN_URL: "http://[::1]/token"}, ""),
        ({"security.protocol": "SASL_SSL", TOKEN_URL: "https://192.0.2.9/token"}, ""),
    ],
)
def test_properties_of_kafka_are_judged(properties: dict[str, str], words: str) -> None:
    found = list(kafka_faults(properties))
    assert len(found) == bool(words)
    assert words in "".join(found)


def test_a_token_is_fetched_in_the_clear_whatever_the_brokers_are() -> None:
    properties = {"security.protocol": "SASL_PLAINTEXT", TOKEN_URL: "http://192.0.2.9/token"}
    (fault,) = kafka_faults(properties, are_local=True)
    assert "TOKEN_ENDPOINT_URL" in fault
    assert not [*kafka_faults({}, are_local=True)]
