"""What is said of a partition whose records are not read, and how large a batch may become."""

import time

import pytest
from confluent_kafka import KafkaError

from orchestrator.consumer.unread import find_unread
from orchestrator.kafka.continuations import Continuation
from orchestrator.operations.doctor.topic_settings import largest_batch, letter_remarks

NEW = int(time.time() * 1000) + 24 * 3600_000  # also when the test runs, an hour after this line
OLD = NEW - 25 * 3600_000
BAD = KafkaError(KafkaError._BAD_COMPRESSION, "of 9 bytes")
DENIED = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)

# position, last stable offset, high watermark, what a reader finds: what is said
SAID: list[tuple[int, int, int, Continuation | None, str | None]] = [
    (5, 5, 5, Continuation(5), None),
    (5, 9, 9, Continuation(5, NEW), None),  # only behind
    (5, 9, 9, Continuation(5, OLD), None),
    (5, 5, 9, Continuation(5, NEW), None),  # a transaction at work
    (5, 5, 9, Continuation(5, OLD), "transaction is open at offset 5"),
    (5, 7, 9, Continuation(7, OLD), "transaction is open at offset 7"),  # from 5 no record
    (5, 7, 9, Continuation(5, OLD), None),  # records come first
    (5, 3, 9, Continuation(6, OLD), "transaction is open at offset 3"),  # its end was cut off
    (5, 9, 9, Continuation(5, error=BAD), "the batch at offset 5 cannot be decoded"),
    (5, 9, 9, Continuation(4, error=BAD), "the batch at offset 4 cannot be decoded"),
    (5, 9, 9, Continuation(-1, error=DENIED), None),
    (5, 9, 9, None, "no record comes from offset 5"),
]


@pytest.mark.parametrize(("position", "stable", "high", "found", "said"), SAID)
def test_what_keeps_records_from_being_read_is_named(
    position: int, stable: int, high: int, found: Continuation | None, said: str | None
) -> None:
    text = find_unread("commands", 3, position, stable, high, found, "repair 3")
    assert (said or "") in (text or "")
    assert (text is None) == (said is None)


@pytest.mark.parametrize(
    ("config", "largest"),
    [
        ({}, (1_048_588 * 1032, "gzip")),
        ({"compression.type": "producer", "max.message.bytes": "100"}, (103_200, "gzip")),
        ({"compression.type": "gzip", "max.message.bytes": "100"}, (103_200, "gzip")),
        ({"compression.type": "lz4", "max.message.bytes": "100"}, (25_500, "lz4")),
        ({"compression.type": "snappy", "max.message.bytes": "100"}, (2200, "snappy")),
        ({"compression.type": "zstd", "max.message.bytes": "100"}, (777, "zstd")),
        ({"compression.type": "uncompressed", "max.message.bytes": "100"}, (100, "uncompressed")),
    ],
)
def test_the_largest_batch_follows_from_codec_and_limit(
    config: dict[str, str], largest: tuple[int, str]
) -> None:
    assert largest_batch(config, 777) == largest


@pytest.mark.parametrize(
    ("config", "kafka", "named"),
    [
        ({}, {}, ""),
        ({"max.message.bytes": "204800"}, {"message.max.bytes": "204800"}, ""),
        ({"max.message.bytes": "204799"}, {}, "max.message.bytes of dlq is 204,799"),
        ({}, {"message.max.bytes": "100000"}, "KAFKA_CONFIG_MESSAGE_MAX_BYTES is 100,000"),
    ],
)
def test_a_limit_below_the_largest_dead_letter_is_named(
    config: dict[str, str], kafka: dict[str, str], named: str
) -> None:
    remarks = [text for _, text in letter_remarks("dlq", config, kafka)]
    assert len(remarks) == bool(named)
    for text in remarks:
        assert text.startswith(named)
        assert text.endswith("set it to 1048588")
