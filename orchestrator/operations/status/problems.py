"""What is wrong with an installation at work: for each of these `status` and `doctor` exit with 1.

Each is one line that says what to do. It reads what the caller has read: `status` all of it at once,
`doctor` a part in each check.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from orchestrator.operations.text import duration
from orchestrator.program import PROGRAM
from outbox.admin import DeferredReason

OLD_S = 60.0  # as in the alert OutboxStalled; a Runner's transaction takes seconds
MAX_NAMED = 5  # lanes, relays
IF_IT_RUNS = "if one does, its log and /readyz say what it waits for"


def missing_processes(
    consumers: int,
    members: int | None,
    relays: int,
    last_accepted: datetime | None = None,
    oldest_s: float | None = None,
) -> Iterator[str]:
    """Yield a line for a process of which none works.

    consumers, relays: their sessions in Postgres, where a pooler may hide a consumer. members: of the
    consumer group, of which a consumer is one while it has both servers; None: not known.
    last_accepted: the time of the last command that was. oldest_s: the age of the oldest waiting row.
    """
    if not (consumers or members):
        last = f", the last command was sent {age_of(last_accepted)} ago" if last_accepted else ""
        yield f"no consumer is connected{last}: nothing is accepted until one runs; {IF_IT_RUNS}"
    elif members == 0:
        yield (
            "no consumer is in the consumer group: those that are connected to Postgres wait for Kafka;"
            " their /readyz says why"
        )
    if not relays:
        waits = f", the oldest row waits for {duration(oldest_s)}" if oldest_s else ""
        yield f"no relay is connected{waits}: nothing is published until one runs; {IF_IT_RUNS}"


def waiting_lanes(waits: Mapping[int, str]) -> Iterator[str]:
    """Yield a line for each topic that lanes wait for. waits: by lane, what is wrong with the topic."""
    for why in dict.fromkeys(waits.values()):
        lanes = [str(lane) for lane in sorted(waits) if waits[lane] == why]
        yield f"lane{'s' * (len(lanes) > 1)} {', '.join(lanes)}: rows wait: {why}"


def relays_cut_off(relays: Sequence[str]) -> Iterator[str]:
    """Yield a line for each relay that Kafka does not answer."""
    for relay in relays[:MAX_NAMED]:
        yield (
            f"{relay}: Kafka does not answer this relay, and relays that it answers take its lanes;"
            " its /readyz says why: check its Kafka address, password, network and ACLs"
        )


def old_rows(oldest: Mapping[int, float | None]) -> Iterator[str]:
    """Yield a line if rows have waited too long. oldest: by lane, the age of its oldest row in s."""
    ages = {lane: age for lane, age in sorted(oldest.items()) if age is not None and age > OLD_S}
    if ages:
        named = ", ".join(f"{lane} for {duration(age)}" for lane, age in list(ages.items())[:MAX_NAMED])
        yield (
            f"orders are late, the oldest of lane {named}: if the lane's batch number in"
            f" `{PROGRAM} status` does not grow, /readyz of the relays says why"
        )


def parked_rows(parked: Mapping[str, int], first: datetime | None) -> Iterator[str]:
    """Yield a line if rows are parked. parked: how many, by reason. first: when the first one was."""
    if parked:
        reasons = ", ".join(f"{rows:,} {reason}" for reason, rows in parked.items())
        age = f", the first for {age_of(first)}" if first else ""
        yield f"parked rows wait for the operator{age} ({reasons}): `{PROGRAM} parked list`"


def dead_letters(
    letters: int, is_upper_bound: bool, refusal: str | None, oldest: datetime | None, came_back: int
) -> Iterator[str]:
    """Yield a line if dead letters wait. The arguments are those of a DeadLetterCount."""
    if letters:
        bound, why = "up to " if is_upper_bound else "", f" ({refusal})" if refusal else ""
        age = f", the first for {age_of(oldest)}" if oldest else ""
        back = f"; {came_back:,} of them were retried and came back" if came_back else ""
        text = f"{bound}{letters:,} dead letters wait for the operator{age}{back}{why}"
        yield f"{text}: `{PROGRAM} dlq list`"


def age_of(at: datetime) -> str:
    """Return for how long something has been so."""
    return duration(max((datetime.now(UTC) - at).total_seconds(), 0))


def deferred_workers(deferred: Sequence[DeferredReason]) -> Iterator[str]:
    """Yield a line for each reason for which workers are published and not deployed for too long."""
    for one in deferred:
        if one.oldest_s > OLD_S:
            yield (
                f"{describe_deferred(one)}: end the transaction that locks them, or remove what refuses"
                " the update; then a relay sets them to deployed"
            )


def describe_deferred(one: DeferredReason) -> str:
    """Return which workers are published and not yet deployed, for how long, and why."""
    ids = ", ".join(map(str, one.aggregate_ids)) + ", ..." * (one.rows > len(one.aggregate_ids))
    return (
        f"deferred workers, {one.rows:,}, the oldest for {duration(one.oldest_s)}: {one.reason}: {ids}"
    )
