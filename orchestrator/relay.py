"""The relay process: the outbox library's Relay, told what a published row means to us."""

from collections.abc import Mapping

from orchestrator.config.settings import Settings
from orchestrator.config.timings import ProcessTimings
from orchestrator.contract.repair_commands import repair_of_lane
from orchestrator.contract.workers import set_deployed
from orchestrator.contract.workers_table import check_workers
from orchestrator.observability.backlog import backlog_gauges
from orchestrator.observability.gauges import KafkaProbe, poll_in_background
from orchestrator.observability.health import Health
from orchestrator.observability.metrics import RelayMetrics, new_registry
from orchestrator.observability.standby import watch_standby
from orchestrator.runtime.migrations import check_current
from orchestrator.runtime.process import answer_http, run_until_stopped
from outbox import RELAY_SESSION, Connection, LaneState, LaneStatus, Relay, with_overrides


def new_relay(settings: Settings, metrics: RelayMetrics | None = None) -> Relay:
    """Return a relay that marks workers deployed once their order is in Kafka."""
    return Relay(
        settings.database_url,
        settings.kafka,
        on_published=set_deployed,
        batch_size=settings.batch_size,
        marker_topic=settings.marker_topic,
        observer=metrics,
        check_database=check_database,
        strict_fencing=settings.strict_fencing,
        repair_command=repair_of_lane,
        schema=settings.database_schema,
        topics=settings.topics_of_relays(),
    )


def check_database(conn: Connection) -> None:
    """Raise DatabaseNotReady unless the database is what this release needs."""
    check_current(conn)
    check_workers(conn)


def run_relay(settings: Settings) -> int:
    """Run the relay until it is stopped; return the exit code."""
    timings = with_overrides(ProcessTimings())
    health, registry = Health(stalled_s=timings.stalled_s), new_registry("relay")
    metrics = RelayMetrics(registry, health, settings.output_topic)
    relay = new_relay(settings, metrics)
    kafka = KafkaProbe(
        settings, [settings.output_topic, settings.dead_letter_topic, settings.marker_topic]
    )
    health.checks["postgres"] = lambda: relay.last_error
    health.checks["kafka"] = lambda: kafka_check(
        relay.kafka_error, kafka.last_error or kafka.unusable.get(settings.marker_topic)
    )
    health.add("lanes", lambda: describe_lanes(relay.lanes()), lambda: is_working(relay.lanes()))
    health.notes["topics"] = lambda: "; ".join(kafka.unusable.values())
    metrics.refused.set_function(lambda: count_refused(relay.lanes()))
    metrics.without_kafka.set_function(lambda: relay.kafka_error is not None)
    metrics.tick()  # without a first tick, a first connect that hangs would never count as stalled
    with (
        poll_in_background(kafka.check, timings),
        backlog_gauges(settings, metrics, timings),
        watch_standby(settings, health, "relay", RELAY_SESSION, timings),
        answer_http(settings, registry, health),
    ):
        return run_until_stopped(relay.run, on_stop=health.stop)


def kafka_check(relay_error: str | None, probe_error: str | None) -> str | None:
    """Return why Kafka does not answer the relay, or the marker topic cannot be used."""
    silent = relay_error and f"no transaction of this relay is answered: {relay_error}"
    return "; ".join(filter(None, (silent, probe_error))) or None


def count_refused(lanes: Mapping[int, LaneStatus]) -> int:
    """Return how many lanes wait for the operator."""
    return sum(status.state is LaneState.REFUSED for status in lanes.values())


def is_working(lanes: Mapping[int, LaneStatus]) -> bool:
    """Say whether a relay works: one without lanes does, and one that can work any of its lanes.

    A lane that backs off, has rows that wait, or is refused among others, must not block the roll-out
    of a release.
    """
    working = {LaneState.ACTIVE, LaneState.WAITING, LaneState.BACKING_OFF}
    return not lanes or any(status.state in working for status in lanes.values())


def describe_lanes(lanes: Mapping[int, LaneStatus]) -> str | None:
    """Return the lanes that are not active, each with its state and reason; None if all are active."""
    named = (
        describe_lane(number, status)
        for number, status in sorted(lanes.items())
        if status.state is not LaneState.ACTIVE
    )
    return "; ".join(named) or None


def describe_lane(number: int, status: LaneStatus) -> str:
    """Return a lane's state and its reason; for a refused lane also the command that repairs it."""
    repair = repair_of_lane(number) if status.state is LaneState.REFUSED else None
    parts = (f"lane {number}", status.state.value, status.reason, repair)
    return ": ".join(part for part in parts if part)
