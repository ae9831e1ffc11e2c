"""What follows from a lane's marker and its row, before the log is asked; markers as bytes."""

from typing import NamedTuple
from uuid import UUID, uuid4

import pytest

from outbox.lane import Outcome, compare, describe_mismatch
from outbox.markers import Marker, decode_marker, encode_marker, marker_key

OURS, BEFORE, FOREIGN = (uuid4() for _ in range(3))


class Row(NamedTuple):
    """What a lane row says of its last batch."""

    batch_number: int
    token: UUID | None = OURS
    marker_token: UUID | None = BEFORE
    log_refusal: str | None = None


NEW = Row(0, None, None)  # as the migration makes it
BEGUN_NEW = Row(0, OURS, None)  # its recovery has chosen a token for its first marker

OUTCOMES: list[tuple[Marker | None, Row, Outcome]] = [
    # never anything begun
    (None, NEW, Outcome.NEW_LANE),
    (None, BEGUN_NEW, Outcome.NEW_LANE),
    (Marker(0, OURS), BEGUN_NEW, Outcome.PUBLISHED),
    (Marker(0, FOREIGN), NEW, Outcome.NEW_LANE),  # its row was not written after it; nothing is lost
    (Marker(0, FOREIGN), BEGUN_NEW, Outcome.NEW_LANE),
    (Marker(1, FOREIGN), NEW, Outcome.MARKER_AHEAD),  # restored to before the first batch
    (Marker(1, FOREIGN), BEGUN_NEW, Outcome.MARKER_AHEAD),
    # the same history
    (Marker(5, OURS), Row(5), Outcome.PUBLISHED),
    (Marker(4, BEFORE), Row(5), Outcome.NOT_PUBLISHED),
    (Marker(3, BEFORE), Row(5), Outcome.NOT_PUBLISHED),  # 4 was begun, and never sent
    (Marker(0, BEFORE), Row(1), Outcome.NOT_PUBLISHED),
    # another one: the number only says what may have happened
    (Marker(5, FOREIGN), Row(5), Outcome.MARKER_FOREIGN),
    (Marker(5, FOREIGN), Row(5, OURS, None), Outcome.MARKER_FOREIGN),
    (Marker(4, FOREIGN), Row(5), Outcome.MARKER_BEHIND),
    (Marker(0, FOREIGN), Row(1), Outcome.MARKER_BEHIND),
    (Marker(6, FOREIGN), Row(5), Outcome.MARKER_AHEAD),
    (None, Row(1), Outcome.MARKER_MISSING),
    (None, Row(5, None, None), Outcome.MARKER_MISSING),  # of a release before the tokens
    (Marker(5, FOREIGN), Row(5, None, None), Outcome.MARKER_FOREIGN),
    # the log cannot tell, whatever the marker says
    (None, Row(0, log_refusal="recreated"), Outcome.LOG_UNUSABLE),
    (None, Row(5, log_refusal="recreated"), Outcome.LOG_UNUSABLE),
    (Marker(5, OURS), Row(5, log_refusal="recreated"), Outcome.LOG_UNUSABLE),
    (Marker(4, BEFORE), Row(5, log_refusal="recreated"), Outcome.LOG_UNUSABLE),
    (Marker(6, FOREIGN), Row(5, log_refusal="recreated"), Outcome.LOG_UNUSABLE),
]


@pytest.mark.parametrize(("marker", "row", "outcome"), OUTCOMES)
def test_the_outcome_follows_from_marker_and_row(
    marker: Marker | None, row: Row, outcome: Outcome
) -> None:
    assert compare(marker, row) is outcome


def test_all_outcomes_but_the_logs_are_tested() -> None:
    """How many of several rows are there only the log says."""
    assert {outcome for *_, outcome in OUTCOMES} == {*Outcome} - {Outcome.PARTLY_PUBLISHED}


def test_what_cannot_be_decided_waits_for_an_operator() -> None:
    assert {outcome for outcome in Outcome if outcome.refused} == {
        Outcome.MARKER_AHEAD,
        Outcome.MARKER_BEHIND,
        Outcome.MARKER_MISSING,
        Outcome.MARKER_FOREIGN,
        Outcome.LOG_UNUSABLE,
    }


@pytest.mark.parametrize(
    ("marker", "row", "words"),
    [
        (None, Row(5), "the marker in Kafka is missing, the batch in Postgres is 5"),
        (Marker(6, FOREIGN), Row(5), "the marker in Kafka is 6, the batch in Postgres is 5"),
        (Marker(5, FOREIGN), Row(5), "the batch 5 in Kafka is another one than that in Postgres"),
        (Marker(5, OURS), Row(5, log_refusal="topic x was recreated"), "topic x was recreated"),
    ],
)
def test_a_refusal_says_what_differs(marker: Marker | None, row: Row, words: str) -> None:
    assert words in describe_mismatch(marker, row)


def test_a_marker_is_read_as_it_was_written() -> None:
    marker = Marker(2**40, uuid4())
    assert decode_marker(encode_marker(marker)) == marker


@pytest.mark.parametrize(
    "value",
    [
        *(None, b"", b"null", b"7", b"[]", b"{}", b"\xff", b'{"batch_number": 1}'),
        b'{"batch_number": 1, "token": "x"}',
        b'{"batch_number": "one", "token": "00000000-0000-0000-0000-000000000000"}',
        b'{"batch_number": 1, "token": null}',
    ],
)
def test_what_is_no_marker_is_none(value: bytes | None) -> None:
    assert decode_marker(value) is None


def test_outboxes_have_markers_of_their_own() -> None:
    assert marker_key(uuid4()) != marker_key(uuid4())
