"""`orchestrator dlq` and `orchestrator parked`: list, show without secrets, retry once, discard."""

import json
import os
import pty
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from confluent_kafka import Message as Record
from confluent_kafka import Producer

from orchestrator.contract.records import headers_of
from orchestrator.embedded import Servers
from orchestrator.kafka.reader import OffsetRange
from orchestrator.operations.dead_letters.handling import Handled, handle_dead_letters
from orchestrator.operations.dead_letters.headers import Origin, added_by_us, origin_id_of
from orchestrator.operations.dead_letters.letters import (
    DeadLetter,
    DeadLetterTopic,
    RecordId,
    count_handled,
)
from orchestrator.operations.parked_rows import retry_rows
from orchestrator.runtime.migrations import migrate
from outbox import Connection, Headers
from outbox.admin import RowId, discard_parked, read_parked, retry_parked
from testkit.empty_installation import bare_system, run_command, run_in_process
from testkit.eventually import eventually
from testkit.system import INHERITED, System, limit_messages, take

SECRET = "hush-hush"
KEY = b"some key"


def run(system: System, *words: str, **environ: str) -> tuple[int, str]:
    """Run a command without a terminal; return its exit code and its output."""
    ran = run_in_process(system.environ | environ, *words)
    assert "Traceback" not in ran.stderr
    return ran.returncode, ran.stdout + ran.stderr


def refused(system: System, *words: str) -> bool:
    """Say whether the command calls this wrong usage."""
    return run_in_process(system.environ, *words).returncode == 2


def listed(system: System, kind: str, *words: str) -> dict[str, int]:
    """Return what `list --json` counts, by reason."""
    ran = run_in_process(system.environ, kind, "list", "--json", *words)
    assert ran.returncode == 0, ran.stderr
    counts: dict[str, int] = msgspec.json.decode(ran.stdout)["by_reason"]
    return counts


def logged_changes(system: System) -> list[tuple[str, str, dict[str, int]]]:
    return [
        tuple(row) for row in system.query("SELECT command, reason, counts FROM repairs ORDER BY id")
    ]


def shown(system: System, kind: str, *words: str) -> dict[str, Any]:
    """Return the one that `show` prints."""
    ran = run_in_process(system.environ, kind, "show", *words)
    assert ran.returncode == 0, ran.stderr
    one: dict[str, Any] = msgspec.json.decode(ran.stdout)
    return one


def command(url: str) -> bytes:
    return msgspec.json.encode({"scenario_uuid": str(uuid4()), "camera_url": url})


@pytest.fixture
def letters(one_lane: System) -> System:
    """Five dead letters of three kinds in the topic; no process runs."""
    one_lane.produce(f"not JSON {SECRET}".encode(), b"{", key=KEY, headers=[("traceparent", b"00-1")])
    one_lane.produce(command(f"gopher://u:{SECRET}@h/1"), command("gopher://h/2"), key=b"other")
    one_lane.produce(None, key=KEY)
    make_dead_letters(one_lane, 5)
    return one_lane


def make_dead_letters(system: System, records: int) -> None:
    """Let a consumer take so many records that are no commands, and a relay publish them."""
    with system.consumer() as session:
        take(session, records)
    publish(system)


def publish(system: System) -> None:
    """Let a relay publish what is in the outbox."""
    with system.lane(0) as lane:
        lane.recover()
        lane.drain()


