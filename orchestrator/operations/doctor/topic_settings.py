"""The check of `doctor` on what the settings of our topics do to their records and to our memory."""

from collections.abc import Iterator, Mapping

from orchestrator.contract.dead_letters import MAX_LETTER_BYTES
from orchestrator.operations.doctor.check import Installation, Result, combine
from orchestrator.operations.doctor.kafka import Configs, read_configs

# max.message.bytes limits a batch as it is stored; a consumer inflates it whole: up to so many times,
# by the formats of the codecs. zstd has no such bound, but the client has one for it.
INFLATES = {"gzip": 1032, "lz4": 255, "snappy": 22, "uncompressed": 1}
RECEIVE_MAX_BYTES = 100_000_000  # receive.message.max.bytes, unless it is set
# Of one batch, within the memory of the manifests: see docs/performance.md.
FITS_BYTES = 32 * 1024 * 1024
DEFAULT_MAX_BYTES = 1_048_588

LOST_COMMANDS = "of the commands of a key only the last is kept, read or not: set it to delete"
LOST_ORDERS = (
    "of the orders of a scenario only the last is kept, read or not, and after a doubt a lane may be"
    " refused as log_unusable: set it to delete"
)
LOST_LETTERS = (
    "of the dead letters of a key only the last is kept, and one without a key is parked: set it to"
    " delete"
)


def topic_settings(installation: Installation) -> Result:
    """Find topics whose records compaction removes, and batches that may be too large in memory."""
    s = installation.settings
    losses = {
        s.input_topic: LOST_COMMANDS,
        s.output_topic: LOST_ORDERS,
        s.dead_letter_topic: LOST_LETTERS,
    }
    names = [installation.topic(name).name for name in losses]
    configs, unseen = read_configs(installation.admin, names)
    remarks: list[Result] = [
        ("warning", f"cleanup.policy of {name} is {policy}: {losses[name]}")
        for name, config in configs.items()
        if "compact" in (policy := config.get("cleanup.policy", ""))
    ]
    limit = s.kafka.get("receive.message.max.bytes", RECEIVE_MAX_BYTES)
    if s.input_topic in configs:
        remarks += memory_remarks(s.input_topic, configs[s.input_topic], int(limit))
    if s.dead_letter_topic in configs:
        remarks += letter_remarks(s.dead_letter_topic, configs[s.dead_letter_topic], s.kafka)
    if unseen:
        remarks.append(("ok", f"those of {', '.join(unseen)} need the permission DescribeConfigs"))
    return combine(remarks, "no record is removed unread, and batches fit into memory")


def letter_remarks(topic: str, config: Configs, kafka: Mapping[str, str]) -> Iterator[Result]:
    """Yield what is too small for the largest dead letter: it would be parked."""
    limits = {
        f"max.message.bytes of {topic}": config.get("max.message.bytes", DEFAULT_MAX_BYTES),
        "KAFKA_CONFIG_MESSAGE_MAX_BYTES": kafka.get("message.max.bytes", DEFAULT_MAX_BYTES),
    }
    for name, limit in limits.items():
        if int(limit) < MAX_LETTER_BYTES:
            why = f"a dead letter may have {MAX_LETTER_BYTES:,} bytes, and is parked if it does not fit"
            yield "warning", f"{name} is {int(limit):,}: {why}: set it to {DEFAULT_MAX_BYTES}"


def memory_remarks(topic: str, config: Configs, receive_max_bytes: int) -> Iterator[Result]:
    """Yield what a batch of the input may need in memory, where that is much."""
    largest, codec = largest_batch(config, receive_max_bytes)
    if largest > FITS_BYTES:
        setting, limit = config.get("compression.type"), config.get("max.message.bytes")
        text = (
            f"compression.type of {topic} is {setting}, its max.message.bytes {limit}: a {codec} batch"
            f" may become {largest >> 20:,} MB in a consumer, which needs four times as much memory and"
            " lets other partitions wait: set compression.type to uncompressed"
        )
        yield "warning", text


def largest_batch(config: Configs, receive_max_bytes: int) -> tuple[int, str]:
    """Return how large a batch may become in a consumer, and by which codec."""
    max_bytes = int(config.get("max.message.bytes", DEFAULT_MAX_BYTES))
    codec = config.get("compression.type", "producer")
    if codec == "zstd":
        return receive_max_bytes, codec
    if codec == "producer":
        codec = "gzip"
    return max_bytes * INFLATES.get(codec, INFLATES["gzip"]), codec
