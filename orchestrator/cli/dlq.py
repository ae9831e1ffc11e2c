"""`dlq`: list, show, retry and discard dead letters."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, groupby, islice
from uuid import UUID

from orchestrator.cli import actions
from orchestrator.cli.exit_codes import CHECK_FAILED, OK
from orchestrator.cli.session import operator_session
from orchestrator.cli.terminal import print_error, print_lines, table
from orchestrator.config.settings import Settings
from orchestrator.operations.dead_letters.filter import Id, RecordFilter
from orchestrator.operations.dead_letters.handling import Handled, handle_dead_letters
from orchestrator.operations.dead_letters.headers import Input
from orchestrator.operations.dead_letters.letters import (
    DeadLetter,
    DeadLetterTopic,
    LetterState,
    RecordId,
    find_dead_letters,
    read_dead_letters,
)
from orchestrator.operations.dead_letters.orders import SentOrders, find_orders
from orchestrator.operations.dead_letters.originals import Originals
from orchestrator.operations.dead_letters.purge import Purged, purge_dead_letters
from orchestrator.operations.text import utc_text
from outbox import Connection

DEAD_LETTERS = "dead letters"
MAX_NAMED = 5  # other inputs, or ids, in one answer


def dlq(options: argparse.Namespace) -> int:
    """List, show, retry or discard dead letters."""
    chosen = actions.filter_of(options)
    with operator_session("dlq") as (settings, conn):
        topic = find_dead_letters(settings, chosen)  # dead letters that come later are not meant
        if options.action in {"retry", "discard"}:
            return change_letters(options, chosen, topic, conn)
        foreign: Counter[Input] = Counter()
        found = (
            letter
            for letter in ours(conn, topic, chosen, foreign)
            if options.handled or letter.state is LetterState.WAITING
        )
        if options.action == "show":
            fields = (letter_fields(letter, options.payload) for letter in found)
            code = actions.print_each(fields, options.payload)
        else:
            code = actions.print_list(
                options, DEAD_LETTERS, "dead_letters", found, letter_fields, letters_table
            )
    return max(code, report_foreign(foreign, chosen, settings))


def ours(
    conn: Connection, topic: DeadLetterTopic, chosen: RecordFilter, foreign: Counter[Input]
) -> Iterator[DeadLetter]:
    """Yield the dead letters of our input that match; count those of other inputs."""
    for letter in chain.from_iterable(read_dead_letters(conn, topic, chosen, sys.stderr)):
        if letter.state is not LetterState.FOREIGN:
            yield letter
        elif letter.input:
            foreign[letter.input] += 1


def report_foreign(foreign: Counter[Input], chosen: RecordFilter, settings: Settings) -> int:
    """Print how many dead letters are of other inputs, and how to reach them; return the exit code."""
    code = CHECK_FAILED if foreign and chosen.ids else OK
    for other, letters in foreign.most_common(MAX_NAMED):
        text = f"{letters:,} {DEAD_LETTERS} of {other} are left out, since it is another input"
        topic = f"DEAD_LETTER_TOPIC={settings.dead_letter_topic}"
        print_error(code, f"{text}: handle them with {other.settings} {topic}, and its DATABASE_URL")
    if len(foreign) > MAX_NAMED:
        print_error(code, f"and those of {len(foreign) - MAX_NAMED:,} more inputs")
    return code


def letters_table(listed: Sequence[DeadLetter]) -> Iterator[str]:
    """Yield a line for each dead letter."""
    rows = [
        (
            str(one.record_id),
            utc_text(one.at),
            one.reason,
            one.origin and one.origin.name,
            actions.shown_key(one.key),
            shown_length(one),
            describe_state(one),
        )
        for one in listed
    ]
    yield from table(("record id", "time (UTC)", "reason", "origin", "key", "bytes", "state"), rows)


def shown_length(letter: DeadLetter) -> str:
    """Return how many bytes of the value a dead letter has, and if there is more of the record."""
    return f"{len(letter.value or b'')}{' (truncated)' if letter.truncated else ''}"


def describe_state(letter: DeadLetter) -> str:
    """Return what became of a dead letter."""
    match letter.state:
        case LetterState.ACCEPTED:
            return f"accepted as worker {letter.worker_id}"
        case LetterState.FOREIGN:
            return f"of {letter.input}"
        case LetterState.WAITING if letter.retry_of:
            return f"waiting; back again after the retry of {letter.retry_of}"
        case _:
            return letter.state


def letter_fields(letter: DeadLetter, payload: bool = False) -> dict[str, object]:
    """Return a dead letter for a script; payload: with its content."""
    fields: dict[str, object] = {
        "record_id": str(letter.record_id),
        "at": letter.at,
        "reason": letter.reason,
        "origin": letter.origin and letter.origin.name,
        "key": actions.shown_key(letter.key),
        "bytes": len(letter.value or b""),
        "truncated": letter.truncated,
        "state": letter.state,
        "retry_of": letter.retry_of and str(letter.retry_of),
        "worker_id": letter.worker_id,
        "headers": actions.headers_as_fields(letter.headers, payload),
    }
    return fields | ({"payload": actions.payload_text(letter.value)} if payload else {})


# ---- retry and discard --------------------------------------------------------------------------


LATEST = datetime.max.replace(tzinfo=UTC)


@dataclass
class Survey:
    """What was found before anything is changed.

    counts: dead letters that will be handled, by reason. workers: those that their commands will have.
    oldest_at: before that, none of them had a deploy order. missing: why an id that was given is not
    among them. unnamed: those that do not say which record they were; ahead: those whose record this
    database has not consumed: both must be chosen by id. lost: what is said of those that are
    truncated, and whose records the input has no longer.
    """

    missing: dict[Id, str]
    counts: Counter[str] = field(default_factory=Counter)
    workers: set[UUID] = field(default_factory=set)
    oldest_at: datetime = LATEST
    foreign: Counter[Input] = field(default_factory=Counter)
    unnamed: list[RecordId] = field(default_factory=list)
    ahead: list[RecordId] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def change_letters(
    options: argparse.Namespace, chosen: RecordFilter, topic: DeadLetterTopic, conn: Connection
) -> int:
    """Count, ask, then retry or discard, each chunk in a transaction of its own."""
    originals = Originals(topic.settings) if options.action == "retry" else None
    survey = survey_letters(options.action, chosen, topic, conn, originals)
    code = report_left_out(survey, chosen, topic.settings)
    purge = "purge what is handled, up to the first that waits" if options.purge else ""
    if not actions.confirm(options, DEAD_LETTERS, survey.counts, purge):
        return code
    sent = find_sent(topic.settings, survey) if options.action == "retry" else SentOrders({})
    command = " ".join(["dlq", options.action, *chosen.to_arguments()])
    done = [
        handle_dead_letters(conn, topic, letters, options.action, command, sent.found)
        for chunk in read_dead_letters(conn, topic, chosen, sys.stderr)
        for letters in whole_letters(
            [one for one in chunk if is_chosen(options.action, chosen, one)], originals
        )
    ]
    total = Handled(*map(sum, zip(Handled(), *done, strict=True)))
    print_lines(describe_result(options.action, sum(survey.counts.values()), total))
    if options.purge:
        print_lines(describe_purged(purge_dead_letters(conn, topic.settings, sys.stderr)))
    return code


def is_chosen(action: str, chosen: RecordFilter, letter: DeadLetter) -> bool:
    """Return whether a dead letter that matches may be handled.

    One that does not say which record it was is retried only by its id: it may be of any input. So is
    one whose record this database is still to consume: what is decided of it now would not count then.
    """
    needs_id = letter.is_ahead or (letter.origin is None and action == "retry")
    return letter.state is LetterState.WAITING and (not needs_id or letter.record_id in chosen.ids)


def whole_letters(
    letters: Sequence[DeadLetter], originals: Originals | None
) -> Iterator[list[DeadLetter]]:
    """Yield those that one transaction handles, in their order. originals: None if none is sent.

    One that was truncated comes alone, with the whole of its record, which may be large.
    """
    for is_truncated, part in groupby(letters, lambda one: bool(originals and one.truncated)):
        if is_truncated and originals:
            yield from ([whole] for one in part if (whole := originals.restore(one)))
        else:
            yield list(part)


def survey_letters(
    action: str,
    chosen: RecordFilter,
    topic: DeadLetterTopic,
    conn: Connection,
    originals: Originals | None,
) -> Survey:
    """Find out what would be handled, and what would not."""
    survey = Survey(dict.fromkeys(chosen.ids, "not found"))
    for letter in chain.from_iterable(read_dead_letters(conn, topic, chosen, sys.stderr)):
        if is_chosen(action, chosen, letter):
            survey.missing.pop(letter.record_id, None)
            if originals and letter.truncated and originals.restore(letter) is None:
                survey.lost.append(describe_lost(letter))
                continue
            survey.counts[letter.reason] += 1
            survey.workers |= {worker} if (worker := topic.worker_of(letter)) else set()
            survey.oldest_at = min(survey.oldest_at, letter.oldest_at)
        elif letter.state is LetterState.WAITING:
            (survey.ahead if letter.is_ahead else survey.unnamed).append(letter.record_id)
        elif letter.record_id in survey.missing:
            survey.missing[letter.record_id] = describe_state(letter)
        if letter.state is LetterState.FOREIGN and letter.input:
            survey.foreign[letter.input] += 1
    return survey


def report_left_out(survey: Survey, chosen: RecordFilter, settings: Settings) -> int:
    """Print what will not be handled, and why; return the exit code."""
    code = report_foreign(survey.foreign, chosen, settings)
    if survey.missing:
        ids = ", ".join(f"{p}:{offset} ({why})" for (p, offset), why in sorted(survey.missing.items()))
        code = print_error(CHECK_FAILED, f"no dead letter is waiting with this id: {ids}")
    if survey.unnamed:
        ids = ", ".join(map(str, survey.unnamed[:MAX_NAMED]))
        text = f"{len(survey.unnamed):,} {DEAD_LETTERS} do not say which record they were"
        print_error(code, f"{text}: they are retried only by id, such as {ids}")
    if survey.ahead:
        ids = ", ".join(map(str, survey.ahead[:MAX_NAMED]))
        text = f"{len(survey.ahead):,} {DEAD_LETTERS} were records that this database has not consumed"
        advice = "if it was restored, let a consumer run first; else handle them by id, such as"
        code = print_error(CHECK_FAILED, f"{text}: {advice} {ids}")
    for text in survey.lost[:MAX_NAMED]:
        advice = "have its writer send the command again, and discard the dead letter"
        code = print_error(CHECK_FAILED, f"{text}: {advice}")
    if len(survey.lost) > MAX_NAMED:
        print_error(code, f"and {len(survey.lost) - MAX_NAMED:,} more that are lost like that")
    return code


def describe_lost(letter: DeadLetter) -> str:
    """Return why a truncated dead letter cannot be retried."""
    parts = "; ".join(f"{part}: {whole}" for part, whole in letter.truncated.items())
    place = letter.origin.name if letter.origin else "an unknown place"
    return (
        f"dead letter {letter.record_id} is truncated ({parts}), and its record at {place} is not in"
        " the input any more"
    )


def find_sent(settings: Settings, survey: Survey) -> SentOrders:
    """Look in the output for what was sent before; say where it is, and how far back that is known."""
    sent = find_orders(settings, survey.workers, survey.oldest_at, sys.stderr)
    topic = settings.output_topic
    for worker, (partition, offset) in islice(sent.found.items(), MAX_NAMED):
        print_lines(
            [f"worker {worker}: its order is at {topic}[{partition}] {offset}, it is not sent again"]
        )
    if sent.complete_since:
        text = f"{topic} has only records since {utc_text(sent.complete_since)} UTC"
        advice = "a command whose order was sent before, and whose worker was deleted, is sent again"
        print_lines([f"{text}: {advice}"])
    return sent


def describe_result(action: str, counted: int, total: Handled) -> Iterator[str]:
    """Yield how many were handled, and why that may be fewer than were counted."""
    yield f"{total.done:,} {DEAD_LETTERS} are {actions.RESULTS[action]}"
    if total.sent_before:
        yield f"{total.sent_before:,} were sent before: noted as retried, and not sent again"
    if others := counted - sum(total):
        why = "handled, accepted or lost meanwhile, or the same command as another one"
        yield f"{others:,} were not: {why}"


def describe_purged(purged: Purged) -> Iterator[str]:
    """Yield how many were deleted, and what becomes of the others."""
    yield f"{purged.deleted:,} {DEAD_LETTERS} that were handled are deleted"
    if purged.left:
        yield (
            f"{purged.left:,} stay until retention deletes them: they are younger than a minute, or"
            " behind one that waits or is another input's"
        )