def test_dead_letters_are_listed_by_filter_and_shown_without_their_content(letters: System) -> None:
    everything = {"not_json": 2, "url_scheme": 2, "empty": 1}
    assert listed(letters, "dlq", "--reason", "url_scheme") == {"url_scheme": 2}
    assert listed(letters, "dlq", "--reason", "url") == {}
    assert listed(letters, "dlq", "--key", KEY.decode()) == {"not_json": 2, "empty": 1}
    assert listed(letters, "dlq", "--since", "1h", "--until", "30m") == {}
    assert listed(letters, "dlq", "--since", "1h") == everything

    code, said = run(letters, "dlq", "list", "--limit", "2")
    assert code == 0
    assert "5 dead letters" in said
    assert "the first 2 are shown" in said
    assert SECRET not in said

    record = next(
        r for r in letters.read(letters.settings.dead_letter_topic) if b"gopher" in (r.value() or b"")
    )
    record_id = f"{record.partition()}:{record.offset()}"
    one = shown(letters, "dlq", record_id, "--json")
    assert one["record_id"] == record_id
    assert one["reason"] == "url_scheme"
    assert one["origin"].startswith(f"{letters.settings.input_topic}:")
    assert {"name": "kafka_dlt-original-offset", "value": origin_offset(record)} in one["headers"]
    assert "gopher" not in str(one)
    assert run(letters, "dlq", "show", "0:99999")[0] == 1
    assert refused(letters, "dlq", "show", "--payload")  # which ones?


def origin_offset(letter: Record) -> int:
    return int.from_bytes(dict(headers_of(letter))["kafka_dlt-original-offset"] or b"", "big")


def test_an_invalid_record_id_is_not_repeated() -> None:
    ran = run_command({}, "dlq", "show", f"rtsp://u:{SECRET}@h")
    assert ran.returncode == 2
    assert SECRET not in ran.stderr
    assert "must be two whole numbers with a colon between them" in ran.stderr


# ---- contents of all kinds --------------------------------------------------------------------------


OWN = [
    ("kafka_dlt-token", SECRET.encode()),
    ("dlq-note", SECRET.encode()),
    ("dlq-reason", SECRET.encode()),
    ("twice", b"1"),
    ("twice", b"\xff"),
    ("nothing", None),
    ("message-id", SECRET.encode()),
]


def test_the_content_of_a_record_is_shown_with_payload_only_and_then_completely(
    one_lane: System,
) -> None:
    value = f"\x1b]0;title\x07 rtsp://u:{SECRET}@h".encode()
    key = f"rtsp://u:pa {SECRET}@h/{'x' * 60}".encode()
    one_lane.produce(value, key=key, headers=OWN)
    one_lane.produce(b"{", key=b"k" * 60)
    one_lane.produce(b"{", key=b"\xff")
    make_dead_letters(one_lane, 3)
    letter = next(r for r in one_lane.read(one_lane.settings.dead_letter_topic) if r.key() == key)
    record_id = f"{letter.partition()}:{letter.offset()}"
    names = [name for name, _ in headers_of(letter)]
    assert names[: len(OWN)] == [name for name, _ in OWN]

    one = shown(one_lane, "dlq", record_id)
    assert SECRET not in str(one)
    assert [header["name"] for header in one["headers"]] == names
    hidden = ["SHA-256" in str(header["value"]) for header in one["headers"]]
    hidden[OWN.index(("nothing", None))] = True
    assert hidden == [True] * len(OWN) + [False] * (len(names) - len(OWN))

    ran = run_command(one_lane.environ, "dlq", "show", record_id, "--payload")
    assert "\x1b" not in ran.stdout
    one = msgspec.json.decode(ran.stdout)
    assert one["payload"] == value.decode()
    brought = [(header["name"], header["value"]) for header in one["headers"]][: len(OWN)]
    assert brought == [*[(name, SECRET) for name, _ in OWN[:3]], *KEPT]
    (message_id,) = (h["value"] for h in one["headers"][len(OWN) :] if h["name"] == "message-id")
    assert UUID(message_id)

    assert shown(one_lane, "dlq", "--key", "k" * 60)["key"].startswith("60 bytes, SHA-256 ")
    assert shown(one_lane, "dlq", "--key", os.fsdecode(b"\xff"))["bytes"] == 1


KEPT = [("twice", "1"), ("twice", "\\xff"), ("nothing", None), ("message-id", SECRET)]


