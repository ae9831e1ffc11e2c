"""The check of `doctor` on the dead-letter topic: does another installation use it, too?"""

from collections import Counter

from orchestrator.contract.records import headers_of
from orchestrator.kafka.reader import OffsetRange, find_ranges, read_ranges
from orchestrator.operations.dead_letters.headers import Input, origin_of
from orchestrator.operations.dead_letters.letters import input_of
from orchestrator.operations.doctor.check import Installation, Result, combine, counted

LATEST = 1000  # offsets that are read, of all partitions together
MAX_NAMED = 5  # other inputs
ADVICE = (
    "`dlq` leaves them out: give each installation a DEAD_LETTER_TOPIC of its own or, where our topic"
    " or group was renamed, handle them with the earlier INPUT_TOPIC and CONSUMER_GROUP"
)


def dead_letter_topic(installation: Installation) -> Result:
    """Read the latest dead letters; name the inputs that they came from, other than ours."""
    topic = installation.topic(installation.settings.dead_letter_topic).name
    logs = find_ranges(installation.admin, topic)
    share = -(-LATEST // len(logs))
    latest = {p: OffsetRange(max(log.first, log.end - share), log.end) for p, log in logs.items()}
    inputs: Counter[Input] = Counter()
    for chunk in read_ranges(installation.kafka, topic, latest):
        inputs.update(origin.input for one in chunk if (origin := origin_of(headers_of(one))))
    ours = inputs.pop(input_of(installation.settings), 0)
    remarks: list[Result] = [
        ("warning", f"{topic} has {counted(letters, 'dead letter')} of {other}")
        for other, letters in inputs.most_common(MAX_NAMED)
    ]
    remarks += [("warning", ADVICE)] if remarks else []
    return combine(remarks, f"{counted(ours, 'dead letter')} of our input among the latest, no other")
