"""When answers to probes count."""

import time
from dataclasses import replace

from outbox.kafka_answers import KafkaAnswers
from outbox.timings import PRODUCTION


def answers_after_failed_work(distrust_s: float) -> KafkaAnswers:
    """Return what a relay knows whose work has failed, and then Kafka has answered a probe."""
    answers = KafkaAnswers(replace(PRODUCTION, kafka_silence_s=0.0, kafka_distrust_s=distrust_s))
    answers.failed(time.monotonic() - 1.0, "no Write")
    answers.probe_answered()
    return answers


def test_a_probe_does_not_count_soon_after_failed_work() -> None:
    assert answers_after_failed_work(60.0).error == "no Write"


def test_a_probe_counts_when_the_distrust_is_over() -> None:
    assert answers_after_failed_work(-0.5).error is None


def test_work_that_fails_while_a_probe_is_in_flight_is_judged_when_that_is_answered() -> None:
    answers = KafkaAnswers(replace(PRODUCTION, kafka_silence_s=0.5))
    answers.published()
    answers.asked()
    answers.failed(time.monotonic() - 1.0, "no Write")
    assert answers.error is None
    answers.probe_answered()
    assert answers.error == "no Write"


def test_work_that_fails_while_probes_are_silent_is_not_judged() -> None:
    answers = KafkaAnswers(replace(PRODUCTION, kafka_silence_s=0.0))
    answers.asked()
    answers.failed(time.monotonic() - 1.0, "timed out")
    answers.probe_answered()
    assert answers.error is None
