"""The contract in schema/ says what the processes really accept and what they really produce."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
import yaml
from confluent_kafka import Message as Record
from hypothesis import given
from hypothesis import settings as bounded
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from orchestrator.config.settings import DEFAULT_LANES, read_settings
from orchestrator.contract.messages import HAS_FORBIDDEN, InvalidReason
from testkit.empty_installation import run_command
from testkit.eventually import eventually
from testkit.system import System
from tests.unit import test_messages as examples

SCHEMA = Path(__file__).parents[2] / "schema"
FILES = {file.name: json.loads(file.read_text()) for file in (SCHEMA / "messages").iterdir()}
ASYNCAPI = yaml.safe_load((SCHEMA / "asyncapi.yaml").read_text())
REGISTRY: Registry[Any] = Registry().with_resources(
    (name, DRAFT202012.create_resource(document))
    for name, document in {**FILES, "asyncapi.yaml": ASYNCAPI}.items()
)
DEFAULTS = read_settings({"DATABASE_URL": "dbname=any", "KAFKA_BOOTSTRAP_SERVERS": "any:9092"})
FORMATS = FormatChecker(["uuid"])
WORKS_S = 45  # for what takes a consumer and a relay a moment


@FORMATS.checks("date-time", raises=ValueError)
def is_date_time(text: object) -> bool:
    """Say whether it is a time in UTC (RFC 3339)."""
    return datetime.fromisoformat(str(text)).tzinfo is UTC and str(text).endswith("Z")


@FORMATS.checks("uri-reference")
def is_uri_reference(text: object) -> bool:
    """Say whether it is a reference to a path (RFC 3986), the only kind that stands in the contract."""
    return re.fullmatch(r"(/[\w.~-]+)+", str(text), re.ASCII) is not None


def validator(schema: Mapping[str, Any]) -> Draft202012Validator:
    """Return what checks a value by a schema, formats too."""
    return Draft202012Validator(schema, registry=REGISTRY, format_checker=FORMATS)


COMMAND, ORDER, LETTER = (
    validator(FILES[f"{name}.schema.json"]) for name in ("command", "deploy-order", "dead-letter")
)
MARKER = validator({"$ref": "asyncapi.yaml#/components/messages/marker/payload"})


@pytest.mark.parametrize("name", FILES)
def test_a_schema_is_one_and_its_examples_are_valid(name: str) -> None:
    schema = FILES[name]
    Draft202012Validator.check_schema(schema)
    assert schema["examples"]
    for example in schema["examples"]:
        validator(schema).validate(example)


def parts(of: object) -> Iterator[dict[str, Any]]:
    """Yield every object in a document, itself included."""
    if isinstance(of, dict):
        yield of
    for inner in of.values() if isinstance(of, dict) else of if isinstance(of, list) else ():
        yield from parts(inner)


def test_every_format_is_checked_here() -> None:
    used = {part["format"] for part in parts([ASYNCAPI, FILES]) if isinstance(part.get("format"), str)}
    assert used == {"uuid", "date-time", "uri-reference"}
    assert used == FORMATS.checkers.keys() & used
    for form in used:
        assert not FORMATS.conforms("no such thing", form)


# ---- commands --------------------------------------------------------------------------------------


def read_strictly(value: bytes | None) -> object:
    """Return the JSON in a value. Raises ValueError, also for what Python alone calls JSON."""

    def refuse(name: str) -> object:
        raise ValueError(name)

    text = (value or b"").decode("utf-8")
    try:
        # A number may be longer than Python reads; its value does not matter.
        return json.loads(text, parse_constant=refuse, parse_int=float)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_valid_command(value: bytes | None) -> bool:
    """Say whether a value is a command by the schema."""
    try:
        return COMMAND.is_valid(read_strictly(value))
    except ValueError:
        return False


def is_accepted(value: bytes | None) -> bool:
    """Say whether a value is a command by the parser."""
    return not isinstance(examples.outcome(value), InvalidReason)


GOOD = {
    **{name: examples.command(json.dumps(url).encode()) for name, url in examples.GOOD_URLS.items()},
    **examples.TOLERATED,
    "no hyphens": examples.scenario(examples.SCENARIO.hex),
    "upper case": examples.scenario(str(examples.SCENARIO).upper()),
    "longest": examples.sized(examples.LIMIT),
}
BAD = dict(zip(examples.NAMES, (value for value, _ in examples.FIXED_LIST), strict=True))

# As the schema's description says: what is no JSON at all, and what is no text when it is read.
ONLY_THE_PARSER_REFUSES = {
    "one byte too long",
    *(f"lone surrogate: {name}" for name in examples.LONE_SURROGATES),
}
ONLY_THE_PARSER_TAKES = {
    "no UTF-8 in a string that is ignored": b'{"x":"\xff",' + examples.command()[1:],
    "no UTF-8 in a name that is ignored": b'{"\xed\xa0\x80":1,' + examples.command()[1:],
}


def test_the_schema_accepts_what_the_parser_accepts() -> None:
    assert [name for name, value in GOOD.items() if not is_accepted(value)] == []
    assert [name for name, value in GOOD.items() if not is_valid_command(value)] == []
    for value in ONLY_THE_PARSER_TAKES.values():  # what is no JSON, no schema can speak of
        assert is_accepted(value)
        assert not is_valid_command(value)


def test_the_schema_rejects_what_the_parser_rejects_except_what_it_cannot_express() -> None:
    assert [name for name, value in BAD.items() if is_accepted(value)] == []
    assert {name for name, value in BAD.items() if is_valid_command(value)} == ONLY_THE_PARSER_REFUSES


uuids = st.uuids().map(str) | st.uuids().map(lambda one: one.hex.upper())
broken = st.tuples(uuids, st.integers(0, 36), st.text(max_size=2)).map(
    lambda made: made[0][: made[1]] + made[2] + made[0][made[1] :]
)
hosts = (
    st.text(max_size=8)
    | st.just("camera")
    | st.text("\x00\x1f \x7f\x85\xa0\u2028\ufeff/?#@x", max_size=3)
    | st.text("/?#@:[]-%25x", max_size=8)
)
urls = st.tuples(
    st.sampled_from(["rtsp", "RTSPS", "hTtp", "srt", "File", "v4l2", "ftp", "", "rtspx"]), hosts
).map(lambda made: f"{made[0]}://{made[1]}")
paths = st.text("/. \n:@x", max_size=4).map(lambda text: f"/{text}")
objects = st.fixed_dictionaries(
    {},
    optional={
        "scenario_uuid": uuids | broken | examples.json_values,
        "camera_url": urls | paths | st.just("rtsp://camera/1") | examples.json_values,
        "more": examples.json_values,
    },
)


@given((objects | examples.json_values).map(lambda made: json.dumps(made).encode()))
@bounded(max_examples=300, deadline=None)
def test_schema_and_parser_agree_on_any_json(value: bytes) -> None:
    assert is_valid_command(value) == is_accepted(value)


def test_schema_and_parser_forbid_the_same_characters() -> None:
    pattern = FILES["command.schema.json"]["$defs"]["camera_url"]["not"]["pattern"]
    others = [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]  # a surrogate is no character
    every = list(map(chr, others))
    assert [c for c in every if re.search(pattern, c)] == [c for c in every if HAS_FORBIDDEN(c)]


# ---- what the processes produce --------------------------------------------------------------------


DECODE: Mapping[str, Callable[[bytes], object]] = {
    "utf-8": bytes.decode,
    "signed big-endian, 4 bytes": lambda value: number(value, 4),
    "signed big-endian, 8 bytes": lambda value: number(value, 8),
}


def number(value: bytes, size: int) -> int:
    """Return a number as Java writes it."""
    assert len(value) == size
    return int.from_bytes(value, "big", signed=True)


def own_headers(record: Record) -> list[tuple[str, bytes]]:
    """Return a record's headers."""
    return cast("list[tuple[str, bytes]]", record.headers() or [])


