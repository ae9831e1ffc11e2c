"""`doctor`: is everything as it must be in Postgres and Kafka, and what must be done where it is not?

Safe in production: it reads, and holds no lock for more than a moment. It changes one thing: Kafka
learns one transactional id. Checks are independent: one that fails is a finding, and the next
ones follow. Every wait is bounded: calls to Kafka have time-outs, a Postgres that does not answer is
disconnected, and a check that has not begun after BUDGET_S is left out.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack

import psycopg
from confluent_kafka import KafkaException

from orchestrator.config.settings import Settings
from orchestrator.observability.masking import mask_text, printable
from orchestrator.operations.doctor import (
    consistency,
    dead_letters,
    encryption,
    group,
    kafka,
    outbox_rows,
    postgres,
    tables,
    work,
    workers_table,
)
from orchestrator.operations.doctor.broker_version import kafka_version
from orchestrator.operations.doctor.check import Check, Finding, Installation, Result, Unreachable
from orchestrator.operations.doctor.kafka_permissions import kafka_acls
from orchestrator.operations.doctor.postgres_permissions import postgres_permissions
from orchestrator.operations.doctor.topic_settings import topic_settings
from outbox import DatabaseNotReady, error_text

# For all checks together; one that has begun may take longer. Twice the time-out of Postgres, so that
# Kafka is checked even if Postgres does not answer.
BUDGET_S = 2 * postgres.ANSWER_TIMEOUT_S


def run_all_checks(settings: Settings) -> Iterator[Finding]:
    """Yield a finding for each check, always for all of them and in the same order."""
    installation, deadline = Installation(settings), time.monotonic() + BUDGET_S
    with ExitStack() as stack:
        stack.callback(installation.close)
        for name, check in CHECKS.items():
            if time.monotonic() > deadline:
                result: Result = "skipped", f"not checked: earlier checks took {BUDGET_S:.0f} s"
            else:
                result = run_check(check, installation)
            state, text = result
            yield Finding(name, state, printable(mask_text(" ".join(text.split()))))


def run_check(check: Check, installation: Installation) -> Result:
    """Return the result of a check; an error is a result, too."""
    try:
        with postgres.answer_deadline(installation):
            return check(installation)
    except (Unreachable, DatabaseNotReady) as error:  # another check says what to do about it
        return "skipped", str(error)
    except psycopg.errors.UndefinedTable as error:
        return "failed", f"{error_text(error)}: see `postgres schema`"
    except psycopg.errors.InsufficientPrivilege as error:
        return "skipped", f"not checked: {error_text(error)}: see `postgres permissions`"
    except psycopg.Error as error:
        return postgres.error_result(installation, error)
    except KafkaException as error:
        return kafka.kafka_error_result(installation, error)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 3 if a server was not reached, else 1 if a check failed, else 0."""
    states = {finding.state for finding in findings}
    return 3 if "unreachable" in states else 1 if "failed" in states else 0


def settings_summary(installation: Installation) -> Result:
    """Return the settings that no other check names. They were found valid before."""
    s = installation.settings
    fencing = "strict fencing" if s.strict_fencing else "no strict fencing"
    return "ok", f"consumer group {s.consumer_group}, batches of {s.batch_size:,}, {fencing}"


CHECKS: Mapping[str, Check] = {
    "settings": settings_summary,
    "postgres reachable": postgres.postgres_reachable,
    "postgres version": postgres.postgres_version,
    "postgres permissions": postgres_permissions,
    "postgres schema": postgres.postgres_schema,
    "postgres encryption": encryption.postgres_encryption,
    "postgres open schemas": postgres.open_schemas,
    "postgres encoding": postgres.postgres_encoding,
    "postgres row security": postgres.row_security,
    "postgres connections": postgres.connection_limits,
    "lanes": postgres.number_of_lanes,
    "postgres synchronous_commit": postgres.synchronous_commit,
    "postgres sessions": postgres.postgres_sessions,
    "postgres long transactions": tables.long_transactions,
    "postgres autovacuum": tables.autovacuum,
    "waiting rows": work.waiting_rows,
    "parked rows": work.parked_rows,
    "deferred workers": work.deferred_workers,
    "workers table": workers_table.workers_table,
    "id sequences": workers_table.id_sequences,
    "workers id sequence": tables.workers_id_sequence,
    "outbox rows": outbox_rows.outbox_rows,
    "outbox id sequence": outbox_rows.outbox_id_sequence,
    "row filters": outbox_rows.row_filters,
    "postgres clock": postgres.postgres_clock,
    "kafka reachable": kafka.kafka_reachable,
    "kafka encryption": encryption.kafka_encryption,
    "kafka version": kafka_version,
    "kafka topics": kafka.kafka_topics,
    "topic settings": topic_settings,
    "outbox topics": outbox_rows.outbox_topics,
    "marker topic partitions": consistency.marker_topic_partitions,
    "marker topic policy": consistency.marker_topic_policy,
    "kafka replication": kafka.kafka_replication,
    "kafka transactions": consistency.kafka_transactions,
    "kafka acls": kafka_acls,
    "consumer group": group.consumer_group,
    "processes": work.processes,
    "input positions": consistency.input_positions,
    "dead letters": work.waiting_letters,
    "dead-letter topic": dead_letters.dead_letter_topic,
    "markers": consistency.lane_markers,
}
