"""What an operator sees on a terminal: what is wrong first, on 80 columns and 24 lines, in colours."""

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.cli import screen
from orchestrator.cli.doctor import render_findings
from orchestrator.cli.status_screen import ranges, render_status
from orchestrator.operations.doctor.check import Finding
from orchestrator.operations.status.flow import flow_between
from orchestrator.operations.status.input import DeadLetterCount, PartitionReport, Rates
from orchestrator.operations.status.lanes import LaneCondition, LaneReport
from orchestrator.operations.status.status import Status
from testkit.system import INHERITED
from testkit.terminal import COLUMNS, LINES, on_terminal


def lane(number: int, rows: int) -> LaneReport:
    """Return a lane of a relay, with rows that wait."""
    return LaneReport(
        lane=number,
        state=LaneCondition.ACTIVE,
        refusal=None,
        waits_for=None,
        owner="outbox relay 10.20.30.40",
        epoch=12,
        batch_number=123_456,
        inflight=1_000,
        pending=rows,
        oldest_s=59.9 if rows else None,
        repair=None,
    )


def partition(number: int, lag: int = 0) -> PartitionReport:
    """Return a partition that is consumed."""
    return PartitionReport(number, 12_345_678 - lag, 12_345_678, lag, None, None)


def status(lanes: int = 16, partitions: int = 12, rows: int = 12_500, lag: int = 0) -> Status:
    """Return a status where nothing is wrong."""
    return Status(
        at=datetime(2026, 1, 31, 12, tzinfo=UTC),
        versions={"orchestrator": "0.1.0", "postgres": "18.1", "librdkafka": "2.12.1"},
        relays=2,
        relays_without_kafka=(),
        consumers=2,
        members=2,
        workers=None,
        sequences=(),
        filters=(),
        lanes=[lane(number, rows) for number in range(lanes)],
        partitions=[partition(number, lag) for number in range(partitions)],
        rates=Rates(1.0, 1.0),
        last_accepted=None,
        last_row_id=lanes * rows,
        dead_letters=DeadLetterCount(0, False),
        parked={},
        first_parked=None,
        deferred=(),
        standby=None,
        unknown={},
    )


def test_the_first_line_says_whether_all_is_well() -> None:
    assert next(render_status(status())).split() == ["ok", "nothing", "is", "wrong"]
    ill = status()._replace(
        relays=0, dead_letters=DeadLetterCount(55, False), unknown={"markers": OSError("gone")}
    )
    states = [line.split()[0] for line in render_status(ill)][:4]
    assert states == ["UNKNOWN", "PROBLEM", "PROBLEM", "2026-01-31"]
    assert ": 2 problems, 1 unknown" in list(render_status(ill))[3]
    assert "no relay is connected" in list(render_status(ill))[1]


@pytest.mark.parametrize("relays", [0, 2])
def test_16_lanes_and_12_partitions_fit_on_a_terminal(
    relays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setattr(screen, "is_terminal", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    lines = [
        screen.laid_out(line) for line in render_status(status(lag=99_999)._replace(relays=relays))
    ]
    shown = "\n".join(lines).splitlines()
    assert max(map(len, shown)) <= COLUMNS
    assert len(shown) <= LINES


def test_of_many_lanes_and_partitions_those_are_shown_where_something_happens() -> None:
    many = status(lanes=64, partitions=200, rows=0)
    busy = many._replace(
        lanes=[*many.lanes[:-1], lane(63, 5)],
        partitions=[*(many.partitions or ())[:-1], partition(199, 7)],
    )
    shown = list(render_status(busy))
    assert len(shown) < LINES
    assert any(re.match(r" *63  active +5", line) for line in shown)
    assert any(re.search(r"\b199  ok +12345671 +7$", line) for line in shown)
    assert any("63 more lanes: active, no rows" in line for line in shown)
    assert any("199 more partitions: ok, no lag" in line for line in shown)


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 5, 7, 8], "0-2, 5, 7-8")]
)
def test_lanes_are_named_as_ranges(numbers: Sequence[int], text: str) -> None:
    assert ranges(numbers) == text


