"""Setup: creates the schema and the topics where they are missing. Safe to run again."""

import logging
from contextlib import closing

from orchestrator.config.settings import DEFAULT_LANES, Settings
from orchestrator.kafka import topics
from orchestrator.runtime.database import (
    SESSIONS_NEEDED,
    close_schemas,
    find_connection_limits,
    open_session,
)
from orchestrator.runtime.migrations import migrate
from outbox import count_lanes
from outbox.admin import read_identity

log = logging.getLogger(__name__)


def migrate_database(settings: Settings) -> int:
    """Run pending migrations; return the number of lanes, which the first one fixed."""
    with closing(open_session(settings, "orchestrator migrate")) as conn:
        for migration in migrate(conn, settings.lanes or DEFAULT_LANES):
            log.info("migration applied", extra={"file": migration.name})
        for schema in close_schemas(conn):
            log.warning("schema open", extra={"remedy": schema.remedy})
        lanes = count_lanes(conn)
        read_identity(conn)
        for owner, limit in find_connection_limits(conn):
            log.warning(
                "connection limit low",
                extra={"owner": owner, "limit": limit, "needed": SESSIONS_NEEDED},
            )
    if settings.lanes not in {None, lanes}:
        log.warning(
            "LANES ignored",  # their number is fixed when the schema is created
            extra={"lanes": lanes, "configured": settings.lanes},
        )
    return lanes


def set_up(settings: Settings) -> None:
    """Migrate and create the missing topics.

    Raises psycopg.Error, KafkaException, TopicMissing, DatabaseNotReady.
    """
    lanes = migrate_database(settings)
    topics.check_access(settings.kafka)
    admin = topics.Admin(settings.kafka)
    configs = {
        settings.input_topic: topics.INPUT_CONFIG,
        settings.output_topic: topics.KEPT,
        settings.dead_letter_topic: topics.LETTER_CONFIG,
    }
    created = topics.create_missing(admin, settings.marker_topic, lanes, configs)
    for topic in created:
        log.info("topic created", extra={"topic": topic})
