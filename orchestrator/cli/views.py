"""What `status` and `explain` show to a person: one screen, and a line for each step of a life."""

from collections.abc import Iterator
from datetime import UTC, datetime

from orchestrator.cli.terminal import table
from orchestrator.operations.explain.explanation import Story
from orchestrator.operations.explain.worker_history import SHOWN, TRIES, Found, Life, Waiting
from orchestrator.operations.status import BEHIND_S, MOST_COUNTED, DeadLetters, LaneStatus, Status
from orchestrator.operations.text import duration
from outbox import error_text

# ---- status -----------------------------------------------------------------------------------------


def show_status(status: Status) -> Iterator[str]:
    """Yield one screen for people, a line each."""
    versions = ", ".join(f"{name} {version}" for name, version in status.versions.items())
    yield f"{status.at:%Y-%m-%d %H:%M:%S} UTC   {versions}"
    yield f"processes: {status.consumers} consumer(s), {status.relays} relay(s) in Postgres"
    accepted, deployed = (_rate(rate) for rate in status.rates)
    yield f"commands made in the last minute: {accepted} accepted, {deployed} deployed"
    yield ""
    lanes = [
        (
            lane.lane,
            lane.state,
            lane.owner,
            lane.epoch,
            lane.batch_number,
            lane.inflight,
            _pending(lane),
            _age(lane),
        )
        for lane in status.lanes
    ]
    yield from table(
        ("lane", "state", "owner", "epoch", "batch_number", "inflight", "pending", "oldest"), lanes
    )
    yield ""
    partitions = [
        (one.partition, one.fault or "ok", one.offset, one.log_end, one.lag)
        for one in status.partitions or ()
    ]
    yield from table(("partition", "state", "offset", "log end", "lag"), partitions)
    yield ""
    yield f"dead letters: {_letters(status.dead_letters)}"
    parked = ", ".join(f"{rows} {reason}" for reason, rows in status.parked.items())
    yield f"parked rows:  {parked or 'none'}" + ("   orchestrator parked list" if parked else "")
    for what, command in status.refusals.items():
        yield f"REFUSED  {what}: {command}"
    for what, error in status.unknown.items():
        yield f"UNKNOWN  {what}: {error_text(error)}"
    for trouble in troubles(status):
        yield f"NOTE     {trouble}"


def troubles(status: Status) -> Iterator[str]:
    """Yield what a person should know that is no refusal."""
    if not status.relays:
        yield "no relay is connected: nothing is sent until one runs"
    if not status.consumers:
        yield "no consumer is connected: nothing is accepted until one runs"
    if status.relays and any(lane.owner is None for lane in status.lanes):
        yield "lanes without an owner: a relay takes them within seconds"
    if any(lane.state == "behind" for lane in status.lanes):
        yield (
            f"lanes behind: their oldest rows wait longer than {BEHIND_S:.0f} s; where batch_number does not"
            " grow from look to look, the relay's /readyz says why"
        )


def _rate(rate: float | None) -> str:
    return "too many to count" if rate is None else f"{rate:,.1f}/s"


def _pending(lane: LaneStatus) -> int | str:
    if lane.pending is None:
        return "unknown"
    return lane.pending if lane.pending < MOST_COUNTED else f"{MOST_COUNTED} or more"


def _letters(letters: DeadLetters | None) -> str:
    if letters is None:
        return "unknown"
    bound = " at most" if letters.at_most else ""
    return f"{letters.waiting}{bound}" + ("   orchestrator dlq list" if letters.waiting else "")


def _age(lane: LaneStatus) -> str | None:
    return None if lane.oldest_s is None else duration(lane.oldest_s)


# ---- explain ----------------------------------------------------------------------------------------


SEE_STATUS = "see `orchestrator status`"
WHY_NO_RECORD = "deleted by retention, or never sent; `orchestrator audit` tells"


