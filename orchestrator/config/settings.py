"""The settings: read once, from the environment alone, all faults reported at once.

No fault quotes a value that may hold a secret: it names the variable and says what to write there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.config.database_url import parse_database_url, parse_schema
from orchestrator.config.environment import (
    Environment,
    SettingsError,
    between,
    if_set,
    one_of,
    printable,
    read_address,
    read_logging,
)
from orchestrator.config.kafka import read_kafka
from orchestrator.config.timings import timings_faults
from outbox import is_topic_name

DEFAULT_LANES, MAX_LANES = 4, 64
ANY_TOPIC = "*"
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*|[*]")
# What cameras, and the programs that read them, speak.
DEFAULT_SCHEMES = "rtsp,rtsps,rtspt,rtspu,http,https,rtmp,rtmps,rtmpt,srt,rist,udp,rtp,onvif,file,v4l2"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says. Sizes are in bytes; `kafka` holds librdkafka properties."""

    database_url: str
    database_schema: str  # "": ours are where the search_path says
    kafka: Mapping[str, str]
    log_level: str
    log_format: str | None
    consumer_group: str
    input_topic: str
    output_topic: str
    dead_letter_topic: str
    marker_topic: str
    relay_topics: frozenset[str]  # besides these: of other inputs, and other users of the outbox
    batch_size: int
    lanes: int | None  # None: not set; the first setup makes DEFAULT_LANES then
    max_message_bytes: int
    camera_url_schemes: tuple[str, ...]
    metrics_host: str
    metrics_port: int
    strict_fencing: bool
    cloudevents: bool

    def topics_of_relays(self) -> frozenset[str] | None:
        """Return the topics that relays may send to; None: any. To the input go retried commands."""
        if ANY_TOPIC in self.relay_topics:
            return None
        return self.relay_topics | {self.output_topic, self.dead_letter_topic, self.input_topic}

    def __repr__(self) -> str:
        """Show nothing that may hold a password."""
        return f"Settings(consumer_group={self.consumer_group!r}, input_topic={self.input_topic!r})"


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Read and check the settings. Raises SettingsError with every fault."""
    env = Environment(environ)
    metrics_host, metrics_port = read_address(env)
    log_level, log_format = read_logging(env)
    input_topic = env.read("INPUT_TOPIC", parse_topic, "init_scenario")
    settings = Settings(
        database_url=env.read("DATABASE_URL", parse_database_url),
        database_schema=env.read("DATABASE_SCHEMA", parse_schema, ""),
        kafka=read_kafka(env),
        log_level=log_level,
        log_format=log_format,
        consumer_group=env.read("CONSUMER_GROUP", printable, "orchestrator-group"),
        input_topic=input_topic,
        output_topic=env.read("OUTPUT_TOPIC", parse_topic, "to_deploy"),
        dead_letter_topic=env.read("DEAD_LETTER_TOPIC", parse_topic, f"{input_topic}.dlq"),
        marker_topic=env.read("MARKER_TOPIC", parse_topic, "outbox-markers", "PROGRESS_TOPIC"),
        relay_topics=env.read("RELAY_TOPICS", parse_topics, ""),
        batch_size=env.read("BATCH_SIZE", between(1, 100_000), "1000"),
        lanes=env.read("LANES", if_set(parse_lanes), ""),
        max_message_bytes=env.read("MAX_MESSAGE_BYTES", between(64, 64 * 1024 * 1024), "65536"),
        camera_url_schemes=env.read("CAMERA_URL_SCHEMES", parse_schemes, DEFAULT_SCHEMES),
        metrics_host=metrics_host,
        metrics_port=metrics_port,
        strict_fencing=env.read("STRICT_FENCING", one_of("true", "false"), "false") == "true",
        cloudevents=env.read("CLOUDEVENTS", one_of("true", "false"), "false") == "true",
    )
    env.faults += [*same_topics(settings), *timings_faults(environ)]
    if env.faults:
        raise SettingsError(env.faults)
    return settings


def same_topics(settings: Settings) -> list[str]:
    """Return a fault for each topic that has another one's name."""
    faults: list[str] = []
    seen: dict[str, str] = {}
    for name in ("INPUT_TOPIC", "OUTPUT_TOPIC", "DEAD_LETTER_TOPIC", "MARKER_TOPIC"):
        topic = getattr(settings, name.lower())
        if topic is not None and topic in seen:
            faults.append(f"{name} must differ from {seen[topic]}")
        seen[topic] = name
    if settings.marker_topic in (settings.relay_topics or ()):
        faults.append("RELAY_TOPICS must not name MARKER_TOPIC: a row could forge a marker")
    return faults


def read_kafka_settings(environ: Mapping[str, str]) -> tuple[Mapping[str, str], str]:
    """Read only how to reach Kafka and the input topic: what `submit` needs."""
    env = Environment(environ)
    kafka, topic = read_kafka(env), env.read("INPUT_TOPIC", parse_topic, "init_scenario")
    if env.faults:
        raise SettingsError(env.faults)
    return kafka, topic


def parse_lanes(text: str) -> int:
    """Accept a number of lanes with which a relay works at its full speed (docs/performance.md)."""
    try:
        return between(1, MAX_LANES)(text)
    except ValueError as fault:
        raise ValueError(
            f"{fault}: a relay publishes its lanes in one transaction, in which each has a share of"
            " 16 MiB, and fences each when it takes it"
        ) from None


def parse_topic(text: str) -> str:
    """Accept a legal topic name (KIP-1: up to 249 of A-Z a-z 0-9 . _ -)."""
    if not is_topic_name(text):
        raise ValueError("is no topic name: use up to 249 letters, digits, '.', '_' and '-'")
    return text


def parse_topics(text: str) -> frozenset[str]:
    """Accept topic names separated by commas, or * for any topic."""
    names = {part.strip() for part in text.split(",") if part.strip()}
    if names == {ANY_TOPIC}:
        return frozenset(names)
    if not all(map(is_topic_name, names)):
        raise ValueError("must be topic names separated by commas, or * alone")
    return frozenset(names)


def parse_schemes(text: str) -> tuple[str, ...]:
    """Accept a comma-separated list of URL schemes; `*` stands for any text."""
    found = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    if not found or not all(SCHEME.fullmatch(scheme) for scheme in found):
        raise ValueError("must be URL schemes separated by commas, such as rtsp,https; or *")
    return found
