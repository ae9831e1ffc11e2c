"""The settings: what is required, what is the default, and what is refused without quoting it."""

import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from unittest.mock import ANY

import pytest
from psycopg.conninfo import conninfo_to_dict

from orchestrator.config.environment import SettingsError, read_metrics_address
from orchestrator.config.settings import DEFAULT_SCHEMES, read_kafka_settings, read_settings
from outbox import Timings, with_overrides
from outbox.kafka_config import KEY_PARTITIONERS, LIMITED, REFUSED

REQUIRED = {"DATABASE_URL": "postgresql://host/db", "KAFKA_BOOTSTRAP_SERVERS": "kafka:9092"}


def faults_of(environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as error:
        read_settings(environ)
    assert str(error.value) == "\n".join(error.value.faults)
    return error.value.faults


def test_two_settings_are_required_and_all_others_have_these_defaults() -> None:
    assert asdict(read_settings(REQUIRED)) == {
        "database_url": ANY,
        "database_schema": "",
        "kafka": {
            "bootstrap.servers": "kafka:9092",
            "connections.max.idle.ms": "180000",
            "reconnect.backoff.max.ms": "1000",
        },
        "log_level": "INFO",
        "log_format": None,
        "consumer_group": "orchestrator-group",
        "input_topic": "init_scenario",
        "output_topic": "to_deploy",
        "dead_letter_topic": "init_scenario.dlq",
        "marker_topic": "outbox-markers",
        "relay_topics": frozenset(),
        "batch_size": 1000,
        "lanes": None,
        "max_message_bytes": 65536,
        "camera_url_schemes": tuple(DEFAULT_SCHEMES.split(",")),
        "metrics_host": "::",
        "metrics_port": 9464,
        "strict_fencing": False,
        "cloudevents": False,
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("LOG_LEVEL", "debug", "DEBUG"),
        ("LOG_FORMAT", "TEXT", "text"),
        ("CONSUMER_GROUP", "mine", "mine"),
        ("INPUT_TOPIC", "in.put_1-a", "in.put_1-a"),
        ("RELAY_TOPICS", "a.dlq, b,", frozenset({"a.dlq", "b"})),
        ("RELAY_TOPICS", " * ", frozenset("*")),
        ("BATCH_SIZE", " 7 ", 7),
        ("DATABASE_SCHEMA", "orchestrator", "orchestrator"),
        ("LANES", "7", 7),
        ("LANES", "64", 64),
        ("MAX_MESSAGE_BYTES", "64", 64),
        ("CAMERA_URL_SCHEMES", " RTSP , srt,", ("rtsp", "srt")),
        ("CAMERA_URL_SCHEMES", "*", ("*",)),
        ("METRICS_HOST", "127.0.0.1", "127.0.0.1"),
        ("METRICS_HOST", "[::1]", "::1"),
        ("METRICS_PORT", "0", 0),
        ("METRICS_PORT", "", 9464),
        ("METRICS_PORT", "  ", 9464),
        ("STRICT_FENCING", "True", True),
        ("STRICT_FENCING", "", False),
        ("CLOUDEVENTS", "true", True),
    ],
)
def test_a_setting_is_read_as_its_type_and_blank_counts_as_not_set(
    name: str, text: str, value: object
) -> None:
    assert getattr(read_settings(REQUIRED | {name: text}), name.lower()) == value


@pytest.mark.parametrize(
    "text",
    ["postgresql://user:a%20b@db:5433/name", "user=user password='a b' host=db port=5433 dbname=name"],
)
def test_a_database_is_named_by_a_url_or_by_keywords(text: str) -> None:
    assert conninfo_to_dict(read_settings(REQUIRED | {"DATABASE_URL": text}).database_url) == {
        "user": "user",
        "password": "a b",
        "host": "db",
        "port": "5433",
        "dbname": "name",
    }


