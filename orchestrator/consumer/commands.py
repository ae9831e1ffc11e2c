"""What the records of the input mean: commands, of which each becomes a worker and a deploy order."""

from orchestrator.config.settings import Settings
from orchestrator.consumer.subscription import Subscription
from orchestrator.contract import workers
from orchestrator.contract.insert_refusals import explain_refusal
from orchestrator.contract.messages import CommandParser, DeployOrder, OrderBuilder, worker_id_of
from orchestrator.contract.repair_commands import repair_of_partition
from orchestrator.contract.workers_table import check_workers
from orchestrator.runtime.database import check_encoding
from orchestrator.runtime.migrations import check_current
from outbox import Connection


def command_subscription(settings: Settings) -> Subscription[DeployOrder]:
    """Return the subscription to the commands of the API."""
    event_source = f"/orchestrator/{settings.input_topic}" if settings.cloudevents else None
    parser = CommandParser(settings.max_message_bytes, settings.camera_url_schemes)
    return Subscription(
        kafka=settings.kafka,
        group=settings.consumer_group,
        topic=settings.input_topic,
        dead_letter_topic=settings.dead_letter_topic,
        batch_size=settings.batch_size,
        check=check_database,
        parse=OrderBuilder(parser, settings.output_topic, event_source).build,
        insert=workers.insert,
        insert_ignoring_existing=workers.insert_ignoring_existing,
        explain_refusal=explain_refusal,
        aggregate_id=worker_id_of,
        find_existing=workers.find_existing,
        repair_command=repair_of_partition,
    )


def check_database(conn: Connection) -> None:
    """Raise DatabaseNotReady unless the database is what this release needs."""
    check_current(conn)
    check_encoding(conn)
    check_workers(conn)
