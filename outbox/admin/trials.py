"""What can be tried without a relay: does Postgres keep a session's locks, may this user publish?"""

import logging
import time
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, Producer

from outbox.kafka_calls import CALL_SLICE_S, RETRY_PAUSE_S, KafkaConfig, kafka_error_in
from outbox.lane_rows import read_identity
from outbox.membership import MEMBERSHIP_LOCK, lock_class
from outbox.pooler import TransactionPoolingDetected, check_session, server_process
from outbox.postgres import Connection, scalar
from outbox.producers import DEFAULT_CONFIG

TRIAL_LOCK = MEMBERSHIP_LOCK + 1  # no lane has this number, and relays are not counted by it
TRY_LOCK = "SELECT pg_catalog.pg_try_advisory_lock_shared(%(class)s, %(lock)s)"
FREE_LOCK = "SELECT pg_catalog.pg_advisory_unlock_shared(%(class)s, %(lock)s)"
HAS_LOCK = """
    SELECT EXISTS (
        SELECT FROM pg_locks
         WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND pid = pg_backend_pid()
           AND classid::bigint = %(class)s AND objid::bigint = %(lock)s)
"""


def try_session_lock(conn: Connection) -> bool:
    """Take a lock of the session, see it, and free it: relays own their lanes by such locks.

    Return whether the connection is a direct one, without a pooler. Raises TransactionPoolingDetected,
    or DatabaseNotReady before the first migration.
    """
    check_session(conn)
    values = {"class": lock_class(read_identity(conn)), "lock": TRIAL_LOCK}
    steps = [scalar(conn, bool, step, values) for step in (TRY_LOCK, HAS_LOCK, FREE_LOCK)]
    if not all(steps):  # not one by one: what was locked is freed, whatever was seen
        raise TransactionPoolingDetected
    return server_process(conn) == conn.info.backend_pid


class TransactionalIdTrial(NamedTuple):
    """What came of taking a transactional id. prefix: that of all ids of this outbox.

    error: None if the id was taken; what Kafka said last otherwise.
    """

    transactional_id: str
    prefix: str
    error: KafkaError | None


def try_transactional_id(
    conn: Connection, kafka: KafkaConfig, timeout_s: float
) -> TransactionalIdTrial:
    """Take a transactional id as a relay does, but of no lane: no relay is fenced.

    Errors that pass are retried for `timeout_s`. Raises DatabaseNotReady before the first migration.
    """
    prefix = f"outbox-{read_identity(conn)}-"
    name = f"{prefix}doctor"
    silent = logging.Logger("librdkafka", logging.CRITICAL + 1)  # noqa: LOG001  # this producer's alone
    producer = Producer({**DEFAULT_CONFIG, **kafka, "transactional.id": name}, logger=silent)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            producer.init_transactions(CALL_SLICE_S)
        except (KafkaException, SystemError) as raised:
            error = kafka_error_in(raised)
            if error is None:
                raise
            passes = error.retriable() or error.code() == KafkaError._TIMED_OUT
            if not passes or time.monotonic() > deadline:
                return TransactionalIdTrial(name, prefix, error)
            time.sleep(RETRY_PAUSE_S)
        else:
            return TransactionalIdTrial(name, prefix, None)
