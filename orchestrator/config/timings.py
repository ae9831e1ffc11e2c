"""How long the processes wait for what: frozen objects, whose defaults are what production uses.

A test shortens a wait as with outbox.Timings: in its own process by an object of its own, in the
processes that it starts by OUTBOX_TIMINGS, which overrides fields of the same name in all of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from outbox import Timings, read_overrides


@dataclass(frozen=True)
class ConsumerTimings:
    """The consumer's waits, in seconds.

    poll_s: for a first record, before the loop looks at `stop`. max_pause_s: the longest pause between
    two batches of a busy consumer. topic_check_s: how soon it is seen that the topic was recreated.
    position_check_s: how soon it is seen that an operator has set a position, and by an idle session
    that Postgres has gone. end_move_s: how often positions move over what is no record, at most.
    unreadable_retry_s: until a batch is tried again that the client cannot decode. unread_s: how long
    records of a partition may stay unread, while all others were, before that is reported.
    commit_offsets_s: how old the copy of the positions in Kafka may be. min_healthy_s: a session that
    failed sooner may have met what every session meets, so the next one waits.
    """

    poll_s: float = 0.5
    max_pause_s: float = 0.02
    topic_check_s: float = 1.0
    position_check_s: float = 2.0
    end_move_s: float = 1.0
    unreadable_retry_s: float = 30.0
    unread_s: float = 20.0
    commit_offsets_s: float = 0.5
    min_healthy_s: float = 5.0


@dataclass(frozen=True)
class ProcessTimings:
    """The waits of both processes around their work, in seconds.

    stalled_s: a loop that is silent for so long counts as dead; a transaction that waits for locks may
    be retried ten times, 10 s each, in silence. gauge_period_s: between two polls of the gauges.
    gauge_max_pause_s: the longest pause after a slow poll. gauge_statement_s: for a statement; counting
    a million rows takes a tenth of it. gauge_silence_s: for a server that does not even report that the
    statement took too long.
    """

    stalled_s: float = 120.0
    gauge_period_s: float = 5.0
    gauge_max_pause_s: float = 30.0
    gauge_statement_s: float = 2.0
    gauge_silence_s: float = 5.0


def timings_faults(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with OUTBOX_TIMINGS, which the processes read when they start."""
    try:
        given = read_overrides(environ)
    except ValueError as fault:
        yield str(fault)
        return
    known = {one.name for kind in (Timings, ConsumerTimings, ProcessTimings) for one in fields(kind)}
    for name in sorted(given.keys() - known):
        yield f"OUTBOX_TIMINGS has no field {name!r}: one of {', '.join(sorted(known))}"
