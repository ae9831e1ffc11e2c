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