def test_the_dead_letter_topic_is_named_after_the_input_topic() -> None:
    """So two installations with inputs of their own have dead-letter topics of their own."""
    assert read_settings(REQUIRED | {"INPUT_TOPIC": "orders"}).dead_letter_topic == "orders.dlq"
    of_another_name = REQUIRED | {"INPUT_TOPIC": "orders", "DEAD_LETTER_TOPIC": "letters"}
    assert read_settings(of_another_name).dead_letter_topic == "letters"
    (fault,) = faults_of(REQUIRED | {"INPUT_TOPIC": "t" * 248})
    assert fault.startswith("DEAD_LETTER_TOPIC ")


WRONG = {
    "DATABASE_SCHEMA": "My Schema",
    "LOG_LEVEL": "LOUD",
    "LOG_FORMAT": "xml",
    "CONSUMER_GROUP": "a\nb",
    "INPUT_TOPIC": "a topic",
    "OUTPUT_TOPIC": "..",
    "DEAD_LETTER_TOPIC": "t" * 250,
    "BATCH_SIZE": "0",
    "LANES": "65",
    "MAX_MESSAGE_BYTES": "63",
    "CAMERA_URL_SCHEMES": "rtsp://",
    "METRICS_PORT": "tcp://10.0.0.1:9464",
    "STRICT_FENCING": "yes",
    "CLOUDEVENTS": "binary",
}


@pytest.mark.parametrize(("name", "text"), WRONG.items())
def test_a_wrong_value_is_an_error_that_names_the_variable(name: str, text: str) -> None:
    (fault,) = faults_of(REQUIRED | {name: text})
    assert fault.startswith(f"{name} ")


@pytest.mark.parametrize("number", ["1.5", "-1", "1e3", "0x10", "٣", "1_000", "9" * 5000])
def test_a_number_is_plain_digits(number: str) -> None:
    assert faults_of(REQUIRED | {"BATCH_SIZE": number}) == [
        "BATCH_SIZE must be a whole number from 1 to 100000"
    ]


@pytest.mark.parametrize("lanes", ["0", "65", "1024", "four"])
def test_more_lanes_than_a_relay_can_work_at_full_speed_are_refused_with_the_reason(lanes: str) -> None:
    (fault,) = faults_of(REQUIRED | {"LANES": lanes})
    assert fault.startswith(
        "LANES must be a whole number from 1 to 64: a relay publishes its lanes in one"
    )


def test_the_marker_topic_is_read_under_its_old_name_too_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for new, old in (({}, "old"), ({"MARKER_TOPIC": ""}, "old"), ({"MARKER_TOPIC": "old"}, "old")):
        caplog.clear()
        assert read_settings(REQUIRED | new | {"PROGRESS_TOPIC": old}).marker_topic == "old"
        (warning,) = caplog.records
        assert (warning.levelname, warning.getMessage()) == ("WARNING", "setting renamed")
        assert (vars(warning)["setting"], vars(warning)["use"]) == ("PROGRESS_TOPIC", "MARKER_TOPIC")


