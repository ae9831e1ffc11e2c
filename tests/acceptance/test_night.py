"""A night on call: in each case the first line that `status` prints is what matters."""

import re

import pytest

from testkit.disagreement import set_marker
from testkit.empty_installation import run_in_process
from testkit.eventually import eventually
from testkit.system import System

pytestmark = (
    pytest.mark.slow
)  # each step has a form of its own in test_status, test_waiting, test_audit


def run(system: System, *words: str, **environ: str) -> tuple[int, str]:
    """Run a command; return its exit code, and all that it prints."""
    ran = run_in_process(system.environ | environ, *words)
    return ran.returncode, ran.stdout + ran.stderr


def expect_first(system: System, words: str, code: int = 1, **environ: str) -> None:
    """Wait until the first line of `status` is this, with this exit code."""

    def first() -> bool:
        ended, said = run(system, "status", **environ)
        return ended == code and re.match(words, said) is not None

    eventually(first)


def test_the_first_line_is_what_matters(system: System) -> None:
    system.start("consumer")
    relay = system.start("relay")
    system.submit(20)
    expect_first(system, "ok ", 0)

    relay.stop()
    system.submit(200)
    expect_first(system, "PROBLEM  no relay is connected, the oldest row waits for ")
    eventually(lambda: "220 accepted, 20 deployed" in run(system, "audit")[1])
    assert run(system, "audit")[1].endswith("passed; 200 rows still wait, and no relay runs\n")
    ((row,),) = system.query("SELECT lane || ':' || id FROM outbox ORDER BY id LIMIT 1")
    assert run(system, "waiting", "park", row, "--yes")[0] == 0

    relay = system.start("relay")
    system.produce(b"no JSON")
    expect_first(system, "PROBLEM  parked rows wait for the operator, the first for .*`.* parked list`")
    assert run(system, "parked", "retry", "--all", "--yes")[0] == 0
    expect_first(system, "PROBLEM  1 dead letters wait for the operator, the first for .*`.* dlq list`")
    assert run(system, "dlq", "discard", "--all", "--yes")[0] == 0
    expect_first(system, "ok ", 0)

    relay.stop()
    ((batch_number,),) = system.query("SELECT batch_number FROM outbox_lane WHERE lane = 0")
    set_marker(system, batch_number + 5)
    system.start("relay")
    expect_first(system, "PROBLEM  refused: lane 0: marker_ahead: .* repair lane 0")
    assert run(system, "repair", "lane", "0", "--yes")[0] == 0
    expect_first(system, "ok ", 0)

    expect_first(system, "UNKNOWN  brokers: ", 3, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
    expect_first(
        system, "orchestrator: OperationalError: ", 3, DATABASE_URL="postgresql://127.0.0.1:1/x"
    )
    for words in ("dlq discard", "waiting park", "parked retry", "repair lane 0"):
        assert words in run(system, "history")[1]
