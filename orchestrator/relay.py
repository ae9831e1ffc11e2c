"""The relay process: the outbox library's Relay, told what a acknowledged row means to us."""

import logging
from collections.abc import Callable

from orchestrator.config.settings import Settings
from orchestrator.contract.repair_commands import repair_of_lane
from orchestrator.contract.workers import set_deployed
from orchestrator.observability.gauges import KafkaLook, backlog_gauges, in_background
from orchestrator.observability.health import Health
from orchestrator.observability.metrics import RelayMetrics, new_registry
from orchestrator.runtime.migrations import check_current
from orchestrator.runtime.process import run_process
from outbox import Relay

REFUSED = "refused: "  # how the state of a lane begins that waits for a person


def new_relay(settings: Settings, metrics: RelayMetrics | None = None) -> Relay:
    """Return a relay that marks workers deployed once their order is in Kafka."""
    return Relay(
        settings.database_url,
        settings.kafka,
        on_published=set_deployed,
        batch_size=settings.batch_size,
        marker_topic=settings.marker_topic,
        observer=metrics,
        check=check_current,
        strict_fencing=settings.strict_fencing,
    )


def run_relay(settings: Settings) -> int:
    """Be the relay until stopped; return the exit code."""
    health, registry = Health(), new_registry("relay")
    metrics = RelayMetrics(registry, health)
    relay = new_relay(settings, metrics)
    metrics.refused.set_function(
        lambda: sum(state.startswith(REFUSED) for state in relay.states().values())
    )
    kafka = KafkaLook(
        settings, [settings.output_topic, settings.dead_letter_topic, settings.marker_topic]
    )
    health.checks = {
        "postgres": lambda: relay.trouble,
        "kafka": lambda: kafka.trouble,
        "lanes": lane_trouble(relay),
    }
    logging.getLogger("outbox.session").addFilter(name_repair)
    metrics.tick()  # or a first connect that hangs would never be missed
    with in_background(kafka.look), backlog_gauges(settings, metrics):
        return run_process(settings, registry, health, relay.run)


def lane_trouble(relay: Relay) -> Callable[[], str | None]:
    """Return a check that names the lanes that do not work."""

    def check() -> str | None:
        trouble = {lane: state for lane, state in relay.states().items() if state != "working"}
        named = [f"lane {n}: {state}{repair_of(n, state)}" for n, state in sorted(trouble.items())]
        return "; ".join(named) or None

    return check


def name_repair(record: logging.LogRecord) -> bool:
    """Add the command to what the library says of a lane that it refuses to work; a log filter."""
    fields = vars(record)
    if command := repair_of(fields.get("lane", 0), str(fields.get("state", ""))):
        record.repair = command.removeprefix(": ")
    return True


def repair_of(lane: int, state: str) -> str:
    """Return the command that repairs a lane in this state, as the end of a sentence; or nothing."""
    return f": {repair_of_lane(lane)}" if state.startswith(REFUSED) else ""