@pytest.mark.parametrize("environ", [{}, {"MARKER_TOPIC": "new"}, {"PROGRESS_TOPIC": " "}])
def test_nothing_is_said_of_a_marker_topic_under_its_name(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    read_settings(REQUIRED | environ)
    assert not caplog.records


def test_the_old_name_of_the_marker_topic_may_not_contradict_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "topic"
    file.write_text("old")
    for old in ({"PROGRESS_TOPIC": "old"}, {"PROGRESS_TOPIC_FILE": str(file)}):
        assert faults_of(REQUIRED | {"MARKER_TOPIC": "new"} | old) == [
            "PROGRESS_TOPIC is the old name of MARKER_TOPIC, and both are set: keep MARKER_TOPIC"
        ]
    (fault,) = faults_of(REQUIRED | {"PROGRESS_TOPIC": "a topic"})
    assert fault.startswith("PROGRESS_TOPIC is no topic name")


def test_all_errors_are_reported_at_once() -> None:
    named = [fault.split()[0] for fault in faults_of(WRONG | {"KAFKA_CONFIG_NO_SUCH": "x"})]
    assert sorted(named) == sorted([*WRONG, *REQUIRED, "KAFKA_CONFIG_NO_SUCH"])


def test_topics_must_differ() -> None:
    faults = faults_of(REQUIRED | {"OUTPUT_TOPIC": "init_scenario", "MARKER_TOPIC": "init_scenario"})
    assert faults == [
        "OUTPUT_TOPIC must differ from INPUT_TOPIC",
        "MARKER_TOPIC must differ from OUTPUT_TOPIC",
    ]
    (fault,) = faults_of(REQUIRED | {"RELAY_TOPICS": "a,markers", "MARKER_TOPIC": "markers"})
    assert fault.startswith("RELAY_TOPICS must not name MARKER_TOPIC")


# ---- NAME_FILE ------------------------------------------------------------------------------------


def test_any_setting_may_come_from_a_file(tmp_path: Path) -> None:
    environ = {"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092"}
    for name, text in (
        ("DATABASE_URL", "postgresql://host/db\n"),
        ("LANES", "7\n"),
        ("KAFKA_CONFIG_SASL_PASSWORD", "from a file\n"),
    ):
        (tmp_path / name).write_text(text)
        environ[f"{name}_FILE"] = str(tmp_path / name)
    settings = read_settings(environ)
    assert conninfo_to_dict(settings.database_url) == {"host": "host", "dbname": "db"}
    assert settings.lanes == 7
    assert settings.kafka["sasl.password"] == "from a file"


def test_a_setting_and_its_file_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "lanes").write_text("7")
    assert faults_of(REQUIRED | {"LANES": "7", "LANES_FILE": str(tmp_path / "lanes")}) == [
        "LANES and LANES_FILE are both set: keep one of them"
    ]


@pytest.mark.parametrize(
    ("content", "error"), [(None, "FileNotFoundError"), (b"\xff", "UnicodeDecodeError")]
)
def test_a_file_that_cannot_be_read_is_one_fault(
    tmp_path: Path, content: bytes | None, error: str
) -> None:
    if content:
        (tmp_path / "url").write_bytes(content)
    environ = {"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", "DATABASE_URL_FILE": str(tmp_path / "url")}
    assert faults_of(environ)[0] == f"DATABASE_URL_FILE cannot be read: {error}"


# ---- KAFKA_CONFIG_* -------------------------------------------------------------------------------


def test_kafka_config_variables_become_librdkafka_properties() -> None:
    environ = {
        "KAFKA_CONFIG_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_CONFIG_SASL_MECHANISM": "PLAIN",
        "KAFKA_CONFIG_SASL_USERNAME": "user",
        "KAFKA_CONFIG_SASL_PASSWORD": "pw",
        "KAFKA_CONFIG_SOCKET_KEEPALIVE_ENABLE": "true",
        "KAFKA_CONFIG_CONNECTIONS_MAX_IDLE_MS": "60000",
    }
    assert read_settings(REQUIRED | environ).kafka == {
        "bootstrap.servers": "kafka:9092",
        "connections.max.idle.ms": "60000",
        "reconnect.backoff.max.ms": "1000",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "user",
        "sasl.password": "pw",
        "socket.keepalive.enable": "true",
    }


SASL = {"SECURITY_PROTOCOL": "SASL_SSL"}