def test_a_dead_letter_of_another_writer_cannot_control_the_terminal(one_lane: System) -> None:
    strange, numbers = b"\x1b]0;rtsp://u:pa hush-hush@h\x07", struct.pack(">iqq", 1, 2, 3)
    origin: list[tuple[str, str | bytes | None]] = [
        ("kafka_dlt-original-topic", strange),
        ("kafka_dlt-original-partition", numbers[:4]),
        ("kafka_dlt-original-offset", numbers[4:12]),
        ("kafka_dlt-original-timestamp", numbers[12:]),
        ("kafka_dlt-original-consumer-group", strange),
        ("dlq-reason", strange),
    ]
    producer = Producer(dict(one_lane.settings.kafka))
    for headers in (origin, [*origin, ("kafka_dlt-original-offset", b"\x7f" * 3000)]):
        producer.produce(one_lane.settings.dead_letter_topic, b"x", partition=0, headers=headers)
    assert producer.flush(20) == 0
    code, said = run(one_lane, "dlq", "list")
    assert code == 0
    shown = f"{len(strange)} bytes, SHA-256 "
    assert f"1 dead letters: 1 {shown}" in said  # that of the second, which has no valid origin
    assert f"1 dead letters of topic {shown}" in said
    assert not {"\x1b", "\x07"} & set(said)
    assert SECRET not in said
    assert run(one_lane, "dlq", "show", "0:1")[0] == 0


def test_a_retry_puts_the_command_into_the_input_once(letters: System) -> None:
    """The scheme is allowed now, so the consumer accepts what was invalid before."""
    before = len(letters.read(letters.settings.input_topic))
    assert refused(letters, "dlq", "retry", "--reason", "url_scheme")  # no terminal to ask on
    assert refused(letters, "dlq", "retry", "--yes")  # which ones?
    assert refused(letters, "dlq", "retry", "--reason", "", "--yes")  # the same
    code, said = run(letters, "dlq", "retry", "--reason", "url_scheme", "--dry-run")
    assert code == 0
    assert "retry 2 dead letters: 2 url_scheme" in said
    assert logged_changes(letters) == []

    letters.start("consumer", CAMERA_URL_SCHEMES="gopher,rtsp")
    letters.start("relay")
    code, said = run(letters, "dlq", "retry", "--reason", "url_scheme", "--yes")
    assert code == 0, said
    assert "2 dead letters are in the outbox now" in said
    letters.check_exactly_once(2)
    assert len(letters.read(letters.settings.input_topic)) == before + 2
    assert "retry 0 dead" in run(letters, "dlq", "retry", "--reason", "url_scheme", "--yes")[1]
    assert logged_changes(letters)[0][:2] == ("dlq retry --reason url_scheme", "retry")
    assert sum(counts["dead_letters"] for *_, counts in logged_changes(letters)) == 2
    assert listed(letters, "dlq") == {"not_json": 2, "empty": 1}
    assert listed(letters, "dlq", "--handled") == {"not_json": 2, "url_scheme": 2, "empty": 1}


def test_a_letter_that_was_retried_and_came_back_says_so(letters: System) -> None:
    """Nothing was put right: the command is as invalid as before."""
    (first,) = [
        record for record in letters.read(letters.settings.dead_letter_topic) if record.value() is None
    ]
    retried = f"{first.partition()}:{first.offset()}"
    assert run(letters, "dlq", "retry", retried, "--yes")[0] == 0
    publish(letters)
    make_dead_letters(letters, 1)
    said = run(letters, "dlq", "list", "--reason", "empty")[1]
    assert f"waiting; back again after the retry of {retried}" in said
    found = json.loads(run(letters, "dlq", "list", "--json")[1])["dead_letters"]
    assert sorted(str(one["retry_of"]) for one in found) == sorted(["None"] * 4 + [retried])
    (problem,) = [
        line for line in run(letters, "status")[1].splitlines() if "dead letters wait" in line
    ]
    assert "PROBLEM  5 dead letters wait" in problem
    assert "; 1 of them were retried and came back: `orchestrator dlq list`" in problem


