"""Rows of the outbox that another writer got wrong: parked by name, and their neighbours published."""

import re
from collections import Counter
from contextlib import closing
from uuid import uuid4

import psycopg
import pytest

from outbox import DatabaseNotReady, Message, check_id_sequence, count_lanes, enqueue, transaction
from outbox.admin import count_backlog, find_faulty_rows, find_row, read_parked
from outbox.message import lane_of
from testkit.cases import cases
from testkit.empty_installation import run_command
from testkit.eventually import eventually
from testkit.system import LANES, System, own_headers

CONSTRAINTS = ("lane_exists", "id_positive", "topic_name", "headers_array", "created_at_date")
MAX_BIGINT = 2**63 - 1


def insert(system: System, **columns: object) -> int:
    """Insert a row as another writer would; return its id."""
    values = {"lane": 0, "topic": system.settings.output_topic, "key": b"k", "value": b"bad"} | columns
    names, marks = ", ".join(values), ", ".join(["%s"] * len(values))
    override = "OVERRIDING SYSTEM VALUE" if "id" in values else ""
    statement = f"INSERT INTO outbox ({names}) {override} VALUES ({marks}) RETURNING id"  # noqa: S608
    ((row_id,),) = system.query(statement, *values.values())
    return int(row_id)


def plant(system: System, **columns: object) -> int:
    """Insert a row that is older than the constraints; return its id."""
    for name in CONSTRAINTS:
        system.query(f"ALTER TABLE outbox DROP CONSTRAINT IF EXISTS outbox_{name}")
    return insert(system, **columns)


def put(system: System, *values: bytes, lanes: int = 1) -> None:
    """Write good rows of the key of the others."""
    with closing(system.connect()) as conn, transaction(conn):
        enqueue(conn, [Message(system.settings.output_topic, b"k", value) for value in values], lanes)


def sent(system: System) -> list[bytes | None]:
    """Return the values in the output topic."""
    return [record.value() for record in system.read(system.settings.output_topic)]


def parked(system: System) -> dict[tuple[int, int], str]:
    """Return the reasons of the parked rows."""
    found = system.query("SELECT lane, id, reason FROM outbox_parked")
    return {(lane, row_id): reason for lane, row_id, reason in found}


UNREADABLE = "its headers are not [[name, base64 or null], ...]"
IMPOSSIBLE = "Kafka allows no topic of this name"
HEADERS = {
    "an object": '{"name": "dmFsdWU="}',
    "a text": '"name"',
    "a number": "7",
    "true": "true",
    "too long a number": "1" * 5000,
    "a list of texts": '["name"]',
    "a list of objects": '[{"key": "name", "data": "YWJj"}]',
    "an empty pair": "[[]]",
    "three of a pair": '[["name", "dmFsdWU=", "x"]]',
    "a null for a pair": "[null]",
    "a name that is a number": '[[7, "dmFsdWU="]]',
    "a name that is null": '[[null, "dmFsdWU="]]',
    "half a character in a name": '[["\\ud800", "dmFsdWU="]]',
    "a value that is a number": '[["name", 7]]',
    "no base64": '[["name", "what?"]]',
    "base64 without its end": '[["name", "dmFsdWU"]]',
    "base64 for URLs": '[["name", "_-8="]]',
    "deep nesting": "[" * 3000 + "]" * 3000,
}
TOPICS = {
    "empty": "",
    "a dot": ".",
    "two dots": "..",
    "a space": "to deploy",
    "a line break": "to_deploy\n",
    "a slash": "a/b",
    "a letter beyond ASCII": "größe",
    "too long": "a" * 250,
    "longer than any broker answers": "a" * 40_000,
}
BAD_ROWS = [
    *(({"headers": text}, UNREADABLE) for text in HEADERS.values()),
    *(({"topic": topic}, IMPOSSIBLE) for topic in TOPICS.values()),
]
STRANGE: dict[str, dict[str, object]] = {
    "the largest id": {"id": MAX_BIGINT},
    "the one before it": {"id": MAX_BIGINT - 1},
    "an id of 0": {"id": 0},
    "an id below 0": {"id": -5},
    "the smallest id": {"id": 1 - 2**63},
    "infinity": {"created_at": "infinity"},
    "minus infinity": {"created_at": "-infinity"},
    "the first date": {"created_at": "4713-01-01 BC"},
    "the last date": {"created_at": "294276-12-31"},
}


