"""`orchestrator dlq` and `orchestrator parked`: found, shown without secrets, sent again once."""

import signal
from collections import Counter
from functools import partial
from uuid import uuid4

import msgspec
import pytest
from confluent_kafka import Message as Record

from orchestrator.messages import headers_of
from outbox import Headers
from tests.bare import run_command
from tests.eventually import eventually
from tests.system import System, limit_messages

SECRET = "hush-hush"
KEY = b"some key"


def run(system: System, *words: str, **environ: str) -> tuple[int, str]:
    """Run a command without a terminal; return its exit code and all it said."""
    ran = run_command(system.environ | environ, *words)
    assert "Traceback" not in ran.stderr
    return ran.returncode, ran.stdout + ran.stderr


def listed(system: System, kind: str, *words: str) -> dict[str, int]:
    """Return what `list --json` counts, by reason."""
    ran = run_command(system.environ, kind, "list", "--json", *words)
    assert ran.returncode == 0, ran.stderr
    counts: dict[str, int] = msgspec.json.decode(ran.stdout)["by_reason"]
    return counts


def audit_lines(system: System) -> list[tuple[str, str, dict[str, int]]]:
    return [
        tuple(row) for row in system.query("SELECT command, reason, counts FROM repairs ORDER BY id")
    ]


def command(url: str) -> bytes:
    return msgspec.json.encode({"scenario_uuid": str(uuid4()), "camera_url": url})


@pytest.fixture
def letters(system: System) -> System:
    """Consumer and relay at work, and five dead letters of three kinds in the topic."""
    system.start("consumer")
    system.start("relay")
    system.produce(f"not JSON {SECRET}".encode(), b"{", key=KEY, headers=[("traceparent", b"00-1")])
    system.produce(command(f"gopher://u:{SECRET}@h/1"), command("gopher://h/2"), key=b"other")
    system.produce(None, key=KEY)
    topic = system.settings.dead_letter_topic
    eventually(lambda: len(system.read(topic)) == 5, 20)
    return system


def test_dead_letters_are_listed_by_filter_and_shown_without_their_content(letters: System) -> None:
    everything = {"not_json": 2, "url_scheme": 2, "empty": 1}
    assert listed(letters, "dlq") == everything
    assert listed(letters, "dlq", "--reason", "url_scheme") == {"url_scheme": 2}
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
    place = f"{record.partition()}:{record.offset()}"
    code, said = run(letters, "dlq", "show", place)
    assert code == 0
    assert '"reason": "url_scheme"' in said
    assert f'"origin": "{letters.settings.input_topic}:' in said
    assert f'"kafka_dlt-original-offset": {origin_offset(record)}' in said
    assert "gopher" not in said
    code, said = run(letters, "dlq", "show", place, "--payload")
    assert code == 0
    assert "gopher://" in said
    assert run(letters, "dlq", "show", "0:99999")[0] == 1


def origin_offset(letter: Record) -> int:
    return int.from_bytes(dict(headers_of(letter))["kafka_dlt-original-offset"] or b"", "big")


def test_a_retry_puts_the_command_into_the_input_once(letters: System) -> None:
    """Mended meanwhile: the scheme is allowed now, so the consumer accepts what it refused before."""
    before = len(letters.read(letters.settings.input_topic))
    assert run(letters, "dlq", "retry", "--reason", "url_scheme")[0] == 2  # nobody to ask
    assert run(letters, "dlq", "retry", "--yes")[0] == 2  # which ones?
    code, said = run(letters, "dlq", "retry", "--reason", "url_scheme", "--dry-run")
    assert code == 0
    assert "retry 2 dead letters: 2 url_scheme" in said
    assert audit_lines(letters) == []

    for running in letters._running:
        running.stop()
    letters.start("consumer", CAMERA_URL_SCHEMES="gopher,rtsp")
    letters.start("relay")
    code, said = run(letters, "dlq", "retry", "--reason", "url_scheme", "--yes")
    assert code == 0, said
    assert "2 dead letters are in the outbox now" in said
    letters.check_exactly_once(2)
    assert len(letters.read(letters.settings.input_topic)) == before + 2
    code, said = run(letters, "dlq", "retry", "--reason", "url_scheme", "--yes")
    assert "retry 0 dead letters" in said
    assert audit_lines(letters)[0][:2] == ("dlq retry --reason url_scheme", "retry")
    assert sum(counts["letters"] for *_, counts in audit_lines(letters)) == 2
    assert listed(letters, "dlq") == {"not_json": 2, "empty": 1}
    assert listed(letters, "dlq", "--handled") == {"not_json": 2, "url_scheme": 2, "empty": 1}