@pytest.mark.parametrize(
    ("properties", "fault"),
    [
        (SASL | {"SASL_MECHANISM": "NONE"}, "*: Unsupported SASL mechanism: ***"),
        (SASL | {"SASL_MECHANISM": "PLAIN"}, "*: sasl.username and sasl.password must be set"),
        (SASL, "SASL_MECHANISM is not set: "),
        # the relay's producers alone complain, one of them those of its barriers
        ({"SOCKET_TIMEOUT_MS": "20000"}, "SOCKET_TIMEOUT_MS: `socket.timeout.ms` must be set <= "),
        ({"SOCKET_TIMEOUT_MS": "8000"}, "SOCKET_TIMEOUT_MS: `socket.timeout.ms` must be set <= "),
        ({"LINGER_MS": "900000"}, "LINGER_MS: `message.timeout.ms` must be greater than "),
        # the consumer alone
        ({"MAX_POLL_INTERVAL_MS": "5000"}, "MAX_POLL_INTERVAL_MS: `max.poll.interval.ms`must be >= "),
        ({"FETCH_MAX_BYTES": "10"}, "FETCH_MAX_BYTES: `fetch.max.bytes` must be >= "),
        ({"RECEIVE_MESSAGE_MAX_BYTES": "1000"}, "RECEIVE_MESSAGE_MAX_BYTES: `receive.message.max.b"),
        # none, and the member is thrown out of its group again and again
        ({"HEARTBEAT_INTERVAL_MS": "6000"}, "HEARTBEAT_INTERVAL_MS: `heartbeat.interval.ms` must be "),
    ],
)
def test_properties_that_do_not_go_together_are_one_fault(
    properties: dict[str, str], fault: str
) -> None:
    environ = {f"KAFKA_CONFIG_{name}": value for name, value in properties.items()}
    (found,) = faults_of(REQUIRED | environ)
    assert found.startswith(f"KAFKA_CONFIG_{fault}")


def test_a_trial_of_the_properties_connects_to_nothing_and_says_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        read_settings(REQUIRED | {"KAFKA_BOOTSTRAP_SERVERS": address, "KAFKA_CONFIG_DEBUG": "all"})
        server.settimeout(0.5)
        with pytest.raises(TimeoutError):
            server.accept()
    assert capfd.readouterr().err == ""


# ---- KAFKA_BOOTSTRAP_SERVERS ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("kafka:9092", "kafka:9092"),
        (" a:1 , b.c-d_e:65535 ", "a:1,b.c-d_e:65535"),
        ("[::1]:9092,[fe80::1%eth0]:9092", "[::1]:9092,[fe80::1%eth0]:9092"),
        ("plaintext://10.0.0.1:9092", "10.0.0.1:9092"),
    ],
)
def test_brokers_are_named_by_host_and_port(text: str, addresses: str) -> None:
    kafka = read_settings(REQUIRED | {"KAFKA_BOOTSTRAP_SERVERS": text}).kafka
    assert kafka["bootstrap.servers"] == addresses


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "SASL_SSL://kafka:9093",
            "but the clients speak PLAINTEXT: set KAFKA_CONFIG_SECURITY_PROTOCOL",
        ),
        ("kafka:9092,ssl://kafka:9093", "has an address with SSL://, but the clients speak PLAINTEXT"),
        ("kafka://kafka:9092", "has an address with kafka://"),
        ("http://kafka:9092", "has an address with http://"),
        ('"kafka:9092"', "is quoted"),
        ("'kafka:9092'", "is quoted"),
        ("kafka", "has kafka, without a port: write kafka:9092"),
        ("[::1]", "has [::1], without a port: write [::1]:9092"),
        ("kafka:9092,b", "has b, without a port: write b:9092"),
        *((f"kafka:{port}", "has kafka with a port") for port in ("", "abc", "0", "70000", "+1", "٣")),
        ("kafka:9092/", "has kafka with a port"),
        *((text, "has an empty address") for text in ("a:1,", ",a:1", "a:1,,b:2", ",", "ssl://")),
        *((text, "write an address of IPv6 as [::1]:9092") for text in ("::1", "::1:9092")),
        *((text, "that is not host:port") for text in ("a:1 b:2", "a b:1", "a;1", "häst:1", ":9092")),
    ],
)
def test_an_address_that_leads_nowhere_is_refused_at_once(text: str, fault: str) -> None:
    (found,) = faults_of(REQUIRED | {"KAFKA_BOOTSTRAP_SERVERS": text})
    assert found.startswith("KAFKA_BOOTSTRAP_SERVERS ")
    assert fault in found


