"""Which errors may be about a row, how a batch is split, and when the table is the reason."""

import psycopg
import pytest

from orchestrator.consumer import narrowing
from orchestrator.consumer.narrowing import LIMIT, RefusedRows, may_be_of_a_row, parts_of


def failures(records: int) -> int:
    """Return how many attempts fail until one refused record, the last one, is found."""
    failed, left = 0, list(range(records))
    while len(left) > 1:
        failed += 1
        left = list(parts_of(left)[-1])
    return failed + 1


@pytest.mark.parametrize("records", [1, 2, 32, 33, 1000, 9999, 100_000])
def test_the_parts_are_the_batch_in_its_order_and_few_of_them_fail(records: int) -> None:
    parts = parts_of(range(records))
    assert [record for part in parts for record in part] == list(range(records))
    assert failures(records) <= 5


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.StringDataRightTruncation,
        psycopg.errors.CheckViolation,
        psycopg.errors.UniqueViolation,
        psycopg.errors.ProgramLimitExceeded,
        psycopg.errors.RaiseException,
        psycopg.errors.UntranslatableCharacter,
        psycopg.errors.CardinalityViolation,
    ],
)
def test_an_error_of_what_is_written_may_be_of_a_row(error: type[psycopg.Error]) -> None:
    assert may_be_of_a_row(error())


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError,  # no SQLSTATE: the connection
        psycopg.errors.DiskFull,
        psycopg.errors.AdminShutdown,
        psycopg.errors.ReadOnlySqlTransaction,
        psycopg.errors.DeadlockDetected,
        psycopg.errors.LockNotAvailable,
        psycopg.errors.DataCorrupted,
        psycopg.errors.ObjectInUse,
    ],
)
def test_an_error_of_session_statement_or_server_is_never_of_a_row(error: type[psycopg.Error]) -> None:
    assert not may_be_of_a_row(error())


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.UndefinedFunction,
        psycopg.errors.UndefinedTable,
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.InvalidSchemaName,
        psycopg.errors.FeatureNotSupported,
        psycopg.errors.ObjectNotInPrerequisiteState,
        psycopg.errors.InternalError_,
    ],
)
def test_an_error_of_the_schema_needs_a_row_that_is_taken_for_each_refusal(
    error: type[psycopg.Error],
) -> None:
    assert may_be_of_a_row(error())
    refused = RefusedRows()
    assert refused.needs_proof(error())
    refused.note_accepted()
    assert not refused.needs_proof(error())
    refused.note_refused("offset 1")
    assert refused.needs_proof(error())
    refused.note_accepted()
    refused.begin_poll()
    assert refused.needs_proof(error())


def test_proof_is_needed_after_many_refusals_without_an_accepted_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = RefusedRows()
    for number in range(LIMIT):
        assert not refused.needs_proof(psycopg.errors.CheckViolation())
        refused.note_refused(f"offset {number}")
    assert refused.needs_proof(psycopg.errors.CheckViolation())
    assert refused.describe() == f"offset {LIMIT - 1}"
    refused.note_accepted()
    assert not refused.needs_proof(psycopg.errors.CheckViolation())
    monkeypatch.setattr(narrowing, "SHOWN_S", -1)
    assert refused.describe() is None