def copy_letters(system: System) -> None:
    """Publish each dead letter again, as releases did that read records again."""
    producer = Producer(dict(system.settings.kafka))
    for letter in system.read(system.settings.dead_letter_topic):
        headers: list[tuple[str, str | bytes | None]] = [*headers_of(letter)]
        producer.produce(
            system.settings.dead_letter_topic,
            letter.value(),
            letter.key(),
            letter.partition() or 0,
            headers=headers,
        )
    assert producer.flush(20) == 0


def states(system: System) -> list[str]:
    """Return the states of all dead letters of the input, by partition and offset."""
    ran = run_in_process(system.environ, "dlq", "list", "--handled", "--json")
    assert ran.returncode == 0, ran.stderr
    return [one["state"] for one in msgspec.json.decode(ran.stdout)["dead_letters"]]


def test_of_two_dead_letters_of_one_record_one_is_sent(one_lane: System) -> None:
    one_lane.produce(b"{", key=KEY)
    make_dead_letters(one_lane, 1)
    copy_letters(one_lane)
    code, said = run(one_lane, "dlq", "retry", "--all", "--yes")
    assert code == 0, said
    assert "retry 2 dead letters" in said
    assert "1 dead letters are in the outbox now" in said
    assert "the same command as another one" in said
    assert one_lane.query("SELECT count(*) FROM outbox") == [(1,)]
    copy_letters(one_lane)
    assert listed(one_lane, "dlq") == {}
    assert states(one_lane) == ["retried"] * 4
    assert [counts for *_, counts in logged_changes(one_lane)] == [SENT | {"dead_letters": 1}]


SENT = {"dead_letters": 0, "sent_before": 0}


def test_what_was_discarded_stays_discarded(one_lane: System) -> None:
    one_lane.produce(b"{", key=KEY)
    make_dead_letters(one_lane, 1)
    assert run(one_lane, "dlq", "discard", "--all", "--yes")[0] == 0
    copy_letters(one_lane)
    assert listed(one_lane, "dlq") == {}
    assert states(one_lane) == ["discarded"] * 2
    ids = [str(RecordId(r.partition() or 0, r.offset() or 0)) for r in letters_of(one_lane)]
    code, said = run(one_lane, "dlq", "retry", *ids, "--yes")
    assert code == 1
    assert all(f"{record_id} (discarded)" in said for record_id in ids), said
    assert "retry 0 dead letters" in said
    assert run(one_lane, "dlq", "discard", "--all", "--yes")[0] == 0
    assert one_lane.query("SELECT count(*) FROM outbox") == [(0,)]
    assert len(logged_changes(one_lane)) == 1


def letters_of(system: System) -> list[Record]:
    return system.read(system.settings.dead_letter_topic)


def test_only_the_same_command_from_the_same_record_counts_as_sent_again() -> None:
    """A recreated topic has other records with the same record ids."""
    of = Origin(b"init_scenario", bytes(4), bytes(8), bytes(8), b"group")
    name = origin_id_of(of, KEY, b"{")
    assert origin_id_of(of._replace(group=b"another"), KEY, b"{") == name
    assert origin_id_of(of._replace(timestamp=b"\1" * 8), KEY, b"{") != name
    assert origin_id_of(of, KEY, b"[") != name


def test_a_retried_command_has_its_own_key_value_and_headers(letters: System) -> None:
    run(letters, "dlq", "retry", "--reason", "not_json", "--yes")
    publish(letters)
    assert len(retried(letters)) == 2
    for key, value, headers in retried(letters):
        assert key == KEY
        assert value in {f"not JSON {SECRET}".encode(), b"{"}
        assert [name for name, _ in headers] == ["traceparent", *RETRY_HEADERS]
    make_dead_letters(letters, 2)  # they are as bad as before, and told apart from the first ones
    assert listed(letters, "dlq") == {"not_json": 2, "url_scheme": 2, "empty": 1}


RETRY_HEADERS = ["dlq-retry-of", "dlq-retry-origin", "message-id"]