def test_a_retried_command_has_its_own_key_value_and_headers(letters: System) -> None:
    run(letters, "dlq", "retry", "--reason", "not_json", "--yes")
    eventually(lambda: len(retried(letters)) == 2, 20)
    for key, value, headers in retried(letters):
        assert key == KEY
        assert value in {f"not JSON {SECRET}".encode(), b"{"}
        assert [name for name, _ in headers] == ["traceparent", "dlq-retry-of"]
    # they are as bad as before: dead letters again, and told apart from the first ones
    eventually(lambda: listed(letters, "dlq") == {"not_json": 2, "url_scheme": 2, "empty": 1}, 20)


def retried(system: System) -> list[tuple[bytes | None, bytes | None, Headers]]:
    return [
        (record.key(), record.value(), headers)
        for record in system.read(system.settings.input_topic)
        if "dlq-retry-of" in dict(headers := headers_of(record))
    ]


@pytest.mark.parametrize("point", ["dlq.handled", "dlq.committed"])
def test_a_retry_that_dies_sends_nothing_twice(letters: System, point: str) -> None:
    for running in letters._running:  # or what is sent again is a dead letter again before we look
        running.stop()
    words = ["dlq", "retry", "--all", "--yes"]
    died = run_command(letters.environ | {"OUTBOX_CRASH_POINT": point}, *words)
    assert died.returncode == -signal.SIGKILL
    code, said = run(letters, *words)
    assert code == 0
    assert f"retry {5 if point == 'dlq.handled' else 0} dead letters" in said
    letters.start("consumer")
    letters.start("relay")
    eventually(lambda: len(retried(letters)) == 5, 20)
    eventually(lambda: len(letters.read(letters.settings.dead_letter_topic)) == 10, 20)
    assert len(retried(letters)) == 5
    assert Counter(count for *_, counts in audit_lines(letters) for count in counts.values()) == {5: 1}


def test_discarded_letters_are_done_with_and_stay_in_the_topic(letters: System) -> None:
    code, said = run(letters, "dlq", "discard", "--key", KEY.decode(), "--yes")
    assert code == 0
    assert "3 dead letters are done with" in said
    assert listed(letters, "dlq") == {"url_scheme": 2}
    assert (
        run(letters, "dlq", "retry", "--key", KEY.decode(), "--yes")[1].count("retry 0 dead letters")
        == 1
    )
    assert len(letters.read(letters.settings.dead_letter_topic)) == 5
    assert audit_lines(letters) == [("dlq discard --key ***", "discard", {"letters": 3})]


# ---- parked rows ------------------------------------------------------------------------------------


@pytest.fixture
def parked(system: System) -> System:
    """A relay at work, and two rows that the topic was too small for."""
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


def test_parked_rows_are_sent_once_the_topic_takes_them(parked: System) -> None:
    relay = parked._running[0]
    for (worker,) in parked.query("SELECT worker_id FROM workers"):
        eventually(partial(relay.logged, f'"subject": "{worker}"'))
    ((lane, row_id), *_) = parked.query("SELECT lane, id FROM outbox_parked ORDER BY lane, id")
    (reason,) = listed(parked, "parked")
    assert "too large" in reason
    code, said = run(parked, "parked", "show", f"{lane}:{row_id}")
    assert code == 0
    assert SECRET not in said
    assert f'"place": "{lane}:{row_id}"' in said
    assert SECRET in run(parked, "parked", "show", f"{lane}:{row_id}", "--payload")[1]
    code, said = run(parked, "parked", "retry", f"{lane}:{row_id}", "--dry-run")
    assert "retry 1 parked rows" in said
    assert parked.query("SELECT count(*) FROM outbox_parked") == [(2,)]

    limit_messages(parked, 100_000)
    code, said = run(parked, "parked", "retry", "--reason", "too large", "--yes")
    assert code == 0, said
    parked.check_exactly_once(2)
    assert listed(parked, "parked") == {}
    assert audit_lines(parked) == [("parked retry --reason too large", "retry", {"rows": 2})]


def test_parked_rows_that_are_given_up_stay_as_a_trace_and_are_not_called_lost(parked: System) -> None:
    code, said = run(parked, "parked", "discard", "--all", "--yes")
    assert code == 0
    assert "2 parked rows are given up" in said
    assert listed(parked, "parked") == {}
    assert sum(listed(parked, "parked", "--handled").values()) == 2
    assert "retry 0 parked rows" in run(parked, "parked", "retry", "--all", "--yes")[1]
    assert parked.audit().clean
    assert parked.statuses() == {"pending": 2}