def test_rates_are_those_between_two_looks() -> None:
    """Rows that are added and sent between two looks count as both."""
    before = status(rows=10_000, lag=1_000)
    now = status(rows=8_000, lag=500)._replace(
        at=before.at + timedelta(seconds=2), last_row_id=(before.last_row_id or 0) + 4_000
    )
    flow = flow_between(before, now)
    assert (flow.read, flow.enqueued, flow.sent) == (3_000, 2_000, 18_000)
    assert (flow.rows_end_s, flow.lag_end_s) == (8.0, 2.0)
    shown = "\n".join(render_status(now, flow))
    assert "rows: 128,000 wait, 2,000/s added, 18,000/s sent, none left in 8.0 s" in shown

    standing = flow_between(now, now._replace(at=now.at + timedelta(seconds=2)))
    assert (standing.sent, standing.rows_end_s, standing.lag_end_s) == (0, None, None)
    assert flow_between(before, now._replace(last_row_id=None)).sent is None


def test_doctor_shows_the_most_serious_first_and_counts() -> None:
    findings = [
        Finding("settings", "ok", "fine"),
        Finding("lanes", "warning", "few"),
        Finding("markers", "failed", "differ"),
    ]
    assert list(render_findings(findings, every=False)) == [
        "failed      markers: differ",
        "warning     lanes: few",
        "1 ok, 1 warning, 1 failed; --all shows what is ok, too",
    ]
    assert list(render_findings(findings, every=True))[2:] == [
        "ok          settings: fine",
        "1 ok, 1 warning, 1 failed",
    ]
    assert next(render_findings(findings[:1], every=False)) == "ok          all 1 checks"


# ---- a real terminal ----------------------------------------------------------------------------

SHOW = """
from orchestrator.cli.terminal import print_lines
print_lines(["PROBLEM  " + "word " * 30, "no state"])
"""
WATCH = """
import time
from orchestrator.__main__ import exit_on_sigterm
exit_on_sigterm()
from orchestrator.cli import screen
with screen.own_screen():
    screen.draw([f"line {number}" for number in range(100)], "less")
    THEN
"""


def test_a_state_is_coloured_and_wrapped_on_a_terminal_alone() -> None:
    written, _ = on_terminal("-c", SHOW)
    assert written.startswith("\x1b[31mPROBLEM\x1b[0m  word")
    first, second, *_, last = written.splitlines()
    assert len(first) <= COLUMNS + len("\x1b[31m\x1b[0m")
    assert second.startswith(" " * 9 + "word")
    assert last == "no state"
    assert "\x1b" not in on_terminal("-c", SHOW, environ={"NO_COLOR": "1"})[0]
    assert "\x1b" not in on_terminal("-c", SHOW, environ={"TERM": "dumb"})[0]
    piped = subprocess.run([sys.executable, "-c", SHOW], env=INHERITED, capture_output=True, check=True)
    assert piped.stdout.count(b"\n") == 2


@pytest.mark.parametrize(
    ("then", "end", "code"),
    [
        ("time.sleep(60)", signal.SIGTERM, 143),
        ("time.sleep(60)", signal.SIGINT, None),
        ("raise OSError", None, 1),
        ("pass", None, 0),
    ],
)
def test_a_terminal_is_left_as_it_was(then: str, end: signal.Signals | None, code: int | None) -> None:
    written, ended = on_terminal("-c", WATCH.replace("THEN", then), end=end, once="more lines")
    entered, left = written.index(screen.ENTER), written.index(screen.LEAVE)
    shown = written[entered + len(screen.ENTER) : left]
    assert shown.count("\n") < LINES
    assert "... 77 more lines: less" in shown
    assert code is None or ended == code


WIDE = """
from orchestrator.cli import screen
screen.draw(["PROBLEM  first", "", *("x" * 100 for _ in range(20))], "less")
"""


def test_a_line_wider_than_the_terminal_pushes_the_first_one_not_off_it() -> None:
    rows = on_terminal("-c", WIDE)[0].replace("\x1b[H", "").replace("\x1b[K", "").splitlines()
    assert len(rows) == LINES
    assert max(map(len, rows)) == COLUMNS
    assert (rows[0], rows[1], rows[-1]) == ("PROBLEM  first", "", "... 19 more lines: less")


LOG = """
import logging
from orchestrator.observability.logs import configure_logging
configure_logging("INFO", FORM)
logging.getLogger("test").info("heard", extra={"lane": 3})
"""


def test_a_log_is_text_on_a_terminal_and_json_elsewhere() -> None:
    said, _ = on_terminal("-c", LOG.replace("FORM", "None"))
    assert "INFO    heard lane=3" in said
    assert '"lane": 3' in on_terminal("-c", LOG.replace("FORM", "'json'"))[0]
    code = [sys.executable, "-c", LOG.replace("FORM", "None")]
    piped = subprocess.run(code, env=INHERITED, capture_output=True, check=True)
    assert b'"lane": 3' in piped.stderr