@pytest.mark.fault(60)
def test_rows_that_can_never_be_sent_are_parked_and_their_neighbours_are_sent(
    one_lane: System,
) -> None:
    put(one_lane, b"1")
    reasons = {}
    for columns, reason in BAD_ROWS:
        reasons[0, plant(one_lane, **columns)] = reason
        put(one_lane, b"2")
    put(one_lane, b"3")
    with one_lane.lane() as lane:
        lane.recover()
        assert lane.drain() == len(BAD_ROWS) + 2
        assert lane.run_once() == 0
    assert sent(one_lane) == [b"1", *len(BAD_ROWS) * [b"2"], b"3"]
    assert parked(one_lane) == reasons
    with closing(one_lane.connect()) as conn:
        assert Counter(row.fault for row in read_parked(conn)) == Counter(reasons.values())


NOT_ALLOWED = "its topic is none that relays may send to"


@pytest.mark.fault(85)
@pytest.mark.parametrize("topic", ["{input_topic}", "no-such-topic", "__consumer_offsets"])
def test_a_row_for_a_topic_that_a_relay_may_not_send_to_is_parked(one_lane: System, topic: str) -> None:
    settings = one_lane.settings
    topic = topic.format(input_topic=settings.input_topic)
    put(one_lane, b"1")
    foreign = insert(one_lane, topic=topic)
    put(one_lane, b"2")
    with one_lane.lane(topics={settings.output_topic}) as lane:
        lane.recover()
        assert lane.drain() == 2
    assert sorted(filter(None, sent(one_lane))) == [b"1", b"2"]
    assert parked(one_lane) == {(0, foreign): NOT_ALLOWED}


@pytest.mark.fault(85)
def test_no_row_is_sent_to_the_markers_whatever_relays_may_send_to(one_lane: System) -> None:
    foreign = insert(one_lane, topic=one_lane.settings.marker_topic)
    put(one_lane, b"1")
    with one_lane.lane() as lane:
        lane.recover()
        assert lane.drain() == 1
    reason = "its topic is that of the markers, which relays alone write"
    assert parked(one_lane) == {(0, foreign): reason}


@pytest.mark.fault(85)
def test_a_row_in_flight_for_a_topic_that_a_relay_may_not_send_to_is_parked(one_lane: System) -> None:
    foreign = insert(one_lane, topic=one_lane.settings.input_topic)
    put(one_lane, b"1")
    with one_lane.lane() as lane:
        lane.recover()
        lane.claim()
    with one_lane.lane(topics={one_lane.settings.output_topic}) as lane:
        lane.recover()
        lane.drain()
    assert sent(one_lane) == [b"1"]
    assert parked(one_lane) == {(0, foreign): NOT_ALLOWED}


@pytest.mark.fault(85)
def test_processes_and_commands_name_a_row_for_another_topic_and_send_it_once_that_is_told(
    system: System,
) -> None:
    another = f"another-{uuid4()}"
    row = insert(system, topic=another)
    relay = system.start("relay")
    system.start("consumer")
    system.check_exactly_once(len(system.submit(5)))
    assert parked(system) == {(0, row): NOT_ALLOWED}
    assert relay.logged(NOT_ALLOWED)
    for command in ("status", "doctor"):
        assert f"(1 {NOT_ALLOWED})" in run_command(system.environ, command).stdout
    retry = ("parked", "retry", "--all", "--yes")
    assert "name its topic in RELAY_TOPICS" in run_command(system.environ, *retry).stderr
    relay.stop()
    assert run_command(system.environ | {"RELAY_TOPICS": another}, *retry).returncode == 0
    assert parked(system) == {}


def test_headers_that_are_unusual_but_right_are_sent(one_lane: System) -> None:
    plant(one_lane, headers="null")
    plant(one_lane, headers="[]")
    plant(one_lane, headers='[["", null], ["a", "' + "QUFB" * 19 + "\\n" + 'QUFB"]]')
    with one_lane.lane() as lane:
        lane.recover()
        assert lane.drain() == 3
    headers = [own_headers(record) for record in one_lane.read(one_lane.settings.output_topic)]
    assert sorted(headers) == [[], [], [("", None), ("a", b"AAA" * 20)]]