def test_a_retry_hands_on_the_records_own_message_id_and_none_of_ours(one_lane: System) -> None:
    own = [("message-id", b"the API's"), ("twice", b"1"), ("message-id", b"its second")]
    one_lane.produce(b"{", key=KEY, headers=own)
    make_dead_letters(one_lane, 1)
    ids, origins = set(), set()
    for round_ in (1, 2):  # what was retried, and is a dead letter again, is retried again
        code, said = run(one_lane, "dlq", "retry", "--all", "--yes")
        assert (code, "1 dead letters are in the outbox now" in said) == (0, True), said
        publish(one_lane)
        assert len(retried(one_lane)) == round_
        *_, (_, _, headers) = retried(one_lane)
        assert headers[: len(own)] == own
        assert [name for name, _ in headers[len(own) :]] == RETRY_HEADERS
        ids.add(headers[-1][1])
        origins.add(dict(headers)["dlq-retry-origin"])
        make_dead_letters(one_lane, 1)
    assert len(ids) == 2
    (record, *_) = one_lane.read(one_lane.settings.input_topic)
    first = f"{record.partition()}:{record.offset()}:{record.timestamp()[1]}"
    assert origins == {first.encode()}  # of a second retry, too


def test_a_message_id_of_a_dead_letter_of_an_earlier_release_is_the_records_own() -> None:
    """Earlier releases added none."""
    headers = [("dlq-retry-of", b"1"), ("message-id", b"a"), ("message-id", b"b"), ("dlq-reason", b"")]
    assert added_by_us(headers[1:]) == [False, False, True]
    assert added_by_us([*headers, ("message-id", b"c")]) == [True, True, False, True, True]


def retried(system: System) -> list[tuple[bytes | None, bytes | None, Headers]]:
    return [
        (record.key(), record.value(), headers)
        for record in system.read(system.settings.input_topic)
        if "dlq-retry-of" in dict(headers := headers_of(record))
    ]


@pytest.mark.parametrize("point", ["dlq.handled", "dlq.committed"])
def test_a_retry_that_dies_sends_nothing_twice(letters: System, point: str) -> None:
    words = ["dlq", "retry", "--all", "--yes"]
    died = run_command(letters.environ | {"OUTBOX_CRASH_POINT": point}, *words)
    assert died.returncode == -signal.SIGKILL
    code, said = run(letters, *words)
    assert code == 0
    assert f"retry {5 if point == 'dlq.handled' else 0} dead letters" in said
    publish(letters)
    make_dead_letters(letters, 5)
    assert len(retried(letters)) == 5
    assert [counts for *_, counts in logged_changes(letters)] == [SENT | {"dead_letters": 5}]


def test_discarded_dead_letters_are_handled_and_stay_in_the_topic(letters: System) -> None:
    assert answer(letters, "no", "dlq", "discard", "--all") == 1
    assert answer(letters, "yes", "dlq", "discard", "--key", KEY.decode()) == 0
    assert listed(letters, "dlq") == {"url_scheme": 2}
    handled = letters.query("SELECT partition, record_offset FROM dead_letters_handled")
    record_id = f"{handled[0][0]}:{handled[0][1]}"
    assert shown(letters, "dlq", record_id)["state"] == "discarded"
    code, said = run(letters, "dlq", "retry", record_id, "1:99999", "--yes")
    assert code == 1
    assert "retry 0 dead letters" in said
    why = said.partition("no dead letter is waiting with this id")[2]
    assert f"{record_id} (discarded)" in why
    assert "1:99999 (not found)" in why
    assert len(letters.read(letters.settings.dead_letter_topic)) == 5
    (change,) = logged_changes(letters)
    assert change == ("dlq discard --key ***", "discard", SENT | {"dead_letters": 3})


def answer(system: System, word: str, *words: str) -> int:
    """Run a command at a terminal, answer its question, and return its exit code."""
    ours, theirs = pty.openpty()
    os.write(ours, f"{word}\n".encode())
    try:
        return subprocess.run(
            [sys.executable, "-m", "orchestrator", *words],
            env=INHERITED | system.environ,
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            timeout=40,
            check=False,
        ).returncode
    finally:
        os.close(ours)
        os.close(theirs)


