"""The check of `doctor` on the version of the brokers, which no broker tells."""

import logging
import re

from confluent_kafka.admin import AdminClient, ResourceType  # type: ignore[attr-defined]  # public

from orchestrator.operations.doctor.check import Installation, Result
from orchestrator.operations.doctor.kafka import is_answered, request_configs

# No request returns the version of a broker. But at the start of each connection a broker lists the
# versions of the requests that it answers, and each release added some (the schemas in kafka-clients).
# Release, number of the request, the version that came with it.
RELEASES = (
    ("4.4", 18, 5),  # ApiVersions
    ("4.2", 2, 11),  # ListOffsets
    ("4.1", 1, 18),  # Fetch
    ("4.0", 3, 13),  # Metadata
    ("3.9", 1, 17),  # Fetch
)
ANSWERED = re.compile(r"(\S+):\s+ApiKey .+ \((\d+)\) Versions \d+\.\.(\d+)$")


class AnsweredRequests(logging.Handler):
    """Reads from the client's debug log what each broker answers: it is shown nowhere else."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.by_broker: dict[str, dict[int, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Take one line of the log."""
        if found := ANSWERED.search(record.getMessage()):
            broker, request, version = found.groups()
            self.by_broker.setdefault(broker, {})[int(request)] = int(version)

    def oldest(self) -> str | None:
        """Return the newest release that no broker is older than; None: one is older than all known."""
        for release, request, version in RELEASES:
            if all(known.get(request, -1) >= version for known in self.by_broker.values()):
                return release
        return None


def kafka_version(installation: Installation) -> Result:
    """Find out the release of the brokers from the requests that each of them answers."""
    requests = AnsweredRequests()
    log = logging.Logger("librdkafka", logging.DEBUG)  # noqa: LOG001  # this client's alone
    log.addHandler(requests)
    client = AdminClient({**installation.kafka, "debug": "feature"}, logger=log)
    asked = [
        request_configs(client, ResourceType.BROKER, [str(node.id)]) for node in installation.brokers
    ]
    silent = [
        f"{node.host}:{node.port}"
        for node, one in zip(installation.brokers, asked, strict=True)
        if not all(is_answered(future) for future in one.values())
    ]
    client.poll(0)
    if silent:
        advice = "see that it runs, and that its advertised.listeners can be reached from here"
        return "unreachable", f"no answer from {', '.join(silent)}: {advice}"
    if not requests.by_broker:
        return "skipped", "the brokers did not say what requests they answer"
    oldest = requests.oldest()
    if oldest is None:
        return "failed", f"a broker is older than {RELEASES[-1][0]}, the oldest that works: upgrade it"
    return "ok", f"all brokers answer as Apache Kafka {oldest} or newer does (none tells its version)"
