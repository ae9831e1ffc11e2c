"""The relay process: the outbox library's Relay, told what a published row means to us."""

from collections.abc import Callable

from orchestrator.config.settings import Settings
from orchestrator.contract.repair_commands import repair_of_lane
from orchestrator.contract.workers import set_deployed
from orchestrator.observability.gauges import KafkaLook, backlog_gauges, in_background
from orchestrator.observability.health import Health
from orchestrator.observability.metrics import RelayMetrics, new_registry
from orchestrator.runtime.migrations import check_current
from orchestrator.runtime.process import run_process
from outbox import LaneState, LaneStatus, Relay


def new_relay(settings: Settings, metrics: RelayMetrics | None = None) -> Relay:
    """Return a relay that marks workers deployed once their order is in Kafka."""
    return Relay(
        settings.database_url,
        settings.kafka,
        on_published=set_deployed,
        batch_size=settings.batch_size,
        marker_topic=settings.marker_topic,
        observer=metrics,
        check_database=check_current,
        strict_fencing=settings.strict_fencing,
        repair_command=repair_of_lane,
    )


def run_relay(settings: Settings) -> int:
    """Be the relay until stopped; return the exit code."""
    health, registry = Health(), new_registry("relay")
    metrics = RelayMetrics(registry, health)
    relay = new_relay(settings, metrics)
    metrics.refused.set_function(
        lambda: sum(status.state is LaneState.REFUSED for status in relay.lanes().values())
    )
    kafka = KafkaLook(
        settings, [settings.output_topic, settings.dead_letter_topic, settings.marker_topic]
    )
    health.checks = {
        "postgres": lambda: relay.last_error,
        "kafka": lambda: kafka.trouble,
        "lanes": lanes_check(relay),
    }
    metrics.tick()  # or a first connect that hangs would never be missed
    with in_background(kafka.look), backlog_gauges(settings, metrics):
        return run_process(settings, registry, health, relay.run)


def lanes_check(relay: Relay) -> Callable[[], str | None]:
    """Return a check that names the lanes that are not active, and why."""

    def check() -> str | None:
        named = [
            describe_lane(number, status)
            for number, status in sorted(relay.lanes().items())
            if status.state is not LaneState.ACTIVE
        ]
        return "; ".join(named) or None

    return check


def describe_lane(number: int, status: LaneStatus) -> str:
    """Return a lane's state and its reason; for a refused lane also the command that repairs it."""
    repair = repair_of_lane(number) if status.state is LaneState.REFUSED else None
    parts = (f"lane {number}", status.state.value, status.reason, repair)
    return ": ".join(part for part in parts if part)
