"""The records that truncated dead letters were: a retry sends them whole, or not at all."""

from confluent_kafka import Message as Record

from orchestrator.config.settings import Settings
from orchestrator.contract.dead_letters import ORIGIN_ID
from orchestrator.contract.records import headers_of, origin_id_of_record
from orchestrator.kafka import topics
from orchestrator.kafka.reader import OffsetRange, find_ranges, read_ranges
from orchestrator.operations.dead_letters.headers import TRUNCATED_PARTS, block_of
from orchestrator.operations.dead_letters.letters import DeadLetter


class Originals:
    """The input as it is at one moment. Raises TopicMissing or KafkaException."""

    def __init__(self, settings: Settings) -> None:
        self._kafka = settings.kafka
        self._topic = settings.input_topic
        self._logs = find_ranges(topics.Admin(settings.kafka), settings.input_topic)

    def restore(self, letter: DeadLetter) -> DeadLetter | None:
        """Return a truncated dead letter with the whole of its record; None: the input lacks it.

        Retention may have deleted it, or a recreated topic has another record there.
        """
        record = self._read(letter)
        if record is None or origin_id_of_record(record) != letter.origin_id:
            return None
        ours = [one for one in block_of(letter.headers) if one[0] not in {ORIGIN_ID, *TRUNCATED_PARTS}]
        return letter._replace(
            key=record.key(),
            value=record.value(),
            headers=[*headers_of(record), *ours],
            truncated={},
        )

    def _read(self, letter: DeadLetter) -> Record | None:
        """Return the record at the place that a dead letter names."""
        if letter.origin is None:
            return None
        partition, offset, _ = letter.origin.place
        log = self._logs.get(partition)
        if log is None or not log.first <= offset < log.end:
            return None
        place = {partition: OffsetRange(offset, offset + 1)}
        found = [one for chunk in read_ranges(self._kafka, self._topic, place) for one in chunk]
        return found[0] if found else None
