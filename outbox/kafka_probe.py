"""Asks Kafka for a transaction whenever the relay's own work cannot tell whether Kafka answers.

A probe takes a transactional id, and commits a record to the marker topic if Kafka did not answer
before. Metadata alone would not do: brokers give it to clients that may not publish.

All relays use the same id: Kafka keeps only one, and the next probe ends a transaction that a killed
relay has left open, before it holds up a reader of the topic. Two at once fence each other, and retry.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from uuid import UUID

from confluent_kafka import KafkaError, KafkaException, Producer

from outbox.errors import InDoubt, Stopped, error_text
from outbox.kafka_answers import KafkaAnswers
from outbox.kafka_calls import KafkaConfig, call_in_slices, kafka_error_in
from outbox.producers import DEFAULT_CONFIG

PROBE_S = 3.0  # for each step of a probe; the next one is another client with connections of its own
PAUSE_S = 1.0  # between two probes, and how soon it is seen that one is needed
PROBE_KEY = b"probe"
AUTH_ERRORS = frozenset({KafkaError._AUTHENTICATION, KafkaError._SSL})


class KafkaProbe:
    """The thread that asks. topic: the marker topic."""

    def __init__(self, kafka: KafkaConfig, identity: UUID, topic: str, answers: KafkaAnswers) -> None:
        self._config = {
            **DEFAULT_CONFIG,
            **kafka,
            "acks": "all",
            "transactional.id": f"outbox-{identity}-probe",
            "log_level": 0,  # errors come by callback
            "error_cb": self._note_error,
        }
        self._topic = topic
        self._answers = answers
        self._stopped = Event()
        self._cause: KafkaError | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Probe while the block runs. It does not wait for the current probe."""
        Thread(target=self._run, name="kafka probe", daemon=True).start()
        try:
            yield
        finally:
            self._stopped.set()
            self._answers.wanted.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            if self._answers.needs_probe():
                self._answers.wanted.clear()
                with suppress(Stopped):
                    self._ask()
            self._answers.wanted.wait(random.uniform(0.5, 1) * PAUSE_S)  # noqa: S311  # no secret

    def _ask(self) -> None:
        self._answers.asked()
        self._cause = None
        try:
            self._probe()
        except (InDoubt, KafkaException, SystemError) as error:
            self._answers.probe_failed(self._describe(error))
        else:
            self._answers.probe_answered()

    def _probe(self) -> None:
        """Make one transaction, or only take the id if Kafka has answered so far."""
        producer = Producer(self._config)
        try:
            call_in_slices(producer.init_transactions, self._tick, PROBE_S)
            if self._answers.error is not None:
                producer.begin_transaction()
                producer.produce(self._topic, key=PROBE_KEY, partition=0)
                call_in_slices(producer.commit_transaction, self._tick, PROBE_S)
        finally:
            with suppress(KafkaException, SystemError):
                producer.poll(0)  # the cause
                producer.purge()

    def _tick(self) -> None:
        if self._stopped.is_set():
            raise Stopped

    def _note_error(self, error: KafkaError) -> None:
        """Keep what a connection met: the first error, but rather one that says why."""
        if self._cause is None or error.code() in AUTH_ERRORS:
            self._cause = error

    def _describe(self, error: Exception) -> str:
        """Return why Kafka does not answer; where the call only timed out, what its connections met."""
        raised = kafka_error_in(error.__cause__ or error)  # type: ignore[arg-type]
        if self._cause and (raised is None or raised.code() == KafkaError._TIMED_OUT):
            return self._cause.str().partition(" (after ")[0]  # how long it took is never the same
        return error_text(error)
