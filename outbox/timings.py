"""How long the relay waits for what: one frozen object, whose defaults are what production uses.

A test may shorten a wait: in its own process by an object of its own, in the processes that it starts
by OUTBOX_TIMINGS, a JSON object of fields, as in `{"refused_recheck_s": 0.5}`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Timings:
    """The relay's waits, in seconds.

    membership_poll_s: how soon a lane without an owner is seen. refused_recheck_s: how soon it is seen
    that a refused lane was repaired. lane_backoff_s: pause of a lane that fails alone, so that the
    others go on. topic_retry_s: how often to look which lanes have rows whose topic cannot be
    written to. held_up_s: pause of a lane whose records another producer's open transaction hides.
    kafka_call_s: a call to Kafka that takes longer is in doubt; the
    broker's transaction time-out and a half. kafka_quiet_s: the first batch after a longer quiet time
    may take only so long: its connections may have been forgotten. deferred_retry_s: how soon what
    `on_published` could not do is tried again; each further pause is twice as long, up to 32 times
    this. session_silence_s: Postgres ends a session, and so frees the locks of a relay whose host
    froze, after so long a silence. kafka_silence_s: a relay counts as one that Kafka does not answer
    after a question, or work, has had no answer for so long; an elected leader or coordinator answers
    sooner. kafka_grace_s: such a relay gives its lanes up after another one has had Kafka for so long;
    longer than kafka_silence_s, in which the other would see that Kafka is away for all. kafka_probe_s:
    how often an idle relay asks Kafka. kafka_distrust_s: a relay whose probes were answered, but not
    its work, is not trusted for so long; twice as long each time.
    """

    membership_poll_s: float = 0.5
    refused_recheck_s: float = 5.0
    lane_backoff_s: float = 60.0
    topic_retry_s: float = 2.0
    held_up_s: float = 10.0
    kafka_call_s: float = 15.0
    kafka_quiet_s: float = 5.0
    deferred_retry_s: float = 1.0
    session_silence_s: float = 10.0
    kafka_silence_s: float = 4.0
    kafka_grace_s: float = 6.0
    kafka_probe_s: float = 8.0
    kafka_distrust_s: float = 30.0


PRODUCTION = Timings()


def with_overrides(timings: T, environ: Mapping[str, str] = os.environ) -> T:
    """Return timings with those fields that OUTBOX_TIMINGS overrides. Raises ValueError."""
    known = {field.name for field in fields(timings)}  # type: ignore[arg-type]
    given = {name: value for name, value in read_overrides(environ).items() if name in known}
    return replace(timings, **given)  # type: ignore[type-var]


def read_overrides(environ: Mapping[str, str]) -> dict[str, float]:
    """Return what OUTBOX_TIMINGS overrides, of whichever dataclass. Raises ValueError."""
    try:
        given = json.loads(environ.get("OUTBOX_TIMINGS") or "{}")
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict) or not all(map(is_seconds, given.values())):
        raise ValueError(
            'OUTBOX_TIMINGS must be a JSON object of seconds, such as {"refused_recheck_s": 0.5}'
        )
    return given


def is_seconds(value: object) -> bool:
    """Say whether a value of a JSON object is a time: a number that is finite and not negative."""
    return type(value) in {int, float} and 0 <= float(value) < float("inf")  # type: ignore[arg-type]