def test_a_protocol_before_an_address_is_the_one_that_the_clients_speak() -> None:
    sasl = {"SECURITY_PROTOCOL": "sasl_plaintext", "SASL_MECHANISM": "PLAIN"}
    sasl |= {"SASL_USERNAME": "user", "SASL_PASSWORD": "pw"}
    environ = REQUIRED | {f"KAFKA_CONFIG_{name}": value for name, value in sasl.items()}
    kafka = read_settings(environ | {"KAFKA_BOOTSTRAP_SERVERS": "SASL_PLAINTEXT://kafka:9092"}).kafka
    assert kafka["bootstrap.servers"] == "kafka:9092"
    (fault,) = faults_of(environ | {"KAFKA_BOOTSTRAP_SERVERS": "SASL_SSL://kafka:9093"})
    assert "SASL_SSL://, but the clients speak SASL_PLAINTEXT" in fault


# ---- OUTBOX_TIMINGS -------------------------------------------------------------------------------

NO_TIMINGS = ["{", "[]", "5", "null", '{"poll_s": "1"}', '{"poll_s": true}', '{"poll_s": NaN}']


@pytest.mark.parametrize("text", [*NO_TIMINGS, '{"poll_s": -1}', '{"poll_s": 1e999}', '{"a":' * 5000])
def test_timings_that_are_no_object_of_seconds_are_refused(text: str) -> None:
    (fault,) = faults_of(REQUIRED | {"OUTBOX_TIMINGS": text})
    assert fault.startswith("OUTBOX_TIMINGS must be a JSON object of seconds")
    with pytest.raises(ValueError, match="OUTBOX_TIMINGS must be"):
        with_overrides(Timings(), {"OUTBOX_TIMINGS": text})


def test_timings_that_no_process_has_are_refused_by_name() -> None:
    timings = '{"poll_s": 1, "stalled_s": 60, "kafka_call_s": 2.5, "pol_s": 1}'
    (fault,) = faults_of(REQUIRED | {"OUTBOX_TIMINGS": timings})
    assert fault.startswith("OUTBOX_TIMINGS has no field 'pol_s': one of commit_offsets_s, ")
    assert with_overrides(Timings(), {"OUTBOX_TIMINGS": timings}).kafka_call_s == 2.5


# No variable leads to these: each `_` becomes a dot.
NO_VARIABLE = {"enabled_events", "log_level", "on_delivery"}


@pytest.mark.parametrize("prop", sorted(REFUSED.keys() - NO_VARIABLE - {"group.id"}))
@pytest.mark.parametrize("spelling", [str.upper, str.lower])
@pytest.mark.parametrize("prefix", ["", "topic_"])
def test_a_property_that_the_guarantee_depends_on_cannot_be_set(
    prop: str, spelling: Callable[[str], str], prefix: str
) -> None:
    name = "KAFKA_CONFIG_" + spelling(prefix + prop.replace(".", "_"))
    (fault,) = faults_of(REQUIRED | {name: "all"})
    assert fault == f"{name} must not be set: {REFUSED[prop]}"


@pytest.mark.parametrize("prop", sorted(NO_VARIABLE))
def test_a_refused_property_with_an_underscore_is_no_property_as_a_variable(prop: str) -> None:
    (fault,) = faults_of(REQUIRED | {f"KAFKA_CONFIG_{prop.upper()}": "1"})
    assert "is no property of librdkafka" in fault


