"""The lanes as `status` shows them: from outside, whether or not a relay runs."""

import enum
from collections.abc import Mapping
from typing import NamedTuple

from confluent_kafka.admin import AdminClient

from orchestrator.config.settings import Settings
from orchestrator.contract.repair_commands import repair_of_lane
from orchestrator.kafka.topics import find_unwritable
from orchestrator.operations.status.problems import OLD_S
from orchestrator.operations.status.statements import in_time
from outbox import Connection
from outbox.admin import LaneBacklog, check_lanes, count_backlog, list_lanes

MAX_COUNTED = 100_000  # rows of a lane


class LaneCondition(enum.StrEnum):
    """A lane as it is seen from outside; its owner knows more."""

    ACTIVE = "active"
    BEHIND = "behind"  # its oldest row has waited longer than OLD_S
    NO_OWNER = "no_owner"
    WAITING = "waiting"  # its first row goes to a topic that cannot be written to
    REFUSED = "refused"


class LaneReport(NamedTuple):
    """A lane.

    refusal: the outcome for which it is refused, with the command that ends it: repair. waits_for: the
    topic that cannot be written to, and what to do. owner: application name and address of its session;
    None: it has none. inflight: rows of batch `batch_number` that are not acknowledged. pending: rows
    in the outbox, at most MAX_COUNTED; None: they could not be counted.
    """

    lane: int
    state: LaneCondition
    refusal: str | None
    waits_for: str | None
    owner: str | None
    epoch: int
    batch_number: int
    inflight: int
    pending: int | None
    oldest_s: float | None
    repair: str | None


def read_lane_refusals(settings: Settings, conn: Connection) -> dict[int, str]:
    """Compare every lane's batch with its marker; return the outcomes that refuse a lane."""
    checks = check_lanes(conn, settings.kafka, settings.marker_topic)
    return {
        check.lane: check.outcome.value for check in checks if check.outcome and check.outcome.refused
    }


def read_backlogs(conn: Connection) -> dict[int, LaneBacklog]:
    """Return what waits in each lane; nothing if counting takes too long."""
    counted = in_time(lambda: count_backlog(conn, MAX_COUNTED)) or ()
    return {backlog.lane: backlog for backlog in counted}


def find_unwritable_topics(admin: AdminClient, backlogs: Mapping[int, LaneBacklog]) -> dict[str, str]:
    """Return which topics of the lanes' first rows cannot be written to, as `find_unwritable` does."""
    return find_unwritable(admin, sorted({one.topic for one in backlogs.values() if one.topic}))


def report_lanes(
    conn: Connection,
    refusals: Mapping[int, str],
    backlogs: Mapping[int, LaneBacklog],
    unwritable: Mapping[str, str],
) -> list[LaneReport]:
    """Return every lane with what waits in it."""
    reports = []
    for lane in list_lanes(conn):
        backlog, refusal = backlogs.get(lane.lane), refusals.get(lane.lane)
        oldest_s = backlog and backlog.oldest_s
        waits_for = unwritable.get(backlog.topic or "") if backlog else None
        reports.append(
            LaneReport(
                lane.lane,
                condition_of(refusal, lane.owner, waits_for, oldest_s),
                refusal,
                waits_for,
                lane.owner,
                lane.epoch,
                lane.batch_number,
                lane.inflight,
                backlog and backlog.pending,
                oldest_s,
                repair_of_lane(lane.lane) if refusal else None,
            )
        )
    return reports


def condition_of(
    refusal: str | None, owner: str | None, waits_for: str | None, oldest_s: float | None
) -> LaneCondition:
    """Return how a lane looks from outside."""
    if refusal:
        return LaneCondition.REFUSED
    if owner is None:
        return LaneCondition.NO_OWNER
    if waits_for:
        return LaneCondition.WAITING
    is_behind = oldest_s is not None and oldest_s > OLD_S
    return LaneCondition.BEHIND if is_behind else LaneCondition.ACTIVE