# ---- two operators at once --------------------------------------------------------------------------


@contextmanager
def held(system: System, statement: str, *values: object) -> Iterator[Connection]:
    """Give a session that has executed a statement in a transaction; undo it at the end."""
    with closing(system.connect("holder")) as conn:
        conn.execute("BEGIN")
        conn.execute(statement.encode(), values)
        yield conn
        conn.execute("ROLLBACK")


@pytest.fixture
def database(servers: Servers, tmp_path: Path) -> Iterator[System]:
    """Only the tables."""
    with bare_system(servers, tmp_path) as system:
        with closing(system.connect()) as conn:
            migrate(conn, 1)
        yield system


def dead_letter(offset: int, origin: UUID) -> DeadLetter:
    return DeadLetter(
        RecordId(0, offset), datetime.now(UTC), "not_json", None, origin, KEY, b"{", (), {}
    )


WAITING = """
    SELECT 1
      FROM pg_stat_activity
     WHERE application_name = 'other' AND wait_event_type = 'Lock' AND datname = current_database()
"""


TAKE = """
    INSERT INTO dead_letters_handled (topic_id, partition, record_offset, action, origin)
    VALUES (%s, 0, %s, %s, %s)
"""


def topic_of(system: System) -> DeadLetterTopic:
    """Return a dead-letter topic, and an input, of which nothing is read."""
    return DeadLetterTopic(system.settings, uuid4(), {}, uuid4())


@pytest.mark.parametrize("action", ["retry", "discard"])
def test_of_two_operators_one_handles_the_dead_letters_of_a_record(
    database: System, action: str
) -> None:
    topic, origin = topic_of(database), UUID(int=1)
    chosen = [dead_letter(1, origin), dead_letter(2, UUID(int=2))]
    with (
        closing(database.connect("other")) as other,
        ThreadPoolExecutor(1) as pool,
        held(database, TAKE, topic.topic_id, 8, action, origin) as mine,
    ):
        sent = pool.submit(handle_dead_letters, other, topic, chosen, "retry", "dlq retry --all")
        eventually(lambda: database.query(WAITING))
        mine.execute("COMMIT")
        assert sent.result(20) == Handled(done=1)
    handled = database.query("SELECT record_offset FROM dead_letters_handled ORDER BY 1")
    assert handled == [(2,), (8,)]


PARK = """
    INSERT INTO outbox_parked (lane, id, topic, value, created_at, reason)
    VALUES (0, %s, 'to_deploy', ''::bytea, NOW(), 'Broker: Message size too large')
"""


Change = Callable[[Connection, Sequence[RowId]], Sequence[RowId]]


@pytest.mark.parametrize("change", [retry_parked, discard_parked])
def test_parked_rows_are_locked_in_one_order(database: System, change: Change) -> None:
    for row_id in (2, 1):
        database.query(PARK, row_id)
    lock = "SELECT 1 FROM outbox_parked WHERE id = %s FOR UPDATE NOWAIT"
    with (
        closing(database.connect("other")) as other,
        ThreadPoolExecutor(1) as pool,
        held(database, lock, 1) as mine,
    ):
        changed = pool.submit(change, other, [RowId(0, 2), RowId(0, 1)])
        eventually(lambda: database.query(WAITING))
        mine.execute(lock.encode(), (2,))
        mine.execute("ROLLBACK")
        assert changed.result(20) == [(0, 1), (0, 2)]


