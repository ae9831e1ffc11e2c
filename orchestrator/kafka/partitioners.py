"""Where librdkafka's partitioners place a key: for the audit, which sees only where records are."""

from zlib import crc32

DEFAULT_PARTITIONER = "consistent_random"


def hash_key(partitioner: str, key: bytes) -> int:
    """Return the number whose remainder, by the number of partitions, is the key's partition."""
    match partitioner.removesuffix("_random"):
        case "murmur2":
            return murmur2(key) & 0x7FFF_FFFF
        case "fnv1a":
            return fnv1a(key)
        case _:
            return crc32(key)


def fnv1a(key: bytes) -> int:
    """Return FNV-1a of 32 bits, without its sign, as Sarama computes it."""
    found = 0x811C_9DC5
    for byte in key:
        found = (found ^ byte) * 0x0100_0193 & 0xFFFF_FFFF
    return found if found < 1 << 31 else (1 << 32) - found


def murmur2(key: bytes) -> int:
    """Return MurmurHash2 of 32 bits, with the seed of Kafka's Java client."""
    prime = 0x5BD1_E995
    found = 0x9747_B28C ^ len(key)
    whole = len(key) // 4 * 4
    for first in range(0, whole, 4):
        word = int.from_bytes(key[first : first + 4], "little") * prime & 0xFFFF_FFFF
        word = (word ^ word >> 24) * prime & 0xFFFF_FFFF
        found = found * prime & 0xFFFF_FFFF ^ word
    if rest := key[whole:]:
        found = (found ^ int.from_bytes(rest, "little")) * prime & 0xFFFF_FFFF
    found = (found ^ found >> 13) * prime & 0xFFFF_FFFF
    return found ^ found >> 15


def fitting_count(key_hash: int, partition: int, at_least: int, at_most: int) -> int | None:
    """Return the smallest number of partitions, within these, that places the key there; None: none."""
    fitting = (n for n in range(at_least, at_most + 1) if key_hash % n == partition)
    return next(fitting, None)
