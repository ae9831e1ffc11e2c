"""Where a repaired partition continues, and what of it counts as decided."""

from uuid import UUID

import pytest

from orchestrator.consumer.offsets import PartitionRefusal, Position
from orchestrator.consumer.refusals import find_refusal
from orchestrator.errors import NotRepaired
from orchestrator.kafka.reader import OffsetRange
from orchestrator.operations.repair.partition import PartitionCheck, Start, describe_plan, make_plan

TOPIC, OTHER = UUID(int=1), UUID(int=2)


def checked(position: Position, log: tuple[int, int], continues_at: int | None) -> PartitionCheck:
    """Return a partition's check, as it is made of what the servers say."""
    found = OffsetRange(*log)
    refusal = find_refusal(position, TOPIC, found, continues_at)
    return PartitionCheck(0, position, TOPIC, found, 9, continues_at, refusal)


def at(offset: int, epoch: int = 5, *, again_to: int | None = None, topic: UUID = TOPIC) -> Position:
    """Return a position; again_to: up to where records are decided again."""
    return Position(topic, offset, epoch, again_to or offset, again_to is not None)


CUT = PartitionRefusal.LOG_TRUNCATED
GONE = PartitionRefusal.OFFSET_OUT_OF_RANGE
RECREATED = PartitionRefusal.TOPIC_RECREATED

# position, log, where a reader continues; start, again; refusal, next offset, decided end
PLANS = [
    (at(1000), (0, 1200), 500, None, False, CUT, 500, 500),
    (at(1000), (0, 700), 700, None, False, CUT, 700, 700),
    (at(1000), (0, 1200), 0, None, False, CUT, 0, 0),
    (at(1000), (0, 0), 0, None, False, CUT, 0, 0),
    (at(1000), (0, 1200), 500, 800, False, CUT, 800, 800),
    (at(1000), (0, 1200), 500, "beginning", True, CUT, 0, 500),
    (at(1000), (300, 1200), 500, None, False, CUT, 500, 500),
    (at(1000), (0, 1200), None, 700, False, None, 700, 1000),
    (at(1000, -1), (0, 700), 0, 300, False, CUT, 300, 700),
    (at(1000)._replace(refusal=CUT, cut_at=500), (0, 1200), 1000, None, False, CUT, 500, 500),
    (at(1000)._replace(refusal=CUT, cut_at=500), (0, 800), 800, None, False, CUT, 500, 500),
    (at(1000)._replace(refusal=CUT, cut_at=500), (0, 800), None, None, False, CUT, 500, 500),
    (at(1000, -1), (0, 700), 0, "beginning", True, CUT, 0, 700),
    (at(10), (60, 80), 60, None, False, GONE, 60, 60),
    (at(10), (60, 80), 60, 70, False, GONE, 70, 70),
    (at(10, again_to=90), (60, 95), 60, None, False, GONE, 60, 90),
    (at(10, topic=OTHER), (60, 80), None, None, False, RECREATED, 60, 60),
    (at(10), (0, 80), 10, 0, True, None, 0, 10),
    (at(10), (0, 80), 10, 20, False, None, 20, 20),
]


@pytest.mark.parametrize(
    ("position", "log", "continues_at", "start", "again", "refusal", "next_offset", "decided_end"),
    PLANS,
)
def test_a_partition_continues_at_the_first_record_that_was_not_decided(
    position: Position,
    log: tuple[int, int],
    continues_at: int | None,
    start: Start,
    again: bool,
    refusal: PartitionRefusal | None,
    next_offset: int,
    decided_end: int,
) -> None:
    check = checked(position, log, continues_at)
    assert check.refusal == refusal
    if refusal is None and isinstance(start, int) and start < position.next_offset and not again:
        with pytest.raises(NotRepaired, match="--again"):
            make_plan(check, start, again)
        return
    plan = make_plan(check, start, again)
    assert (plan.next_offset, plan.decided_end) == (next_offset, decided_end)
    assert f"it will continue at offset {next_offset}" in "\n".join(describe_plan(plan))


def test_a_cut_whose_place_is_unknown_needs_the_operators_word() -> None:
    with pytest.raises(NotRepaired, match="Give --from OFFSET, the first of 0 to 700"):
        make_plan(checked(at(1000, -1), (0, 700), 0), None, again=False)

    with pytest.raises(NotRepaired, match="--again"):
        make_plan(checked(at(1000, -1), (0, 700), 0), "beginning", again=False)
    stored = at(1000, -1)._replace(refusal=CUT)
    with pytest.raises(NotRepaired, match="Give --from OFFSET"):
        make_plan(checked(stored, (0, 1200), 1000), None, again=False)
