"""The way of a batch: claim in Postgres, publish in Kafka, acknowledge with the next claim.

Invariant: what is acknowledged is known to be in Kafka. All lanes go out in one Kafka transaction,
under the transactional id of the lowest lane, which each lane's row names before Kafka sees the batch.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from uuid import uuid4

from outbox import lane_rows, outbox_rows
from outbox.crash_points import crash_point
from outbox.deferred import Deferred
from outbox.errors import InDoubt
from outbox.lane_rows import LaneRow
from outbox.markers import Marker
from outbox.message import OutboxRow, fault_of
from outbox.options import RelayOptions
from outbox.outbox_rows import ClaimRequest, ParkedNow
from outbox.output_topics import encode_start
from outbox.ownership import OwnedLanes
from outbox.postgres import Connection, retry_transaction, transaction
from outbox.publisher import Publisher
from outbox.waiting_rows import WaitingRows
from outbox.watermark import ClaimWatermark, WriterPoll

log = logging.getLogger(__name__)

WAIT_LOCKED_S = 2.0  # for what Kafka says of a new topic, with rows locked

Batch = Mapping[int, Sequence[OutboxRow]]  # by lane


def topics_of(batch: Batch) -> set[str]:
    """Return the topics of the rows of a batch."""
    return {row.topic for row in chain.from_iterable(batch.values())}


def nothing_in_flight(row: LaneRow, transactional_lane: int) -> LaneRow:
    """Return a lane row after its batch was acknowledged."""
    return row._replace(
        inflight=[], search_start=None, transactional_lane=transactional_lane, maybe_restored=False
    )


class Batches:
    """Moves the batches of all owned lanes. watermarks: by lane, forgotten at each recovery."""

    def __init__(
        self, conn: Connection, owned: OwnedLanes, publisher: Publisher, options: RelayOptions
    ) -> None:
        self.watermarks: defaultdict[int, ClaimWatermark] = defaultdict(ClaimWatermark)
        self._conn = conn
        self._owned = owned
        self._publisher = publisher
        self._options = options
        self._writer_poll = WriterPoll()
        self.waiting = WaitingRows(conn, publisher.topics, options.timings.topic_retry_s)
        self.deferred = Deferred(conn, options)

    # ---- Postgres -----------------------------------------------------------------------------------

    def lanes_with_work(self) -> list[int]:
        """Return the lanes that have rows to acknowledge or to claim."""
        working = self._owned.working()
        if self.waiting.follow_topics():
            self.watermarks.clear()  # they may have passed over what was left out
        self._writer_poll.update(self._conn, [self.watermarks[lane.number] for lane in working])
        found = {lane.number for lane in working if lane.unacknowledged}
        if quiet := {lane.number for lane in working} - found:
            after_ids = {number: self.watermarks[number].scan_start() for number in quiet}
            with_rows = outbox_rows.lanes_with_rows(self._conn, after_ids, self.waiting.left_out)
            for number in quiet.difference(with_rows):
                self.watermarks[number].note_scan(())
            found.update(with_rows)
        return sorted(found)

    @retry_transaction
    def acknowledge_and_claim(self, numbers: Collection[int]) -> dict[int, list[OutboxRow]]:
        """Acknowledge the batches before and claim the next ones, in one Postgres transaction.

        A row that can never be sent is parked; one whose topic cannot be written to now is left.
        """
        started = time.perf_counter()
        self._publisher.topics.ends(())  # before rows are locked
        with self.deferred.transaction():
            before = self._lock(numbers)
            self._acknowledge(before)
            claimed = self._claim(before)
            parked = self.park_faulty(claimed)
            if topics := topics_of(claimed):
                self._publisher.topics.ends(topics, WAIT_LOCKED_S)
            self.waiting.leave(claimed)
            batch = {number: rows for number, rows in claimed.items() if rows}
            after = {
                number: self._begin(row, batch[number])
                if number in batch
                else nothing_in_flight(row, self._publisher.transactional_lane)
                for number, row in before.items()
            }
            self._write(before, after)
        crash_point("relay.begun")
        for number, row in after.items():
            lane = self._owned.lanes[number]
            self._owned.update(lane.at(row.batch_number, row.token, unacknowledged=number in batch))
        self.report_parked(parked)
        self._options.observer.transaction("postgres", time.perf_counter() - started)
        return batch

    @retry_transaction
    def acknowledge(self, numbers: Collection[int], released: Collection[int]) -> None:
        """Acknowledge the batches before and claim nothing, in one Postgres transaction.

        Nothing of a released lane may still arrive in Kafka: its row names its own transactional id, so
        its next owner need not fence ours.
        """
        started = time.perf_counter()
        with self.deferred.transaction():
            before = self._lock(numbers)
            self._acknowledge(before)
            ours = self._publisher.transactional_lane
            after = {
                number: nothing_in_flight(row, number if number in released else ours)
                for number, row in before.items()
            }
            self._write(before, after)
        crash_point("relay.begun")
        for number, row in after.items():
            lane = self._owned.lanes[number]
            self._owned.update(lane.at(row.batch_number, row.token, unacknowledged=False))
        self._options.observer.transaction("postgres", time.perf_counter() - started)

    def _lock(self, numbers: Collection[int]) -> dict[int, LaneRow]:
        """Lock lane rows, before any outbox row of theirs is read."""
        rows = self._owned.lock_available(numbers)
        crash_point("relay.locked")
        for number, row in rows.items():
            if row.token != self._owned.lanes[number].token:
                raise InDoubt("outbox_lane does not hold what we wrote: restored?")
        return rows

    def _acknowledge(self, rows: Mapping[int, LaneRow]) -> None:
        """Delete the rows in flight, which are in Kafka."""
        self.acknowledge_rows({number: row.inflight for number, row in rows.items()})
        crash_point("relay.acknowledged")

    def acknowledge_rows(self, ids: Mapping[int, Sequence[int]]) -> None:
        """Delete rows of lanes that are in Kafka, and tell the service. In the caller's transaction."""
        aggregate_ids = [
            aggregate_id
            for number, some in ids.items()
            for aggregate_id in outbox_rows.acknowledge(self._conn, number, some)
        ]
        if aggregate_ids:
            self.deferred.tell(aggregate_ids)

    def _claim(self, numbers: Collection[int]) -> dict[int, list[OutboxRow]]:
        """Claim rows of locked lanes."""
        if not numbers:
            return {}
        requests = [
            ClaimRequest(
                number,
                1 if self._owned.lanes[number].single_row_to_id else self._options.batch_size,
                self.watermarks[number].scan_start(),
            )
            for number in numbers
        ]
        started = time.perf_counter()
        batch = outbox_rows.claim(
            self._conn, requests, self._publisher.largest_row, self.waiting.left_out
        )
        took_s = time.perf_counter() - started
        self._options.observer.claimed(sum(map(len, batch.values())), took_s)
        for number in numbers:
            self.watermarks[number].note_scan([row.id for row in batch.get(number, ())])
        return batch

    # ---- rows that cannot be sent -------------------------------------------------------------------

    def park_faulty(self, batch: Mapping[int, list[OutboxRow]]) -> list[ParkedNow]:
        """Park rows that can never be sent, and were not, and take them out of the batch.

        In the caller's transaction.
        """
        parked: list[ParkedNow] = []
        for number, rows in batch.items():
            if faults := {row.id: why for row in rows if (why := self._fault_of(row))}:
                rows[:] = [row for row in rows if row.id not in faults]
            parked += [
                outbox_rows.park(self._conn, number, row_id, why) for row_id, why in faults.items()
            ]
        return parked

    def _fault_of(self, row: OutboxRow) -> str | None:
        largest = self._publisher.largest_row
        if row.size_bytes > largest:
            return f"it is larger than {largest} bytes: see message.max.bytes"
        if row.topic == self._publisher.marker_topic:
            return "its topic is that of the markers, which relays alone write"
        return fault_of(row.topic, row.headers, self._options.topics)

    def park_strays(self, lanes: int) -> None:
        """Park the rows of lanes that do not exist: they are older than the constraint."""
        parked: list[ParkedNow] | None = None
        while parked is None or parked:
            self._options.observer.tick()
            with transaction(self._conn):
                parked = outbox_rows.park_strays(self._conn, lanes)
            self.report_parked(parked)

    def report_parked(self, parked: Sequence[ParkedNow]) -> None:
        """Report rows that were parked, once that is committed."""
        for row in parked:
            fields = {"lane": row.lane, "row": row.id, "aggregate_id": row.aggregate_id}
            log.error("row parked", extra=fields | {"reason": row.reason})
            self._options.observer.parked()

    def _begin(self, row: LaneRow, rows: Sequence[OutboxRow]) -> LaneRow:
        """Return a lane row with its next batch; the batch before is in Kafka, with its marker."""
        topics = topics_of({row.lane: rows})
        return LaneRow(
            row.lane,
            row.batch_number + 1,
            [one.id for one in rows],
            self._publisher.transactional_lane,
            token=uuid4(),
            marker_token=row.token,
            search_start=encode_start(self._publisher.topics.ends(topics, WAIT_LOCKED_S)),
        )

    def _write(self, before: Mapping[int, LaneRow], after: Mapping[int, LaneRow]) -> None:
        """Write the lane rows that changed."""
        changed = {number: row for number, row in after.items() if row != before[number]}
        lane_rows.begin_batches(self._conn, self._owned.epochs(changed), changed)
        crash_point("relay.claimed")

    # ---- Kafka --------------------------------------------------------------------------------------

    def publish(self, batch: Batch) -> None:
        """Publish rows and markers of lanes in one Kafka transaction, all or nothing.

        A lane without rows has only its marker committed. Raises RecordRejected or InDoubt.
        """
        started = time.perf_counter()
        if self._options.strict_fencing and not (batch := self._renew_producer(batch)):
            return
        lanes = {number: self._owned.lanes[number] for number in batch}
        markers = {n: Marker(one.batch_number, one.token) for n, one in lanes.items() if one.token}
        self._publisher.publish(markers, chain.from_iterable(batch.values()))
        took_s = time.perf_counter() - started
        self._options.observer.transaction("kafka", took_s)
        for number, lane in lanes.items():
            self._owned.update(lane.published(batch[number]))
        if rows := list(chain.from_iterable(batch.values())):
            oldest_s = max(one[0].age_s for one in batch.values() if one)
            self._options.observer.published(rows, oldest_s + took_s, took_s)

    def _renew_producer(self, batch: Batch) -> Batch:
        """Give the batch a producer epoch of its own: no request of an earlier one can reach it.

        The order matters. Ownership is read after the fence. Otherwise a zombie that has
        fenced its successor would publish what the successor has already published.
        """
        self._publisher.start(self._publisher.transactional_lane)
        owned = self._owned.read(batch)
        return {number: rows for number, rows in batch.items() if number in owned}