def headers_of(record: Record, schema: Mapping[str, Any]) -> dict[str, object]:
    """Return the headers that a schema knows, decoded as it says; the last of a name counts."""
    last = dict(own_headers(record))
    known = schema["properties"]
    return {
        name: DECODE[known[name].get("x-encoding", "utf-8")](value)
        for name, value in last.items()
        if name in known
    }


def headers_schema(name: str) -> Mapping[str, Any]:
    """Return the schema of a message's headers in asyncapi.yaml."""
    return cast("Mapping[str, Any]", ASYNCAPI["components"]["messages"][name]["headers"])


def validate_headers(name: str, headers: Mapping[str, object]) -> None:
    """Raise unless headers are as asyncapi.yaml says of a message."""
    validator({"$ref": f"asyncapi.yaml#/components/messages/{name}/headers"}).validate(headers)


TRACE = [("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
LONG = b"x" * 70_000
LETTERS = [
    b"no command",
    None,
    b"",
    b'{"scenario_uuid":1}',
    examples.url(b"ftp://c"),
    b"\xff\x00",
    LONG,
]


def work(system: System, **environ: str) -> tuple[list[Record], list[Record]]:
    """Let the real processes work on valid and invalid commands; return orders and dead letters."""
    sent = run_command(system.environ, "submit", "rtsp://user:pw@camera/1", "--count", "5")
    assert sent.returncode == 0, sent.stderr
    processes = [system.start(process, **environ) for process in ("consumer", "relay")]
    an_hour_ago = int(time.time() * 1000) - 3_600_000
    commands = [examples.command() for _ in range(3)]
    system.produce(*commands, key=b"key", headers=TRACE, timestamp=an_hour_ago)
    system.produce(*LETTERS, headers=[("own", b"\xff"), ("dlq-reason", b"older")])
    system.check_exactly_once(8)
    eventually(lambda: len(system.read(system.settings.dead_letter_topic)) == len(LETTERS), WORKS_S)
    for process in processes:
        process.stop()
    return system.read(system.settings.output_topic), system.read(system.settings.dead_letter_topic)


def test_the_processes_follow_the_contract(system: System) -> None:
    orders, letters = work(system)
    for record in orders:
        order = json.loads(record.value() or b"")
        ORDER.validate(order)
        assert record.value() == json.dumps(order, separators=(",", ":")).encode()
        assert list(order) == FILES["deploy-order.schema.json"]["required"]
        assert record.key() == order["scenario_uuid"].encode()
        assert {name for name, _ in own_headers(record)} <= {"traceparent", "tracestate", "message-id"}
        headers = headers_of(record, headers_schema("deployOrder"))
        validate_headers("deployOrder", headers)
        assert own_headers(record)[-1][0] == "message-id"
    assert sum(own_headers(record)[:-1] == TRACE for record in orders) == 3

    sent = {(r.partition(), r.offset()): r for r in system.read(system.settings.input_topic)}
    schema = FILES["dead-letter.schema.json"]
    for record in letters:
        headers = headers_of(record, schema)
        LETTER.validate(headers)
        truncated = {"dlq-origin-id", "dlq-truncated-value"} & headers.keys()
        assert headers.keys() - truncated == set(schema["required"])
        topic, partition, offset, time_ms = (
            headers[f"kafka_dlt-original-{part}"]
            for part in ("topic", "partition", "offset", "timestamp")
        )
        was = sent.pop(cast("tuple[int, int]", (partition, offset)))
        assert (was.topic(), was.timestamp()[1]) == (topic, time_ms)
        assert was.key() == record.key()
        assert bool(truncated) == (was.value() == LONG)
        assert record.value() == (LONG[:65_536] if truncated else was.value())
        assert not is_valid_command(was.value())
    assert len(letters) == len(LETTERS)
    assert len(sent) == len(orders)
    for record in sent.values():
        assert is_valid_command(record.value())
    ids = [dict(own_headers(record))["message-id"] for record in (*orders, *letters)]
    assert len(set(ids)) == len(orders) + len(letters)


def test_a_marker_is_a_record_of_the_marker_topic(system: System) -> None:
    work(system)
    ((identity,),) = system.query("SELECT identity FROM outbox_identity")
    found: dict[int | None, list[dict[str, Any]]] = {}
    for record in system.read(system.settings.marker_topic):
        if record.key() == b"probe":
            continue
        assert record.key() == f"marker {identity}".encode()
        marker = json.loads(record.value() or b"")
        MARKER.validate(marker)
        found.setdefault(record.partition(), []).append(marker)
    lanes = system.query("SELECT lane, batch_number, token::text FROM outbox_lane")
    assert {lane: (one[-1]["batch_number"], one[-1]["token"]) for lane, one in found.items()} == {
        lane: (number, token) for lane, number, token in lanes
    }


def test_a_retried_dead_letter_names_its_dead_letter(system: System) -> None:
    work(system)
    retried = run_command(system.environ, "dlq", "retry", "--reason", "url_scheme", "--yes")
    assert retried.returncode == 0, retried.stderr
    relay = system.start("relay")
    again = eventually(
        lambda: [
            headers
            for record in system.read(system.settings.input_topic)
            if "dlq-retry-of" in (headers := headers_of(record, headers_schema("command")))
        ],
        WORKS_S,
    )
    relay.stop()
    (headers,) = again
    validate_headers("command", headers)
    assert UUID(str(headers["message-id"]))
    topic_id, partition, offset = str(headers["dlq-retry-of"]).split(":")
    assert UUID(topic_id)
    assert partition.isdecimal()
    assert offset.isdecimal()


def test_with_cloudevents_an_order_is_an_event_too(system: System) -> None:
    source, by_default = (f"/orchestrator/{s.input_topic}" for s in (system.settings, DEFAULTS))
    orders, letters = work(system, CLOUDEVENTS="true")
    commands = {record.timestamp()[1] for record in system.read(system.settings.input_topic)}
    for record in orders:
        order = json.loads(record.value() or b"")
        headers = headers_of(record, headers_schema("deployOrder"))
        ORDER.validate(order)
        validate_headers("deployOrder", headers | {"ce_source": by_default})
        made = UUID(order["worker_id"]).int >> 80
        assert made in commands
        assert datetime.fromisoformat(str(headers.pop("ce_time"))).timestamp() * 1000 == made
        assert UUID(str(headers.pop("message-id"))).version == 4
        assert {name: value for name, value in headers.items() if name != "traceparent"} == {
            "content-type": "application/json",
            "ce_specversion": "1.0",
            "ce_id": order["worker_id"],
            "ce_source": source,
            "ce_type": "vap.worker.deploy",
            "ce_subject": order["scenario_uuid"],
        }
    for record in letters:
        assert not [name for name, _ in own_headers(record) if name.startswith("ce_")]


GOOD_ORDER = FILES["deploy-order.schema.json"]["examples"][0]
GOOD_LETTER = FILES["dead-letter.schema.json"]["examples"][0]
NOT_PRODUCED = {
    "order with one more field": (ORDER, GOOD_ORDER | {"more": 1}),
    "order without a camera": (ORDER, {k: v for k, v in GOOD_ORDER.items() if k != "camera_url"}),
    "worker that is no UUIDv8": (ORDER, GOOD_ORDER | {"worker_id": GOOD_ORDER["scenario_uuid"]}),
    "worker without hyphens": (ORDER, GOOD_ORDER | {"worker_id": examples.WORKER.hex}),
    "scenario in upper case": (ORDER, GOOD_ORDER | {"scenario_uuid": str(examples.SCENARIO).upper()}),
    "camera without a host": (ORDER, GOOD_ORDER | {"camera_url": "rtsp://"}),
    "letter without a reason": (LETTER, {k: v for k, v in GOOD_LETTER.items() if k != "dlq-reason"}),
    "letter for another reason": (LETTER, GOOD_LETTER | {"dlq-reason": "no idea"}),
    "letter with a partition of 8 bytes": (
        LETTER,
        GOOD_LETTER | {"kafka_dlt-original-partition": 2**31},
    ),
    "letter with an offset in words": (LETTER, GOOD_LETTER | {"kafka_dlt-original-offset": "7"}),
}


@pytest.mark.parametrize(("schema", "value"), NOT_PRODUCED.values(), ids=NOT_PRODUCED)
def test_records_that_the_processes_never_produce_are_invalid(
    schema: Draft202012Validator, value: object
) -> None:
    assert not schema.is_valid(value)


# ---- asyncapi.yaml ---------------------------------------------------------------------------------


def resolve(reference: str) -> object:
    """Return what a reference of asyncapi.yaml means. Raises KeyError, or OSError."""
    file, _, path = reference.partition("#")
    found = json.loads((SCHEMA / file).read_text()) if file else ASYNCAPI
    for step in path.split("/")[1:]:
        found = found[step]
    return found


def test_every_reference_resolves() -> None:
    found = [part["$ref"] for part in parts(ASYNCAPI) if "$ref" in part]
    assert len(found) > 10
    for reference in found:
        assert resolve(reference), reference


def test_the_channels_are_the_topics_of_the_default_settings() -> None:
    assert {channel["title"]: channel["address"] for channel in ASYNCAPI["channels"].values()} == {
        name: getattr(DEFAULTS, name.lower())
        for name in ("INPUT_TOPIC", "OUTPUT_TOPIC", "DEAD_LETTER_TOPIC", "MARKER_TOPIC")
    }
    assert ASYNCAPI["channels"]["markers"]["bindings"]["kafka"]["partitions"] == DEFAULT_LANES
    group = ASYNCAPI["operations"]["acceptCommand"]["bindings"]["kafka"]["groupId"]
    assert group["const"] == DEFAULTS.consumer_group
    assert str(DEFAULTS.max_message_bytes) in FILES["command.schema.json"]["description"]


def test_each_message_of_a_channel_is_received_or_sent() -> None:
    used = set()
    for operation in ASYNCAPI["operations"].values():
        assert operation["action"] in {"send", "receive"}
        channel = operation["channel"]["$ref"]
        for one in operation["messages"]:
            assert one["$ref"].startswith(f"{channel}/messages/")
            used.add(one["$ref"])
    assert used == {
        f"#/channels/{name}/messages/{message}"
        for name, channel in ASYNCAPI["channels"].items()
        for message in channel.get("messages", {})
    }
    assert {operation["action"] for operation in ASYNCAPI["operations"].values()} == {"send", "receive"}


def test_the_reasons_of_dead_letters_are_those_of_the_code() -> None:
    known = FILES["dead-letter.schema.json"]["properties"]["dlq-reason"]["enum"]
    assert known == [reason.value for reason in InvalidReason]
