"""The consumer process: commands from Kafka into Postgres."""

from collections.abc import Mapping

from orchestrator.config.settings import Settings
from orchestrator.config.timings import ConsumerTimings, ProcessTimings
from orchestrator.consumer.commands import command_subscription
from orchestrator.consumer.loop import CONSUMER_SESSION, ConsumerLoop
from orchestrator.consumer.refusals import describe_refusal
from orchestrator.contract.messages import DeployOrder
from orchestrator.contract.repair_commands import repair_of_partition
from orchestrator.observability.gauges import consumer_gauges
from orchestrator.observability.health import Health
from orchestrator.observability.metrics import ConsumerMetrics, new_registry
from orchestrator.observability.standby import watch_standby
from orchestrator.runtime.database import open_session
from orchestrator.runtime.process import answer_http, run_until_stopped
from outbox import with_overrides


def run_consumer(settings: Settings) -> int:
    """Run the consumer until it is stopped; return the exit code."""
    timings = with_overrides(ProcessTimings())
    health, registry = Health(stalled_s=timings.stalled_s), new_registry("consumer")
    metrics = ConsumerMetrics(registry, health, settings.input_topic)
    consumer = ConsumerLoop(
        lambda: open_session(settings, CONSUMER_SESSION),
        command_subscription(settings),
        metrics,
        with_overrides(ConsumerTimings()),
    )
    health.checks["session"] = lambda: consumer.last_error
    health.add("partitions", lambda: describe_refused(consumer.refused()), lambda: is_working(consumer))
    health.notes["unread"] = lambda: describe_unread(consumer.unread())
    health.notes["refused rows"] = consumer.refused_rows.describe
    with (
        consumer_gauges(settings, consumer.positions, consumer.refused, metrics, timings),
        watch_standby(settings, health, "consumer", CONSUMER_SESSION, timings),
        answer_http(settings, registry, health),
    ):
        return run_until_stopped(consumer.run, on_stop=health.stop)


def is_working(consumer: ConsumerLoop[DeployOrder]) -> bool:
    """Say whether a consumer reads what it was assigned: one without partitions, and one with any."""
    refused = consumer.refused()
    return not refused or any(partition not in refused for partition in consumer.positions())


def describe_refused(refused: Mapping[int, str]) -> str | None:
    """Return the refused partitions, each with its reason and its repair; None if there are none."""
    named = (
        f"partition {number}: {describe_refusal(reason, repair_of_partition(number))}"
        for number, reason in sorted(refused.items())
    )
    return "; ".join(named) or None


def describe_unread(unread: Mapping[int, str]) -> str | None:
    """Return the partitions whose records do not come, each with the reason; None if there are none."""
    return "; ".join(f"partition {number}: {why}" for number, why in sorted(unread.items())) or None
