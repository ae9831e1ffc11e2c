"""The partitioners of the audit against librdkafka's own."""

import ctypes
from pathlib import Path
from random import Random

import confluent_kafka
import pytest

from orchestrator.kafka.partitioners import fitting_count, hash_key
from outbox.kafka_config import KEY_PARTITIONERS


@pytest.mark.parametrize("partitioner", KEY_PARTITIONERS)
def test_a_key_is_where_librdkafka_places_it(partitioner: str) -> None:
    package = Path(confluent_kafka.__file__).parent
    (library,) = package.parent.glob("confluent_kafka.libs/librdkafka*")
    place = getattr(ctypes.CDLL(str(library)), f"rd_kafka_msg_partitioner_{partitioner}")
    place.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int32]
    place.argtypes += [ctypes.c_void_p] * 2
    random = Random(7)
    for length in range(1, 40):
        key = random.randbytes(length)
        for count in (1, 2, 3, 6, 50, 1000):
            expected = place(None, key, length, count, None, None)
            assert hash_key(partitioner, key) % count == expected


def test_a_partition_fits_to_the_smallest_number_of_partitions() -> None:
    assert fitting_count(7, 0, 1, 6) == 1
    assert fitting_count(7, 1, 1, 6) == 2
    assert fitting_count(7, 1, 3, 6) == 3
    assert fitting_count(7, 0, 2, 6) is None