def tell_story(story: Story) -> Iterator[str]:
    """Yield the story for people, a line each step, with the time since the step before."""
    if story.more_lives:
        yield f"earlier workers are left out: these are the latest {SHOWN}"
    for life in story.lives:
        yield f"worker {life.worker_id} of scenario {life.scenario_uuid}"
        before: datetime | None = None
        for at, text in steps(life):
            yield f"  {_moment(at)}  {_since(before, at):>9}  {text}"
            before = at or before
    yield from _tell_failures(story)
    if story.unpublished:
        yield f"{story.unpublished:,} dead letters are not published yet, perhaps its own; {SEE_STATUS}"
    if story.unsearched:
        yield f"up to {story.unsearched:,} unread commands were not looked through; {SEE_STATUS}"
    if not story.known and story.complete:
        yield f"nothing is known of {story.id}: no worker, no dead letter, no command that waits"
    elif not story.known:
        yield f"nothing was found of {story.id}, but not all could be looked at"


def _tell_failures(story: Story) -> Iterator[str]:
    """Yield what made no worker, or not yet."""
    if story.more_letters:
        yield f"{story.more_letters:,} earlier dead letters are left out: these are the latest {SHOWN}"
    for letter in story.letters:
        done = f", dealt with: {letter.action}" if letter.action else ""
        yield f"dead letter {letter.partition}:{letter.offset} of {letter.at:%Y-%m-%d %H:%M:%S} UTC"
        yield f"  reason {letter.reason}; it was {letter.origin or 'of unknown origin'}{done}"
        yield f"  orchestrator dlq show {letter.partition}:{letter.offset}"
    for row in story.parked:
        yield f"a row about it, no deploy order: {_what_holds(row)}"
    for place in story.unread:
        yield f"{_where(place)}: not consumed yet; {SEE_STATUS}"
    if story.more_unread:
        yield f"and {story.more_unread:,} more that are not consumed yet"


def steps(life: Life) -> Iterator[tuple[datetime | None, str]]:
    """Yield when what happened to an order, and what it waits for."""
    yield life.commanded_at, _what_command(life)
    yield life.created_at, "accepted: worker and outbox row written"
    if life.order:
        yield life.order.at, f"published to {_where(life.order)}"
    elif life.waiting:
        yield None, _what_holds(life.waiting)
    elif life.status == "pending":
        yield None, "MISSING: neither outbox row nor record; run `orchestrator audit`"
    else:
        yield None, f"no record in the topic: {WHY_NO_RECORD}"
    for place in life.duplicates:
        yield place.at, f"PUBLISHED AGAIN to {_where(place)}; run `orchestrator audit`"
    process = "" if life.process_pid is None else f", process {life.process_pid}"
    if life.status != "pending":
        yield life.updated_at, f"{life.status}{process}"
    elif life.order and life.waiting:
        yield None, f"not acknowledged yet: batch {life.waiting.in_hand}; {SEE_STATUS}"
    elif life.order:
        yield None, "pending: acknowledged just now, perhaps; look again"
    else:
        yield None, "pending"


def _what_command(life: Life) -> str:
    if life.command:
        gone = "" if life.command.at else ", deleted since by retention"
        return f"command in {_where(life.command)}{gone}"
    if life.commanded_at is None:
        return "command unknown: the worker's id is not made of one"
    if life.untried:
        return (
            f"command not found: in each partition {TRIES:,} places were tried from its time on;"
            f" {life.untried:,} later ones were not"
        )
    return "command: its record is in no log any more, or its topic was made anew"


def _what_holds(waiting: Waiting) -> str:
    place = f"lane {waiting.lane}, row {waiting.id}"
    if waiting.table == "outbox_parked":
        command = f"orchestrator parked show {waiting.lane}:{waiting.id}"
        return f"PARKED ({place}): {waiting.reason}; `{command}`"
    if waiting.in_hand is not None:
        state = f"in batch {waiting.in_hand}, which is not in the topic yet"
    elif waiting.ahead:
        state = f"behind {waiting.ahead:,} rows of its lane"
    else:
        state = "next in its lane"
    return f"in the outbox ({place}): {state}; {SEE_STATUS}"


def _where(place: Found) -> str:
    return f"{place.topic}, partition {place.partition}, offset {place.offset}"


def _moment(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] if at else " " * 23


def _since(before: datetime | None, at: datetime | None) -> str:
    if before is None or at is None:
        return ""
    seconds = (at - before).total_seconds()
    return ("+" if seconds >= 0 else "-") + duration(abs(seconds))
