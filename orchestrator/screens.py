"""What `status` and `explain` show to a person: one screen, and a line for each step of a life."""

from collections.abc import Iterator
from datetime import UTC, datetime

from orchestrator.explain import Life, Place, Story, Waiting
from orchestrator.status import FEW_LETTERS, LaneStatus, Status
from orchestrator.terminal import duration, table

# ---- status -----------------------------------------------------------------------------------------


def show_status(status: Status) -> Iterator[str]:
    """Yield one screen for people, a line each."""
    versions = ", ".join(f"{name} {version}" for name, version in status.versions.items())
    yield f"{status.at:%Y-%m-%d %H:%M:%S} UTC   {versions}"
    yield f"processes: {status.consumers} consumer(s), {status.relays} relay(s) in Postgres"
    accepted, deployed = (_rate(rate) for rate in status.rates)
    yield f"commands of the last minute: {accepted} accepted, {deployed} deployed"
    yield ""
    lanes = [
        (
            lane.lane,
            lane.state,
            lane.owner,
            lane.epoch,
            lane.seq,
            lane.inflight,
            lane.pending,
            _age(lane),
        )
        for lane in status.lanes
    ]
    yield from table(("lane", "state", "owner", "epoch", "seq", "inflight", "pending", "oldest"), lanes)
    yield ""
    partitions = [
        (one.partition, one.fault or "ok", one.offset, one.log_end, one.lag)
        for one in status.partitions
    ]
    yield from table(("partition", "state", "offset", "log end", "lag"), partitions)
    yield ""
    letters = f"{status.dead_letters:,}" + (" at most" if status.dead_letters >= FEW_LETTERS else "")
    yield f"dead letters: {letters}" + ("   orchestrator dlq list" if status.dead_letters else "")
    parked = ", ".join(f"{rows} {reason}" for reason, rows in status.parked.items())
    yield f"parked rows:  {parked or 'none'}" + ("   orchestrator parked list" if parked else "")
    for what, command in status.refusals.items():
        yield f"REFUSED  {what}: {command}"
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


def _rate(rate: float | None) -> str:
    return "too many to count" if rate is None else f"{rate:,.1f}/s"


def _age(lane: LaneStatus) -> str | None:
    return None if lane.oldest_s is None else duration(lane.oldest_s)


# ---- explain ----------------------------------------------------------------------------------------


def tell_story(story: Story) -> Iterator[str]:
    """Yield the story for people, a line each step, with the time since the step before."""
    for life in story.lives:
        yield f"worker {life.worker_id} of scenario {life.scenario_uuid}"
        before: datetime | None = None
        for at, text in steps(life):
            yield f"  {_moment(at)}  {_since(before, at):>9}  {text}"
            before = at or before
    for letter in story.letters:
        done = f", dealt with: {letter.action}" if letter.action else ""
        yield f"dead letter {letter.partition}:{letter.offset} of {letter.at:%Y-%m-%d %H:%M:%S} UTC"
        yield f"  reason {letter.reason}; it was {letter.origin or 'of unknown origin'}{done}"
        yield f"  orchestrator dlq show {letter.partition}:{letter.offset}"
    for place in story.unread:
        yield f"{_where(place)}: not consumed yet; see the lag in `orchestrator status`"
    if not story.known:
        yield f"nothing is known of {story.id}: no worker, no dead letter, no command that waits"


def steps(life: Life) -> Iterator[tuple[datetime | None, str]]:
    """Yield when what happened to an order, and what it waits for."""
    if life.command is None:
        yield life.commanded_at, "command: its record is in no log any more, or its topic was made anew"
    else:
        gone = "" if life.command.at else ", deleted since by retention"
        yield life.commanded_at, f"command in {_where(life.command)}{gone}"
    yield life.created_at, "accepted: worker and outbox row written"
    if life.order:
        yield life.order.at, f"published to {_where(life.order)}"
    elif life.waiting:
        yield None, _what_holds(life.waiting)
    elif life.status == "pending":
        yield None, "MISSING: neither outbox row nor record; run `orchestrator audit`"
    else:
        yield None, "published: its record is not in the topic any more"
    process = "" if life.process_pid is None else f", process {life.process_pid}"
    if life.status != "pending":
        yield life.updated_at, f"{life.status}{process}"
    else:
        yield None, "pending"


def _what_holds(waiting: Waiting) -> str:
    place = f"lane {waiting.lane}, row {waiting.id}"
    if waiting.table == "outbox_parked":
        command = f"orchestrator parked show {waiting.lane}:{waiting.id}"
        return f"PARKED ({place}): {waiting.reason}; `{command}`"
    if waiting.in_hand is not None:
        return f"in the outbox ({place}): in batch {waiting.in_hand}, which is being published"
    return f"in the outbox ({place}): behind {waiting.ahead:,} rows of its lane"


def _where(place: Place) -> str:
    return f"{place.topic}, partition {place.partition}, offset {place.offset}"


def _moment(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] if at else " " * 23


def _since(before: datetime | None, at: datetime | None) -> str:
    if before is None or at is None:
        return ""
    seconds = (at - before).total_seconds()
    return ("+" if seconds >= 0 else "-") + duration(abs(seconds))