@pytest.mark.parametrize(
    ("column", "value", "constraint"),
    [
        ("lane", LANES, "outbox_lane_exists"),
        ("lane", 7, "outbox_lane_exists"),
        ("lane", -1, "outbox_lane_exists"),
        ("id", 0, "outbox_id_positive"),
        ("id", -(2**63), "outbox_id_positive"),
        ("headers", '{"a": "b"}', "outbox_headers_array"),
        ("headers", "7", "outbox_headers_array"),
        ("created_at", "infinity", "outbox_created_at_date"),
        ("created_at", "-infinity", "outbox_created_at_date"),
        ("created_at", "4713-01-01 BC", "outbox_created_at_date"),
        ("created_at", "294276-12-31", "outbox_created_at_date"),
        *(("topic", topic, "outbox_topic_name") for topic in TOPICS.values()),
    ],
)
def test_the_schema_refuses_rows_that_can_never_be_sent(
    system: System, column: str, value: object, constraint: str
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as raised:
        insert(system, **{column: value})
    assert raised.value.diag.constraint_name == constraint


@pytest.mark.fault(60)
@pytest.mark.parametrize("lane", [7, -1, -32768, 32767])
def test_a_row_of_a_lane_that_does_not_exist_is_parked_and_can_be_retried(
    system: System, lane: int
) -> None:
    key = str(uuid4()).encode()
    bad, right = plant(system, lane=lane, key=key), lane_of(key, LANES)
    with closing(system.connect()) as conn:
        assert [row.fault for row in find_faulty_rows(conn, 10)] == [f"there is no lane {lane}"]
    relay = system.start("relay")
    eventually(lambda: parked(system) == {(right, bad): f"there is no lane {lane}"})
    assert relay.logged('"row parked"')
    assert run_command(system.environ, "parked", "retry", "--all", "--yes").returncode == 0
    eventually(lambda: sent(system) == [b"bad"])


@pytest.mark.fault(60)
@pytest.mark.parametrize("columns", cases(STRANGE, "the largest id", "an id of 0", "infinity"))
def test_a_row_with_a_strange_id_or_date_is_sent(one_lane: System, columns: dict[str, object]) -> None:
    aggregate_id = uuid4()
    put(one_lane, b"1")
    plant(one_lane, **columns, aggregate_id=aggregate_id)
    put(one_lane, b"2")
    with closing(one_lane.connect()) as conn:
        assert count_backlog(conn, 10)[0].pending == 3
        assert find_row(conn, aggregate_id)
    relay = one_lane.start("relay")
    eventually(lambda: sorted(filter(None, sent(one_lane))) == [b"1", b"2", b"bad"])
    put(one_lane, b"3")
    eventually(lambda: b"3" in sent(one_lane))
    eventually(lambda: one_lane.query("SELECT count(*) FROM outbox") == [(0,)])
    assert '"ready": true' in relay.get("/readyz")
    assert not relay.logged("relay waiting")


@pytest.mark.fault(60)
def test_a_bad_row_in_flight_when_the_release_changes_is_parked_and_the_others_are_sent(
    one_lane: System,
) -> None:
    put(one_lane, b"1", b"2", b"3")
    with one_lane.lane() as lane:
        lane.recover()
        assert len(lane.claim()) == 3
    plant(one_lane, value=b"4")
    one_lane.query("""UPDATE outbox SET headers = '["x"]' WHERE value = '2'""")
    with one_lane.lane() as lane:
        lane.recover()
        assert lane.drain() == 1
    assert sent(one_lane) == [b"1", b"3", b"4"]
    assert list(parked(one_lane).values()) == [UNREADABLE]


def test_a_row_whose_id_is_parked_already_is_parked_under_another_one(one_lane: System) -> None:
    for number in range(3):
        plant(one_lane, id=5, headers="7", aggregate_id=uuid4())
        with one_lane.lane() as lane:
            lane.recover()
            assert lane.run_once() == 0
        assert len(parked(one_lane)) == number + 1
    assert one_lane.query("SELECT count(*) FROM outbox") == [(0,)]


@pytest.mark.xdist_group("measures")
def test_a_value_that_no_broker_takes_is_parked_without_being_loaded(one_lane: System) -> None:
    put(one_lane, b"1")
    one_lane.query(
        "INSERT INTO outbox (lane, topic, key, value)"
        " VALUES (0, %s, 'k', convert_to(repeat('x', 95000000), 'UTF8'))",
        one_lane.settings.output_topic,
    )
    put(one_lane, b"2")
    with one_lane.lane() as lane:
        lane.recover()
        assert lane.drain() + lane.drain() == 2
    (reason,) = parked(one_lane).values()
    assert reason == "it is larger than 89478485 bytes: see message.max.bytes"


def test_a_faulty_row_is_not_retried_and_the_others_are(one_lane: System) -> None:
    plant(one_lane, headers="7")
    plant(one_lane, topic="a/b")
    with one_lane.lane() as lane:
        lane.recover()
        lane.drain()
    one_lane.query("UPDATE outbox_parked SET topic = %s", one_lane.settings.output_topic)
    retried = run_command(one_lane.environ, "parked", "retry", "--all", "--yes")
    assert retried.returncode == 1
    assert f"{UNREADABLE}: correct the row in outbox_parked" in retried.stderr
    with one_lane.lane() as lane:
        lane.recover()
        assert lane.drain() == 1
    assert list(parked(one_lane).values()) == [UNREADABLE]


def test_the_doctor_names_rows_that_another_writer_got_wrong(system: System) -> None:
    key, message_id = b"key", uuid4()
    right = lane_of(key, LANES)
    plant(system, lane=(right + 1) % LANES, key=key)
    plant(system, lane=right, key=key, message_id=message_id)
    plant(system, lane=right, key=key, message_id=message_id)
    plant(system, lane=right, key=key, topic="a/b")
    with closing(system.connect()) as conn:
        faults = " ".join(row.fault for row in find_faulty_rows(conn, 10))
    assert f"its key belongs to lane {right}: the order of the key is not kept" in faults
    assert "has its message id, too" in faults
    assert IMPOSSIBLE in faults
    shown = run_command(system.environ, "doctor").stdout
    assert "its key belongs to lane" in shown
    assert "it must use outbox.enqueue" in shown


# ---- lanes that are missing, a sequence that was set back --------------------------------------------


@pytest.mark.fault(62)
@pytest.mark.parametrize(
    ("deleted", "words"),
    [
        ("lane = 2", "3 rows for 4 lanes, missing: 2"),
        ("lane = 3", "3 rows for 4 lanes, missing: 3"),
        ("lane < 2", "2 rows for 4 lanes, missing: 0, 1"),
        ("true", "0 rows for 4 lanes, missing: 0, 1, 2, 3"),
    ],
)
def test_processes_wait_for_lanes_that_are_missing_and_name_them(
    system: System, deleted: str, words: str
) -> None:
    system.query("CREATE TABLE kept AS TABLE outbox_lane")
    system.query(f"DELETE FROM outbox_lane WHERE {deleted}")  # noqa: S608
    processes = [system.start("consumer"), system.start("relay")]
    for process in processes:
        eventually(lambda process=process: words in process.get("/readyz"))  # type: ignore[misc]
        eventually(lambda process=process: process.logged(words))  # type: ignore[misc]
    for command in ("status", "doctor"):
        shown = run_command(system.environ, command)
        assert shown.returncode == 1
        assert words in shown.stdout + shown.stderr
    system.query(f"INSERT INTO outbox_lane SELECT * FROM kept WHERE {deleted}")  # noqa: S608
    system.submit(20)
    system.check_exactly_once(20)


@pytest.mark.fault(62)
def test_a_relay_at_work_notices_that_lanes_go_and_come_back(system: System) -> None:
    relay = system.start("relay")
    system.accept(20)
    system.check_exactly_once(20)
    system.query("ALTER TABLE outbox_lane RENAME TO hidden")
    system.query("CREATE TABLE outbox_lane (LIKE hidden INCLUDING ALL)")
    eventually(lambda: "0 rows for 4 lanes" in relay.get("/readyz"))
    system.query("DROP TABLE outbox_lane")
    system.query("ALTER TABLE hidden RENAME TO outbox_lane")
    system.accept(20)
    system.check_exactly_once(40)


@pytest.mark.fault(62)
@pytest.mark.parametrize("set_back", ["setval('outbox_id_seq', 3)", "setval('outbox_id_seq', 20)"])
def test_the_consumer_waits_while_the_sequence_of_the_outbox_is_behind_its_rows(
    system: System, set_back: str
) -> None:
    system.accept(20)
    ((highest,),) = system.query("SELECT max(id) FROM outbox")
    system.query(f"SELECT {set_back.replace('20', str(highest - 1))}")
    remedy = f"SELECT setval('public.outbox_id_seq', {highest})"
    consumer = system.start("consumer")
    system.submit(20)
    eventually(lambda: remedy in consumer.get("/readyz"))
    assert consumer.logged("was set back")
    for command, begins in (("doctor", "failed +outbox id sequence: "), ("status", "PROBLEM +")):
        shown = run_command(system.environ, command).stdout
        assert re.search(f"^{begins}.*{re.escape(remedy)}$", shown, re.MULTILINE), shown
    assert system.statuses() == {"pending": 20}
    system.query(remedy)
    system.start("relay")
    system.check_exactly_once(40)


def test_a_sequence_that_never_gave_an_id_or_is_far_ahead_is_in_order(system: System) -> None:
    with closing(system.connect()) as conn:
        check_id_sequence(conn)
        system.accept(1)
        check_id_sequence(conn)
        system.query("SELECT setval('outbox_id_seq', 1000000000000)")
        check_id_sequence(conn)
        system.query("ALTER SEQUENCE outbox_id_seq RESTART WITH 1")
        with pytest.raises(DatabaseNotReady, match="it gives 1 next"):
            check_id_sequence(conn)
        assert count_lanes(conn) == LANES
