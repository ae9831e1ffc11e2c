"""The checks of `doctor` on the rows that wait in the outbox: can they be sent, and in their order?"""

from orchestrator.operations.doctor.check import Installation, Result, combine
from orchestrator.operations.id_sequences import outbox_set_back
from orchestrator.operations.row_filters import find_row_filters
from orchestrator.operations.status import problems
from orchestrator.operations.status.lanes import find_unwritable_topics
from outbox.admin import count_backlog, find_faulty_rows

LOOKED_AT = 250  # first rows of each lane
MAX_NAMED = 5


def outbox_rows(installation: Installation) -> Result:
    """Look for rows that another writer has got wrong. A relay parks those that cannot be sent."""
    topics = installation.settings.topics_of_relays()
    faulty = list(find_faulty_rows(installation.conn, LOOKED_AT, topics))
    remarks: list[Result] = [
        ("warning", f"row {row.lane}:{row.id}: {row.fault}") for row in faulty[:MAX_NAMED]
    ]
    if len(faulty) > MAX_NAMED:
        remarks.append(("warning", f"and {len(faulty) - MAX_NAMED} more"))
    if faulty:
        remarks.append(("warning", "correct what writes such rows: it must use outbox.enqueue"))
    return combine(remarks, f"no fault in the first {LOOKED_AT} of each lane")


def outbox_topics(installation: Installation) -> Result:
    """See that the topic of each lane's first row can be written to: else the row waits."""
    backlogs = {one.lane: one for one in count_backlog(installation.conn, at_most=1)}
    unwritable = find_unwritable_topics(installation.admin, backlogs)
    waits = {lane: unwritable[one.topic] for lane, one in backlogs.items() if one.topic in unwritable}
    remarks: list[Result] = [("failed", one) for one in problems.waiting_lanes(waits)]
    return combine(remarks, "those of the first rows can be written to")


def outbox_id_sequence(installation: Installation) -> Result:
    """Check that new rows come after those that wait: else their order is not kept."""
    remarks: list[Result] = [("failed", one) for one in outbox_set_back(installation.conn)]
    return combine(remarks, "it is ahead of the ids in the outbox")


def row_filters(installation: Installation) -> Result:
    """Look for triggers and rules that may leave out what we write."""
    remarks: list[Result] = [("failed", one) for one in find_row_filters(installation.conn)]
    return combine(remarks, "no trigger or rule on our tables leaves rows out")