def test_the_logged_repair_has_the_rows_that_were_changed(database: System) -> None:
    for row_id in (1, 2):
        database.query(PARK, row_id)
    with closing(database.connect()) as conn:
        chosen = list(read_parked(conn))
        assert retry_parked(conn, [RowId(0, 2)]) == [(0, 2)]  # another operator was faster
        assert retry_rows(conn, chosen, frozenset(), "parked retry --all") == (1, 0)
        assert retry_rows(conn, chosen, frozenset({RowId(0, 1)}), "parked retry --all") == (0, 0)
    repairs = database.query("SELECT before, counts FROM repairs")
    about = {"row_ids": [[0, 1]], "worker_ids": []}
    assert repairs == [(about, {"parked_rows": 1, "sent_before": 0})]


def test_handled_dead_letters_are_counted_while_they_are_in_the_topic(database: System) -> None:
    topic = topic_of(database)
    chosen = [dead_letter(number, UUID(int=number)) for number in range(1, 5)]
    with closing(database.connect()) as conn:
        done = handle_dead_letters(conn, topic, chosen, "discard", "dlq discard")
        assert done == Handled(done=4)
        for first, end, count in ((0, 9, 4), (3, 9, 2), (5, 9, 0), (0, 2, 1)):
            assert count_handled(conn, topic._replace(ranges={0: OffsetRange(first, end)})) == count
        assert count_handled(conn, topic._replace(ranges={1: OffsetRange(0, 9)})) == 0


# ---- parked rows ------------------------------------------------------------------------------------


@pytest.fixture
def parked(system: System) -> System:
    """A running relay, and two rows that are too large for their topic."""
    limit_messages(system, 400)
    system.start("relay")
    long = "x" * 500
    accepted = [
        msgspec.json.encode(
            {"scenario_uuid": str(uuid4()), "camera_url": f"rtsp://u:{SECRET}@h/{long}"}
        )
    ]
    system.start("consumer")
    system.produce(*accepted * 2, key=KEY)
    eventually(lambda: system.query("SELECT count(*) FROM outbox_parked") == [(2,)], 30)
    return system


def test_parked_rows_are_published_once_the_topic_accepts_them(parked: System) -> None:
    relay = parked._running[0]
    for (worker,) in parked.query("SELECT worker_id FROM workers"):
        eventually(partial(relay.logged, f'"aggregate_id": "{worker}"'))
    ((lane, row_id), *_) = parked.query("SELECT lane, id FROM outbox_parked ORDER BY lane, id")
    (reason,) = listed(parked, "parked")
    assert "too large" in reason
    one = shown(parked, "parked", f"{lane}:{row_id}")
    assert one["row_id"] == f"{lane}:{row_id}"
    assert SECRET not in str(one)
    assert SECRET in shown(parked, "parked", f"{lane}:{row_id}", "--payload")["payload"]
    assert refused(parked, "parked", "show")  # which ones?
    code, said = run(parked, "parked", "retry", f"{lane}:{row_id}", "3:99999", "--dry-run")
    assert code == 1
    assert "no parked row is waiting with this id: 3:99999" in said
    assert "retry 1 parked rows" in said
    assert parked.query("SELECT count(*) FROM outbox_parked") == [(2,)]

    limit_messages(parked, 100_000)
    code, said = run(parked, "parked", "retry", "--reason", "large", "--yes")
    assert code == 0, said
    parked.check_exactly_once(2)
    assert listed(parked, "parked") == {}
    counts = {"parked_rows": 2, "sent_before": 0}
    assert logged_changes(parked) == [("parked retry --reason large", "retry", counts)]


def test_discarded_parked_rows_stay_in_the_table_and_the_audit_does_not_report_them(
    parked: System,
) -> None:
    code, said = run(parked, "parked", "discard", "--all", "--yes")
    assert code == 0
    assert "2 parked rows are discarded" in said
    assert listed(parked, "parked") == {}
    assert sum(listed(parked, "parked", "--handled").values()) == 2
    assert "retry 0 parked rows" in run(parked, "parked", "retry", "--all", "--yes")[1]
    ((lane, row_id), *_) = parked.query("SELECT lane, id FROM outbox_parked")
    assert shown(parked, "parked", f"{lane}:{row_id}")["discarded_at"] is not None
    assert parked.audit().passed
    assert parked.statuses() == {"pending": 2}