@pytest.mark.parametrize(
    ("prop", "value"),
    [
        *(("partitioner", value) for value in ("random", "RANDOM", "murmur2,random", "")),
        *((prop, "6") for prop in LIMITED if prop.startswith("max.in.flight")),
        *((prop, "0") for prop in LIMITED if prop.endswith("retries")),
    ],
)
@pytest.mark.parametrize("prefix", ["", "TOPIC_"])
def test_a_value_with_which_order_is_lost_is_refused(prop: str, value: str, prefix: str) -> None:
    name = f"KAFKA_CONFIG_{prefix}{prop.upper().replace('.', '_')}"
    (fault,) = faults_of(REQUIRED | {name: value})
    assert fault == f"{name} must be {LIMITED[prop][1]}"


@pytest.mark.parametrize(
    ("prop", "value"),
    [
        *(("partitioner", value) for value in KEY_PARTITIONERS),
        *((prop, value) for prop in LIMITED if prop.startswith("max.in.flight") for value in "15"),
        *((prop, "1") for prop in LIMITED if prop.endswith("retries")),
    ],
)
def test_a_value_that_keeps_the_order_is_accepted(prop: str, value: str) -> None:
    name = f"KAFKA_CONFIG_{prop.upper().replace('.', '_')}"
    assert read_settings(REQUIRED | {name: value}).kafka[prop] == value


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("KAFKA_CONFIG_BOOTSTRAP_SERVERS", "KAFKA_BOOTSTRAP_SERVERS"),
        ("KAFKA_CONFIG_METADATA_BROKER_LIST", "KAFKA_BOOTSTRAP_SERVERS"),
        ("KAFKA_CONFIG_GROUP_ID", "CONSUMER_GROUP"),
    ],
)
def test_a_property_with_a_setting_of_its_own_is_an_error_that_names_it(
    name: str, instead: str
) -> None:
    assert faults_of(REQUIRED | {name: "x"}) == [f"{name} must not be set: use {instead}"]


@pytest.mark.parametrize("word", ["private.key", "jwt.template"])
def test_a_property_may_be_called_file_and_come_from_a_file(word: str, tmp_path: Path) -> None:
    prop = f"sasl.oauthbearer.assertion.{word}.file"
    name = "KAFKA_CONFIG_" + prop.upper().replace(".", "_")
    assert read_settings(REQUIRED | {name: "/no/such/file"}).kafka[prop] == "/no/such/file"
    (tmp_path / "path").write_text("/no/such/file")
    environ = {f"{name}_FILE": str(tmp_path / "path")}
    assert read_settings(REQUIRED | environ).kafka[prop] == "/no/such/file"


def test_a_forbidden_property_cannot_be_set_from_a_file_either(tmp_path: Path) -> None:
    (tmp_path / "acks").write_text("0")
    (fault,) = faults_of(REQUIRED | {"KAFKA_CONFIG_ACKS_FILE": str(tmp_path / "acks")})
    assert fault.startswith("KAFKA_CONFIG_ACKS_FILE must not be set: ")


def test_an_unknown_property_and_a_wrong_value_are_different_errors() -> None:
    assert faults_of(REQUIRED | {"KAFKA_CONFIG_NO_SUCH": "1", "KAFKA_CONFIG_LINGER_MS": "soon"}) == [
        "KAFKA_CONFIG_LINGER_MS is no valid value of linger.ms",
        "KAFKA_CONFIG_NO_SUCH is no property of librdkafka (no.such)",
    ]


def test_variables_that_kubernetes_injects_are_ignored() -> None:
    injected = {
        "KAFKA_PORT": "tcp://10.0.0.1:9092",
        "KAFKA_SERVICE_HOST": "10.0.0.1",
        "KAFKA_PORT_9092_TCP_PROTO": "tcp",
    }
    assert read_settings(REQUIRED | injected) == read_settings(REQUIRED)


# ---- secrets --------------------------------------------------------------------------------------

PLANTED = "S3CRET"


