"""The lanes as `status` shows them: from outside, whether or not a relay runs."""

import enum
from collections.abc import Mapping
from typing import NamedTuple

from orchestrator.config.settings import Settings
from orchestrator.contract.repair_commands import repair_of_lane
from orchestrator.operations.status.problems import OLD_S
from orchestrator.operations.status.statements import in_time
from outbox import Connection
from outbox.admin import check_lanes, count_backlog, list_lanes

MAX_COUNTED = 100_000  # rows of a lane


class LaneCondition(enum.StrEnum):
    """A lane as it is seen from outside; its owner knows more."""

    ACTIVE = "active"
    BEHIND = "behind"  # its oldest row has waited longer than OLD_S
    NO_OWNER = "no_owner"
    REFUSED = "refused"


class LaneReport(NamedTuple):
    """A lane.

    refusal: the outcome for which it is refused, with the command that ends it: repair. owner:
    application name and address of its session; None: it has none. inflight: rows of batch
    `batch_number` that are not acknowledged. pending: rows in the outbox, at most MAX_COUNTED; None:
    they could not be counted.
    """

    lane: int
    state: LaneCondition
    refusal: str | None
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


def report_lanes(conn: Connection, refusals: Mapping[int, str]) -> list[LaneReport]:
    """Return every lane with what waits in it."""
    counted = in_time(lambda: count_backlog(conn, MAX_COUNTED)) or ()
    backlogs = {backlog.lane: backlog for backlog in counted}
    reports = []
    for lane in list_lanes(conn):
        backlog, refusal = backlogs.get(lane.lane), refusals.get(lane.lane)
        oldest_s = backlog and backlog.oldest_s
        reports.append(
            LaneReport(
                lane.lane,
                condition_of(refusal, lane.owner, oldest_s),
                refusal,
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


def condition_of(refusal: str | None, owner: str | None, oldest_s: float | None) -> LaneCondition:
    """Return how a lane looks from outside."""
    if refusal:
        return LaneCondition.REFUSED
    if owner is None:
        return LaneCondition.NO_OWNER
    is_behind = oldest_s is not None and oldest_s > OLD_S
    return LaneCondition.BEHIND if is_behind else LaneCondition.ACTIVE
