"""`doctor`: is everything as it must be, on both sides, and what is to be done where it is not?

Safe in production: it reads, and holds no lock longer than a moment. It changes one thing alone: Kafka
gets to know a transactional id of its own. Each check stands for itself: one that breaks is a finding,
and the next ones go on. Nothing is waited for without end: calls to Kafka have time-outs, a Postgres
that falls silent is hung up on, and what has not begun after BUDGET_S is left out.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack

import psycopg
from confluent_kafka import KafkaException

from orchestrator.config.settings import Settings
from orchestrator.observability import logs
from orchestrator.operations.doctor import consistency as doctor_both
from orchestrator.operations.doctor import kafka as doctor_kafka
from orchestrator.operations.doctor import permissions as doctor_rights
from orchestrator.operations.doctor import postgres as doctor_postgres
from orchestrator.operations.doctor import tables as doctor_tables
from orchestrator.operations.doctor.check import Answer, Away, Check, Finding, Site
from outbox import DatabaseNotReady, error_text

# For the checks together; one that has begun may take longer. Twice what a silent Postgres may take, so
# that Kafka is looked at, too.
BUDGET_S = 2 * doctor_postgres.SILENCE_S


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield a finding for each check, always all of them and in the same order."""
    site, deadline = Site(settings), time.monotonic() + BUDGET_S
    with ExitStack() as ending:
        ending.callback(site.close)
        for name, check in CHECKS.items():
            if time.monotonic() > deadline:
                answer: Answer = "skipped", f"not looked at: the checks before took {BUDGET_S:.0f} s"
            else:
                answer = answer_of(check, site)
            state, text = answer
            yield Finding(name, state, logs.mask(" ".join(text.split())))


def answer_of(check: Check, site: Site) -> Answer:
    """Make a check, and an answer of whatever it raises."""
    try:
        with doctor_postgres.patience(site):
            return check(site)
    except (Away, DatabaseNotReady) as error:  # another check says what to do about it
        return "skipped", str(error)
    except psycopg.errors.UndefinedTable as error:
        return "failed", f"{error_text(error)}: see `postgres schema`"
    except psycopg.errors.InsufficientPrivilege as error:
        return "skipped", f"not looked at: {error_text(error)}: see `postgres rights`"
    except psycopg.Error as error:
        return doctor_postgres.fault(site, error)
    except KafkaException as error:
        return doctor_kafka.fault(site, error)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 3 if a server was not reached, else 1 if a check failed, else 0."""
    states = {finding.state for finding in findings}
    return 3 if "unreachable" in states else 1 if "failed" in states else 0


def as_text(finding: Finding) -> str:
    """Return a finding as one line for people."""
    return f"{finding.state:<11} {finding.check}: {finding.text}"


def settings_were_read(site: Site) -> Answer:
    """Say what the settings are that other checks do not speak of. That they are valid is known."""
    s = site.settings
    fencing = "strict fencing" if s.strict_fencing else "no strict fencing"
    return "ok", f"consumer group {s.consumer_group}, batches of {s.batch_size:,}, {fencing}"


CHECKS: Mapping[str, Check] = {
    "settings": settings_were_read,
    "postgres reachable": doctor_postgres.reach,
    "postgres version": doctor_postgres.version,
    "postgres rights": doctor_rights.rights,
    "postgres schema": doctor_postgres.schema,
    "postgres encoding": doctor_postgres.encoding,
    "lanes": doctor_postgres.lanes,
    "postgres synchronous_commit": doctor_postgres.synchronous_commit,
    "postgres sessions": doctor_postgres.sessions,
    "postgres long transactions": doctor_tables.long_transactions,
    "postgres autovacuum": doctor_tables.autovacuum,
    "workers id sequence": doctor_tables.workers_sequence,
    "postgres clock": doctor_postgres.clock,
    "kafka reachable": doctor_kafka.reach,
    "kafka version": doctor_kafka.version,
    "kafka topics": doctor_kafka.topics,
    "marker topic partitions": doctor_both.progress_partitions,
    "kafka replication": doctor_kafka.replication,
    "kafka transactions": doctor_both.transactions,
    "kafka acls": doctor_rights.acls,
    "kafka retention of offsets": doctor_both.retention,
    "input positions": doctor_both.input_positions,
    "markers": doctor_both.markers,
}