@pytest.mark.parametrize(
    "environ",
    [
        *({name: PLANTED} for name in ("LOG_LEVEL", "LOG_FORMAT", "BATCH_SIZE", "LANES")),
        *({name: PLANTED} for name in ("MAX_MESSAGE_BYTES", "METRICS_PORT")),
        *({name: f"{PLANTED} \x00"} for name in ("INPUT_TOPIC", "CONSUMER_GROUP", "METRICS_HOST")),
        {"KAFKA_BOOTSTRAP_SERVERS": f"{PLANTED}\n{PLANTED}"},
        {"KAFKA_BOOTSTRAP_SERVERS": f"SASL_SSL://user:{PLANTED}@kafka:9092"},
        {"KAFKA_BOOTSTRAP_SERVERS": f"user:{PLANTED}@kafka"},
        {"CAMERA_URL_SCHEMES": f"rtsp://{PLANTED}"},
        {"DATABASE_URL": f"postgresql://user:{PLANTED}@host:no-port/db?nonsense"},
        {"DATABASE_URL": f"postgresql://user:{PLANTED}@[host/db"},
        {"DATABASE_URL": f"postgresql://user:pa@{PLANTED}@host/db"},
        {"DATABASE_URL": f"postgresql://user:pa@ss:{PLANTED}@host/db"},
        {"DATABASE_URL": f"postgresql://user:{PLANTED}/ss@host/db"},
        {"DATABASE_URL": f"postgresql://user:12/{PLANTED}@host/db"},
        {"DATABASE_URL": f"host=db password='{PLANTED}"},
        {"DATABASE_URL": f"host=db {PLANTED}"},
        {"DATABASE_URL": f"host=db no_such_word={PLANTED}"},
        {"DATABASE_URL_FILE": f"/no/such/{PLANTED}"},
        {"KAFKA_CONFIG_LINGER_MS": PLANTED},
        {"KAFKA_CONFIG_SECURITY_PROTOCOL": PLANTED},
        {"KAFKA_CONFIG_NO_SUCH": PLANTED},
        {"KAFKA_CONFIG_ACKS": PLANTED},
        {"KAFKA_CONFIG_SASL_PASSWORD": PLANTED, "LANES": "none"},
        {
            "KAFKA_CONFIG_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "KAFKA_CONFIG_SASL_MECHANISM": PLANTED,
            "KAFKA_CONFIG_SASL_PASSWORD": PLANTED,
        },
        {
            "KAFKA_CONFIG_SECURITY_PROTOCOL": "SSL",
            "KAFKA_CONFIG_SSL_CA_LOCATION": f"/no/such/{PLANTED}",
        },
        {"KAFKA_CONFIG_SECURITY_PROTOCOL": "SSL", "KAFKA_CONFIG_SSL_KEY_PEM": PLANTED},
    ],
    ids=lambda environ: " ".join(environ),
)
def test_no_fault_quotes_a_value(environ: dict[str, str]) -> None:
    required = {} if "DATABASE_URL_FILE" in environ else REQUIRED
    faults = faults_of(required | environ)
    assert faults
    assert PLANTED not in "\n".join(faults)


def test_settings_show_no_secret() -> None:
    secret = {
        "DATABASE_URL": f"postgresql://user:{PLANTED}@host/db",
        "KAFKA_CONFIG_SASL_PASSWORD": PLANTED,
    }
    settings = read_settings(REQUIRED | secret)
    assert PLANTED in settings.database_url
    assert PLANTED not in f"{settings} {settings!r}"


# ---- the smaller readers --------------------------------------------------------------------------


def test_submit_and_healthcheck_read_only_what_they_need() -> None:
    kafka, topic = read_kafka_settings({"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", "LANES": "none"})
    assert (kafka["bootstrap.servers"], topic) == ("kafka:9092", "init_scenario")
    assert read_metrics_address({"LANES": "none"}) == ("::", 9464)
    with pytest.raises(SettingsError, match="KAFKA_BOOTSTRAP_SERVERS is required"):
        read_kafka_settings({})
    with pytest.raises(SettingsError, match="METRICS_PORT must be"):
        read_metrics_address({"METRICS_PORT": "65535"})
