"""Blocking calls of the Kafka client, made in slices, so that the caller can stop and stay alive."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from outbox.errors import InDoubt

T = TypeVar("T")
KafkaConfig = Mapping[str, str | int | float | bool]  # librdkafka properties
Partition = tuple[str, int]  # of a topic

CALL_SLICE_S = 1.0  # the longest that a call blocks before the owner's `tick` runs (SIGTERM, ping)
PURGED = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})  # because another one failed
RETRY_PAUSE_S = 0.01  # some retriable errors come back at once


def new_admin_client(kafka: KafkaConfig) -> AdminClient:
    """Return a client for requests.

    Not with sparse connections: a request that waits for the controller would take a whole core while
    no broker can be reached.
    """
    return AdminClient({**kafka, "enable.sparse.connections": False, "log_level": 0})


def call_in_slices(call: Callable[[float], T], tick: Callable[[], None], timeout_s: float) -> T:
    """Repeat `call(seconds)`, a slice at a time, until it answers.

    Raises InDoubt, or what tick raises.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return call(CALL_SLICE_S)
        except KafkaException as raised:
            if not _is_resumable(raised.args[0]) or time.monotonic() > deadline:
                raise InDoubt(raised.args[0].str()) from raised
        except SystemError as raised:
            raise InDoubt(str(kafka_error_in(raised) or raised)) from raised
        tick()
        time.sleep(RETRY_PAUSE_S)


def flush_in_slices(producer: Producer, tick: Callable[[], None], timeout_s: float) -> None:
    """Wait for all delivery reports, a slice at a time. Raises KafkaException, or what tick raises."""
    deadline = time.monotonic() + timeout_s
    while producer.flush(CALL_SLICE_S):
        if time.monotonic() > deadline:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "delivery reports"))
        tick()


def _is_resumable(error: KafkaError) -> bool:
    """Say whether the same call may be repeated: it continues where it stood."""
    if error.fatal() or error.txn_requires_abort():
        return False
    return bool(error.retriable() or error.code() == KafkaError._TIMED_OUT)


def kafka_error_in(error: Exception) -> KafkaError | None:
    """Return Kafka's error; the client wraps a fatal one that meets a call of its logger."""
    named = error.__cause__ if isinstance(error, SystemError) else error
    return named.args[0] if isinstance(named, KafkaException) else None
