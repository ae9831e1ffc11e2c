"""The screen of `status`: what is wrong, most serious first; figures; lanes and partitions.

It fits on 80 columns and 24 lines with 16 lanes, 12 partitions and one thing wrong.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

from orchestrator.cli import screen
from orchestrator.cli.terminal import table
from orchestrator.operations.doctor.check import counted
from orchestrator.operations.status.flow import Flow
from orchestrator.operations.status.input import PartitionReport
from orchestrator.operations.status.lanes import MAX_COUNTED, LaneCondition, LaneReport
from orchestrator.operations.status.problems import OLD_S, describe_deferred
from orchestrator.operations.status.status import Status
from orchestrator.operations.text import duration, utc_text
from outbox import error_text

MAX_ROWS = 16  # of a table; of a longer one those where nothing happens are left out
GAP = 3  # columns between two tables


def render_status(status: Status, flow: Flow | None = None) -> Iterator[str]:
    """Yield the lines. flow: what moved since the last look, if it is watched."""
    wrong = [f"UNKNOWN  {what}: {error_text(error)}" for what, error in status.unknown.items()]
    wrong += [f"PROBLEM  {problem}" for problem in status.problems]
    remarks = [f"NOTE     {note}" for note in notes(status)]
    yield from wrong or ["ok       nothing is wrong"]
    yield from remarks
    summary = ", ".join(
        [counted(len(status.problems), "problem")] * bool(status.problems)
        + [f"{len(status.unknown)} unknown"] * bool(status.unknown)
        + [counted(len(remarks), "note")] * bool(remarks)
    )
    processes = f"{status.consumers} consumer(s), {status.relays} relay(s)"
    yield f"{utc_text(status.at)} UTC, {processes}" + (summary and f": {summary}")
    yield from figures(status, flow)
    yield from beside(lane_table(status.lanes), partition_table(status.partitions or ()))
    for owner, lanes in lanes_by_owner(status.lanes).items():
        yield f"{owner}: lane{'s' * (len(lanes) > 1)} {ranges(lanes)}"


def notes(status: Status) -> Iterator[str]:
    """Yield what an operator may want to know and that is no problem."""
    for one in status.deferred:
        if one.oldest_s <= OLD_S:
            yield describe_deferred(one)
    if status.relays and any(lane.owner is None for lane in status.lanes):
        yield "lanes without an owner: a relay takes them within seconds"


def figures(status: Status, flow: Flow | None) -> Iterator[str]:
    """Yield what waits, and how fast it moves."""
    commands, rows = f"commands: {_count(status.lag)} wait", f"rows: {_rows(status)} wait"
    if flow:
        yield f"{commands}, {_rate(flow.read)} read{_end(flow.lag_end_s)}"
        yield f"{rows}, {_rate(flow.enqueued)} added, {_rate(flow.sent)} sent{_end(flow.rows_end_s)}"
    else:
        accepted, deployed = (_rate(rate) for rate in status.rates)
        yield f"{commands}; of the last minute {accepted} accepted, {deployed} deployed"
        yield rows + (
            "" if status.oldest_s is None else f", the oldest for {duration(status.oldest_s)}"
        )


# ---- tables -------------------------------------------------------------------------------------


def lane_table(lanes: Sequence[LaneReport]) -> list[str]:
    """Return a line for each lane; of many, for those where something happens."""
    shown = lanes if len(lanes) <= MAX_ROWS else [lane for lane in lanes if not _is_quiet(lane)]
    rows = [(one.lane, one.state, _pending(one), _age(one), one.batch_number) for one in shown]
    return [
        *table(("lane", "state", "rows", "oldest", "batch"), rows),
        *_left_out("lanes", "active, no rows", len(lanes) - len(shown)),
    ]


def partition_table(partitions: Sequence[PartitionReport]) -> list[str]:
    """Return a line for each partition; of many, for those where something happens."""
    quiet = {one.partition for one in partitions if _state(one) == "ok" and not one.lag}
    shown = [one for one in partitions if len(partitions) <= MAX_ROWS or one.partition not in quiet]
    rows = [(one.partition, _state(one), one.position, one.lag) for one in shown]
    return [
        *table(("partition", "state", "position", "lag"), rows),
        *_left_out("partitions", "ok, no lag", len(partitions) - len(shown)),
    ]


def beside(left: Sequence[str], right: Sequence[str]) -> Iterator[str]:
    """Yield two tables beside each other, or below each other where they are too wide."""
    indent = max(map(len, left), default=0) + GAP
    if indent + max(map(len, right), default=0) <= screen.width():
        for one, other in zip_longest(left, right, fillvalue=""):
            yield f"{one:{indent}}{other}".rstrip()
    else:
        yield from left
        yield from right


def lanes_by_owner(lanes: Sequence[LaneReport]) -> Mapping[str, list[int]]:
    """Return the lanes of each relay."""
    owned: dict[str, list[int]] = {}
    for lane in lanes:
        if lane.owner:
            owned.setdefault(lane.owner, []).append(lane.lane)
    return owned


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text: 0-3, 5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


# ---- cells --------------------------------------------------------------------------------------


def _is_quiet(lane: LaneReport) -> bool:
    return lane.state is LaneCondition.ACTIVE and lane.pending == 0


def _left_out(what: str, why: str, number: int) -> Iterator[str]:
    if number:
        yield f"{number} more {what}: {why}"


def _state(partition: PartitionReport) -> str:
    return "refused" if partition.refusal else "unread" if partition.unread else "ok"


def _pending(lane: LaneReport) -> int | str:
    if lane.pending is None:
        return "unknown"
    return lane.pending if lane.pending < MAX_COUNTED else f"{MAX_COUNTED}+"


def _rows(status: Status) -> str:
    known = [lane.pending for lane in status.lanes if lane.pending is not None]
    if len(known) < len(status.lanes):
        return "unknown"
    return f"{sum(known):,}" + "+" * any(rows >= MAX_COUNTED for rows in known)


def _age(lane: LaneReport) -> str | None:
    return None if lane.oldest_s is None else duration(lane.oldest_s)


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _rate(rate: float | None) -> str:
    return "not counted" if rate is None else f"{rate:,.{0 if rate >= 100 else 1}f}/s"


def _end(seconds: float | None) -> str:
    return "" if seconds is None else f", none left in {duration(seconds)}"
