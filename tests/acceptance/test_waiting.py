"""`orchestrator waiting` and `history`: what waits in the outbox, parking by hand, and who did it."""

from contextlib import closing
from typing import Any

import msgspec

from orchestrator.operations.waiting_rows import park_rows
from outbox.admin import RowId
from testkit.empty_installation import run_in_process
from testkit.eventually import eventually
from testkit.system import System


def run(system: System, *words: str, code: int = 0) -> str:
    """Run a command; return its output."""
    ran = run_in_process(system.environ, *words)
    assert ran.returncode == code, ran.stderr
    return ran.stdout + ran.stderr


def waiting(system: System, *words: str) -> dict[str, Any]:
    """Return what `waiting list` tells a script."""
    fields: dict[str, Any] = msgspec.json.decode(run(system, "waiting", "list", "--json", *words))
    return fields


def test_rows_that_wait_are_listed_by_topic_key_and_age(system: System) -> None:
    system.accept(30)
    system.query("INSERT INTO outbox (lane, topic, key) VALUES (0, 'elsewhere', 'a key')")
    (other,) = system.query("SELECT lane || ':' || id FROM outbox WHERE topic = 'elsewhere'")
    found = waiting(system, "--limit", "5")
    assert {one["topic"]: one["rows"] for one in found["topics"]} == {
        system.settings.output_topic: 30,
        "elsewhere": 1,
    }
    assert all(0 < one["oldest_s"] < 120 for one in found["topics"])
    assert len(found["rows"]) == 5
    first = found["rows"][0]
    assert (first["topic"], first["batch_number"]) == (system.settings.output_topic, None)

    by_topic, by_key = waiting(system, "--topic", "elsewhere"), waiting(system, "--key", "a key")
    assert by_topic["rows"][0]["row_id"] == by_key["rows"][0]["row_id"] == other[0]
    by_scenario = waiting(system, "--key", first["key"])["rows"]
    assert by_scenario[0]["row_id"] == first["row_id"]
    text = run(system, "waiting", "list", "--limit", "2")
    assert text.splitlines()[-1] == "31 rows wait; the first 2 are shown, see --limit"
    assert "a key" not in text


def test_a_row_that_was_parked_by_hand_is_sent_later_and_once(one_lane: System) -> None:
    system = one_lane
    system.accept(3)
    first, second, third = (row["row_id"] for row in waiting(system)["rows"])
    system.query("UPDATE outbox_lane SET inflight = ARRAY[%s::bigint]", int(second.split(":")[1]))

    dry = run(system, "waiting", "park", first, second, "--dry-run", code=1)
    assert f"in flight, perhaps in Kafka already, and not parked: {second}" in dry
    assert "park 1 rows" in dry
    assert len(waiting(system)["rows"]) == 3

    said = run(
        system, "waiting", "park", first, second, "0:999", "--reason", "why not", "--yes", code=1
    )
    assert "no row is waiting with this id: 0:999" in said
    assert "1 rows are parked" in said
    assert [row["row_id"] for row in waiting(system)["rows"]] == [second, third]
    assert system.query("SELECT reason FROM outbox_parked") == [("parked by an operator: why not",)]

    system.query("UPDATE outbox_lane SET inflight = '{}'")
    system.start("relay")
    eventually(lambda: not waiting(system)["rows"])
    assert run(system, "parked", "retry", first, "--yes")
    system.check_exactly_once(3)

    (user,) = system.query("SELECT session_user")
    shown = msgspec.json.decode(run(system, "history", "--json"))
    assert [(one["command"], one["repaired_by"], one["counts"]) for one in shown] == [
        (f"waiting park {first}", user[0], {"rows": 1}),
        (f"parked retry {first}", user[0], {"parked_rows": 1, "sent_before": 0}),
    ]
    lines = run(system, "history", "--limit", "1").splitlines()
    assert len(lines) == 2
    assert f"parked retry {first}" in lines[1]
    assert "no operator has changed anything" in run(system, "history", "--since", "0s")


def test_a_row_that_a_relay_has_claimed_meanwhile_is_not_parked(one_lane: System) -> None:
    """The operator looked before the claim: what counts is what the locked lane says."""
    one_lane.accept(2)
    rows = [RowId(0, number) for (number,) in one_lane.query("SELECT id FROM outbox ORDER BY id")]
    one_lane.query("UPDATE outbox_lane SET inflight = ARRAY[%s::bigint]", rows[0].id)
    with closing(one_lane.connect()) as conn:
        assert park_rows(conn, rows, "why", "command") == rows[1:]
    assert one_lane.query("SELECT id FROM outbox") == [(rows[0].id,)]
