"""Takes the guards out, one at a time, in a copy of the code, and watches the suite go red.

    python -m tests.guards            all of them
    python -m tests.guards epoch      one

A guard whose test still passes without it is not guarded: exit code 1.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from testkit.servers import GIVEN, choose_backend

ROOT = Path(__file__).parent.parent
COPIED = ("orchestrator", "outbox", "schema", "testkit", "tests", "pyproject.toml")
GUARDS_TEST = "tests/integration/test_guards.py"
SESSION_TEST = "tests/integration/test_session.py"
EVIDENCE_TEST = "tests/integration/test_evidence.py"
INGEST_TEST = "tests/integration/test_ingest.py"
WAITING_TEST = "tests/integration/test_watermark.py -k rows_of_a_missing_topic"
ENDS_TEST = "tests/integration/test_ends.py"
DEFERRED_TEST = "tests/integration/test_deferred.py"
RESTORES_TEST = "tests/faults/test_restores.py"
LETTERS_TEST = "tests/faults/test_dead_letters.py"
CUT_LOG_TEST = "tests/faults/test_cut_log.py"
REFUSED_TEST = "tests/integration/test_refused_rows.py"
DECIDED_TEST = "tests/integration/test_decided_once.py"
HANDLING = "orchestrator/operations/dead_letters/handling.py"
LETTERS = "orchestrator/operations/dead_letters/letters.py"


@dataclass(frozen=True)
class Guard:
    """A guard, how to take it out (everywhere in its file), and the test that must then fail.

    in_model: what the model calls it, where that is another name.
    """

    name: str
    file: str
    old: str
    new: str
    test: str
    in_model: str = ""


# Guards of the model without which no test can fail, and why.
ONLY_IN_MODEL = {
    "publishing producer before the barrier": "the code has no other producer that could publish",
    "list shortened in the transaction": "the code has no second transaction that could be lost",
    "end read again under a new epoch": "the log would have to be cut while a request is answered",
}


GUARDS = [
    Guard(
        "epoch compare-and-set",
        "outbox/lane_rows.py",
        " AND outbox_lane.epoch = mine.epoch",
        "",
        f"{GUARDS_TEST}::test_a_replaced_owner_acknowledges_and_claims_nothing",
    ),
    Guard(
        "inflight committed before Kafka begins",
        "outbox/batch.py",
        "number: row for number, row in after.items() if row != before[number]}",
        "number: row for number, row in after.items() if row != before[number] and not row.inflight}",
        f"{GUARDS_TEST}::test_a_batch_is_committed_in_postgres_before_kafka_has_it",
        in_model="inflight committed first",
    ),
    Guard(
        "fence before reading the evidence",
        "outbox/recovery.py",
        "        self.fence(rows)\n"
        "        evidence = self._publisher.read_evidence(self._searches(rows))\n",
        "        evidence = self._publisher.read_evidence(self._searches(rows))\n"
        "        self.fence(rows)\n",
        f"{GUARDS_TEST} -k commits_just_before",
    ),
    Guard(
        "barrier before the read",
        "outbox/log_reader.py",
        "                raise HeldUp({partition: ends[partition] for partition in left})\n",
        "                return  # up to the last stable offset\n",
        f"{GUARDS_TEST} -k ends_before_the_barrier",
    ),
    Guard(
        "barriers under an id of their own",
        "outbox/producers.py",
        'self._new(f"barrier-{transactional_lane}", BARRIER_CONFIG)',
        'self._new(f"{transactional_lane}", BARRIER_CONFIG)',
        f"{GUARDS_TEST} -k barriers_abort",
    ),
    Guard(
        "the log decides",
        "outbox/recovery.py",
        "        if row.inflight:\n",
        "        if row.inflight and outcome is not Outcome.PUBLISHED:\n",
        f"{GUARDS_TEST} -k log_decides",
    ),
    Guard(
        "a record's bytes compared",
        "outbox/evidence.py",
        "                if (record.key(), record.value()) != (row.key, row.value):\n",
        "                if False:\n",
        f"{EVIDENCE_TEST} -k other_bytes",
    ),
    Guard(
        "tokens compared",
        "outbox/lane.py",
        "    if marker.token == batch.token:\n",
        "    if marker.batch_number == batch.batch_number:\n",
        f"{GUARDS_TEST} -k refused_by_its_token",
    ),
    Guard(
        "search start written with the claim",
        "outbox/batch.py",
        "search_start=encode_start(self._publisher.topics.ends(topics, WAIT_LOCKED_S))",
        "search_start=None",
        f"{GUARDS_TEST} -k notes_where_a_search_begins",
    ),
    Guard(
        "search start no later than readers are",
        "outbox/output_topics.py",
        "            isolation_level=IsolationLevel.READ_COMMITTED,\n",
        "",
        f"{EVIDENCE_TEST} -k behind_a_foreign",
    ),
    Guard(
        "what is sent again has a number of its own",
        "outbox/recovery.py",
        "            batch_number=row.batch_number + 1,\n",
        "",
        f"{GUARDS_TEST} -k sent_again_has_a_number",
    ),
    Guard(
        "what is sent again has a token of its own",
        "outbox/recovery.py",
        "            inflight=[one.id for one in rows],\n            token=uuid4(),\n",
        "            inflight=[one.id for one in rows],\n",
        f"{GUARDS_TEST} -k sent_again_has_a_number",
    ),
    Guard(
        "log start compared with the search start",
        "outbox/evidence.py",
        "            if log_start > start.start(number):\n",
        "            if False:\n",
        f"{EVIDENCE_TEST} -k begins_after_the_batch",
    ),
    Guard(
        "the log start read again after the log",
        "outbox/evidence.py",
        "                self._logs[topic] = self._look_again(topic, log)\n",
        "",
        f"{EVIDENCE_TEST} -k retention_deletes_while",
    ),
    Guard(
        "topic ids compared",
        "outbox/evidence.py",
        "        if start.topic_id not in {None, log.end.topic_id}:\n",
        "        if False:\n",
        f"{EVIDENCE_TEST} -k that_was_recreated",
    ),
    Guard(
        "compacted topics tell nothing of missing records",
        "outbox/evidence.py",
        "    return row.key in seen or row.value is None\n",
        "    return False\n",
        f"{EVIDENCE_TEST} -k compacted_topic_can_tell",
    ),
    Guard(
        "earlier ids fenced",
        "outbox/recovery.py",
        "self._publisher.fence(sorted(earlier - {ours}))",
        "sorted(earlier - {ours})",
        f"{SESSION_TEST} -k new_owner_fences",
    ),
    Guard(
        "all ids fenced after a restore",
        "outbox/lane_rows.py",
        "range(lanes) if self.maybe_restored else [self.transactional_lane]",
        "[self.transactional_lane]",
        f"{SESSION_TEST} -k after_a_restore",
    ),
    Guard(
        "a lane row that was put back leads to a recovery",
        "outbox/batch.py",
        "if row.token != self._owned.lanes[number].token:",
        "if False:",
        f"{SESSION_TEST} -k put_back",
    ),
    Guard(
        "lanes that back off left out",
        "outbox/lane.py",
        "return not (self.refused or self.backoff_until)",
        "return not self.refused",
        f"{SESSION_TEST} -k cannot_be_sent",
    ),
    Guard(
        "transactional lane committed first",
        "outbox/recovery.py",
        "transactional_lane=self._publisher.transactional_lane,\n            token=",
        "token=",
        f"{SESSION_TEST} -k under_another_id",
    ),
    Guard(
        "an earlier id fenced once",
        "outbox/recovery.py",
        "            if transactional_lane not in self._owned.lanes[number].fenced\n",
        "",
        f"{SESSION_TEST} -k fenced_once",
        in_model="earlier ids fenced once",
    ),
    Guard(
        "marker in the records' transaction",
        "outbox/publisher.py",
        "            self.send_records(rows, markers)\n",
        "            self.send_records(rows, {})\n            self.commit()\n"
        "            self.producer.begin_transaction()\n            self.send_records((), markers)\n",
        f"{GUARDS_TEST}::test_records_and_marker_are_there_together_or_not_at_all",
    ),
    Guard(
        "a new producer after any doubt",
        "outbox/publisher.py",
        "        self.discard()\n        self.transactional_lane = transactional_lane\n"
        "        self._producer = producer = self._producers.new(transactional_lane)\n",
        "        self.transactional_lane = transactional_lane\n"
        "        self._producer = producer = self._producer or"
        " self._producers.new(transactional_lane)\n",
        f"{GUARDS_TEST}::test_a_producer_in_doubt_is_never_used_again",
        in_model="new producer after any doubt",
    ),
    Guard(
        "refusal on disagreement",
        "outbox/lane.py",
        "        return self in REFUSED",
        "        return False",
        f"{GUARDS_TEST}::test_a_lane_whose_histories_disagree_sends_nothing",
        in_model="refusal",
    ),
    Guard(
        "status guard in acknowledge",
        "orchestrator/contract/workers.py",
        " AND status::text = 'pending'",
        "",
        f"{GUARDS_TEST}::test_acknowledging_never_turns_a_running_worker_back",
    ),
    Guard(
        "inserted workers counted",
        "orchestrator/contract/workers.py",
        "    if inserted != len(orders):\n",
        "    if inserted > len(orders):\n",
        f"{REFUSED_TEST} -k skips",
    ),
    Guard(
        "missing workers looked for",
        "orchestrator/contract/workers.py",
        "    if missing and find_existing",
        "    if not missing and find_existing",
        f"{REFUSED_TEST} -k skips",
    ),
    Guard(
        "outbox rows counted",
        "outbox/enqueue.py",
        "    if inserted != len(columns.topics):\n",
        "    if inserted > len(columns.topics):\n",
        f"{REFUSED_TEST} -k of_ours_that_skips_rows",
    ),
    Guard(
        "acknowledged rows counted",
        "outbox/outbox_rows.py",
        "    if len(found) < len(ids) and",
        "    if len(found) > len(ids) and",
        f"{REFUSED_TEST} -k not_published_again",
    ),
    Guard(
        "few dead letters of a table that takes no row",
        "orchestrator/consumer/narrowing.py",
        "        return self._in_a_row >= LIMIT\n",
        "        return False\n",
        f"{REFUSED_TEST} -k mistake_in_the_schema",
    ),
    Guard(
        "workers locked by others are skipped",
        "orchestrator/contract/workers.py",
        " SKIP LOCKED",
        "",
        f"{DEFERRED_TEST} -k deployed_after_a_rollback",
    ),
    Guard(
        "locked workers put on the list",
        "outbox/deferred.py",
        "            deferred_rows.defer(self._conn, left)\n",
        "            del left\n",
        f"{DEFERRED_TEST} -k deployed_after_a_rollback",
    ),
    Guard(
        "a refused update does not roll the batch back again",
        "outbox/deferred.py",
        "        if self._failure:\n",
        "        if not aggregate_ids:\n",
        f"{DEFERRED_TEST} -k all_updates_are_refused",
    ),
    Guard(
        "a refused worker keeps no other on the list",
        "outbox/deferred.py",
        "max(len(ids) // 2, 1)",
        "len(ids)",
        f"{DEFERRED_TEST} -k keeps_no_other",
    ),
    Guard(
        "command tag of COMMIT",
        "outbox/postgres.py",
        '    if answer != "COMMIT":',
        '    if answer == "":',
        f"{GUARDS_TEST}::test_a_commit_answered_with_rollback_is_an_error",
    ),
    Guard(
        "a new producer after a repeated request",
        "outbox/publisher.py",
        "        self.needs_renewal |= self._publishing or level >= logging.INFO",
        "        del level",
        "tests/faults/test_late_end_txn.py -k meets_a_new_producer_epoch",
        in_model="new producer after a silent disconnect",
    ),
    Guard(
        "ownership after the fence of strict fencing",
        "outbox/batch.py",
        "        owned = self._owned.read(batch)\n",
        "        owned = batch\n",
        "tests/faults/test_late_end_txn.py -k zombie_that_fences",
        in_model="ownership checked after the renewal",
    ),
    Guard(
        "writers ended below the watermark",
        "outbox/watermark.py",
        "            self._next, self._writers = self._seen, writers\n",
        "            self._next, self._writers = self._seen, frozenset()\n",
        "tests/integration/test_watermark.py -k commits_late",
    ),
    Guard(
        "all rows of a topic left",
        "outbox/waiting_rows.py",
        "rows[:] = [row for row in rows if row.topic not in refused]",
        "rows[:] = rows[1:]",
        WAITING_TEST,
    ),
    Guard(
        "topics left out of the claim",
        "outbox/outbox_rows.py",
        "                  AND topic <> ALL(%(left_out)b::text[])\n                ORDER BY id",
        "                  AND %(left_out)b::text[] IS NOT NULL\n                ORDER BY id",
        WAITING_TEST,
    ),
    Guard(
        "watermarks begin again when other rows are left out",
        "outbox/batch.py",
        "            self.watermarks.clear()  # they",
        "            pass  # they",
        WAITING_TEST,
    ),
    Guard(
        "scans of the whole lane",
        "outbox/watermark.py",
        "        return self.id if self._scan_began < self._full_scan_at else BEFORE_ALL\n",
        "        return self.id\n",
        "tests/integration/test_watermark.py -k low_id_from_elsewhere",
    ),
    Guard(
        "lanes go to relays that Kafka answers",
        "outbox/membership.py",
        "        return self.with_kafka > 0 and not self.has_kafka\n",
        "        return False\n",
        "tests/faults/test_relay_without_kafka.py -k loses_kafka_at_work",
    ),
    Guard(
        "no lane moves while Kafka is away for all",
        "outbox/ownership.py",
        "        return seen.fair_share() if seen.with_kafka else len(self.lanes)\n",
        "        return seen.fair_share()\n",
        "tests/faults/test_relay_without_kafka.py -k joins_while_kafka_is_away",
    ),
    Guard(
        "probes distrusted after failed work",
        "outbox/kafka_answers.py",
        "        return self._failed_at + self._distrust_s\n",
        "        return self._failed_at\n",
        "tests/unit/test_kafka_answers.py -k soon_after",
    ),
    Guard(
        "compare-and-set of consumed offsets",
        "orchestrator/consumer/offsets.py",
        "       AND position.next_offset = move.next_offset\n",
        "",
        f"{INGEST_TEST} -k guard",
        in_model="compare-and-set on the position",
    ),
    Guard(
        "compare-and-set of a move to an end",
        "orchestrator/consumer/offsets.py",
        "       AND position.next_offset = move.next_offset\n",
        "",
        f"{ENDS_TEST} -k guard",
        in_model="compare-and-set on the position",
    ),
    Guard(
        "epoch of an end asked for",
        "orchestrator/consumer/ends.py",
        "            if epoch in (position.leader_epoch, self._read_under.get(partition)):\n",
        "            if (epoch := position.leader_epoch) >= -1:\n",
        f"{CUT_LOG_TEST} -k another_leader_wrote",
    ),
    Guard(
        "epoch of a consumed offset compared",
        "orchestrator/consumer/offsets.py",
        "       AND position.leader_epoch = move.epoch\n",
        "",
        f"{INGEST_TEST} -k guard",
        in_model="epoch in the compare",
    ),
    Guard(
        "decided_end in the compare",
        "orchestrator/consumer/offsets.py",
        "       AND position.decided_end = move.decided_end\n",
        "",
        f"{INGEST_TEST} -k guard",
    ),
    Guard(
        "refusal in the compare",
        "orchestrator/consumer/offsets.py",
        "       AND position.refusal IS NULL\n",
        "",
        f"{INGEST_TEST} -k guard",
    ),
    Guard(
        "seek after the assignment",
        "orchestrator/consumer/partitions.py",
        "            self._seek(start)\n",
        "            pass\n",
        f"{CUT_LOG_TEST} -k stopped",
        in_model="position validated after the assignment",
    ),
    Guard(
        "refusal written down",
        "orchestrator/consumer/partitions.py",
        "            offsets.refuse(self._conn, self._topic.name, partition, position, refused)\n",
        "",
        f"{CUT_LOG_TEST} -k written_down",
        in_model="durable refusal",
    ),
    Guard(
        "repair of a cut log sets decided_end back",
        "orchestrator/operations/repair/partition.py",
        "undecided if is_new else position.decided_end",
        "position.decided_end",
        f"{CUT_LOG_TEST} -k before_any_consumer",
    ),
    Guard(
        "repair keeps the epoch",
        "orchestrator/operations/repair/partition.py",
        '"leader_epoch": check.leader_epoch,',
        '"leader_epoch": -1,',
        f"{CUT_LOG_TEST} -k cut_again",
    ),
    Guard(
        "repair of a cut log takes the leader's epoch",
        "orchestrator/operations/repair/partition.py",
        '"leader_epoch": check.leader_epoch,',
        '"leader_epoch": check.position.leader_epoch,',
        f"{CUT_LOG_TEST} -k before_any_consumer",
    ),
    Guard(
        "decided once",
        "orchestrator/consumer/offsets.py",
        "       SET next_offset = decided_end\n",
        "       SET next_offset = next_offset\n",
        f"{DECIDED_TEST} -k set_back_by_hand",
        in_model="what was decided is skipped",
    ),
    Guard(
        "accepted once",
        "orchestrator/consumer/batch_writer.py",
        "        return [one for one in invalid if one.aggregate_id not in accepted]\n",
        "        return list(invalid)\n",
        f"{DECIDED_TEST} -k was_accepted",
        in_model="no dead letter where a worker exists",
    ),
    Guard(
        "dealt with once",
        "orchestrator/consumer/batch_writer.py",
        "            if batch.again:\n",
        "            if False:\n",
        f"{DECIDED_TEST} -k dealt_with",
        in_model="handled letters stay handled",
    ),
    Guard(
        "letters wait for their record after a restore",
        "orchestrator/operations/dead_letters/letters.py",
        "    return partition in decided and offset >= decided[partition].decided_end\n",
        "    return False\n",
        f"{DECIDED_TEST} -k not_consumed_yet",
    ),
    Guard(
        "lane locked before the select",
        "outbox/lane_rows.py",
        "       FOR UPDATE OF outbox_lane SKIP LOCKED\n",
        "",
        f"{GUARDS_TEST}::test_a_lane_is_locked_before_its_rows_are_claimed",
    ),
    Guard(
        "ownership checked before the fence",
        "outbox/lane_rows.py",
        ' AND outbox_lane.epoch = mine.epoch\n     ORDER BY outbox_lane.lane\n"""',
        '\n     ORDER BY outbox_lane.lane\n"""',
        f"{GUARDS_TEST}::test_a_replaced_owner_fences_nothing",
    ),
    Guard(
        "ownership checked under the lock",
        "outbox/lane_rows.py",
        " AND outbox_lane.epoch = mine.epoch\n     ORDER BY outbox_lane.lane\n"
        "       FOR UPDATE OF outbox_lane\n",
        "\n     ORDER BY outbox_lane.lane\n       FOR UPDATE OF outbox_lane\n",
        f"{GUARDS_TEST}::test_a_lane_whose_successor_goes_on_before_the_decision_is_lost_and_not_refused",
    ),
    Guard(
        "acknowledge by id",
        "outbox/outbox_rows.py",
        "     WHERE lane = %(lane)s AND id = ANY(%(ids)b::bigint[])\n RETURNING",
        "     WHERE lane = %(lane)s AND id <= (SELECT max(id) FROM unnest(%(ids)b::bigint[]) AS id)\n"
        " RETURNING",
        "tests/integration/test_lane.py -k committed_between_publishing",
    ),
    Guard(
        "lock of a lost lane released",
        "outbox/ownership.py",
        "            membership.unlock_lane(self._conn, self._identity, number)  # for its new owner\n",
        "",
        f"{GUARDS_TEST}::test_the_lock_of_a_lost_lane_is_released",
    ),
    Guard(
        "advisory lock",
        "outbox/membership.py",
        "pg_try_advisory_lock(%(class)s, %(lane)s::int)",
        "true OR %(class)s = %(lane)s::int",
        "tests/integration/test_relays.py -k share_the_lanes_fairly",
    ),
    Guard(
        "new producer when the set changes",
        "outbox/recovery.py",
        "        self._publisher.start(ours)\n",
        "        states = {lane.status.state for lane in self._owned.lanes.values()}\n"
        "        if ours != self._publisher.transactional_lane or LaneState.IN_DOUBT in states:\n"
        "            self._publisher.start(ours)\n",
        f"{SESSION_TEST} -k renewed_when_the_lanes_change",
    ),
    Guard(
        "transactional lane reset on release",
        "outbox/batch.py",
        "number if number in released else ours",
        "ours",
        f"{SESSION_TEST} -k released_lane",
    ),
    Guard(
        "topic id in the compare",
        "orchestrator/consumer/offsets.py",
        "       AND position.topic_id = %(topic_id)s\n",
        "",
        f"{INGEST_TEST} -k whose_offset_another_consumer_moved",
    ),
    Guard(
        "topic checked before COMMIT",
        "orchestrator/consumer/batch_writer.py",
        "            topic.finish_check()  #",
        "            #",
        f"{INGEST_TEST} -k recreated_under_a_running_consumer",
    ),
    Guard(
        "unique worker id",
        "orchestrator/contract/messages.py",
        "    made = time_ms << 80 |",
        '    made = __import__("secrets").randbits(48) << 80 |',
        f"{INGEST_TEST} -k read_again_make_no_second_worker",
    ),
    Guard(
        "repair of a lane waits for the input",
        "orchestrator/operations/repair/lane.py",
        "    check_caught_up(run)",
        "    pass",
        f"{RESTORES_TEST} -k waits_for_every_input",
    ),
    Guard(
        "a record polled before a rebalance is dropped",
        "orchestrator/consumer/session.py",
        "                generation, polled = self._partitions.generation, []\n",
        "                generation = self._partitions.generation\n",
        f"{INGEST_TEST} -k just_before_a_rebalance",
    ),
    Guard(
        "every input consumed before a repair",
        "orchestrator/operations/repair/inputs.py",
        "    for topic in dict.fromkeys([own, *read_inputs(run.conn)]):\n",
        "    for topic in [own]:\n",
        f"{RESTORES_TEST} -k waits_for_every_input",
    ),
    Guard(
        "rows of all inputs matched",
        "orchestrator/operations/repair/matching.py",
        "{settings.input_topic, *read_inputs(conn)}",
        "{settings.input_topic}",
        f"{RESTORES_TEST} -k waits_for_every_input",
    ),
    Guard(
        "parked rows looked up by a repair",
        "orchestrator/operations/repair/lane.py",
        "    published_rows.list_parked(run.conn, run.settings, parked)\n",
        "",
        f"{RESTORES_TEST} -k sent_again",
        in_model="repair of a lane looks parked rows up",
    ),
    Guard(
        "parked rows looked up before a retry",
        "orchestrator/operations/parked_rows.py",
        "        published_rows.list_parked(conn, settings, rows)\n",
        "",
        f"{RESTORES_TEST} -k sent_again",
        in_model="retry of a parked row looks it up",
    ),
    Guard(
        "dead letters of our own input",
        LETTERS,
        "        return letter.input not in {None, input_of(self.settings)}\n",
        "        return False\n",
        f"{LETTERS_TEST} -k back_to_their_own_input",
    ),
    Guard(
        "dead letters whose record is a worker are not waiting",
        LETTERS,
        "ON workers.worker_id = letter.worker_id",
        "ON false",
        f"{LETTERS_TEST} -k record_is_a_worker",
    ),
    Guard(
        "dead letters of a discarded record are discarded",
        LETTERS,
        "WHERE origin = ANY(%(origin_ids)s::uuid[])\n",
        "WHERE origin = ANY(%(origin_ids)s::uuid[]) AND action = 'retry'\n",
        "tests/acceptance/test_dlq_and_parked.py -k stays_discarded",
    ),
    Guard(
        "dead letters handled by one operator at a time",
        HANDLING,
        "        conn.execute(LOCK_HANDLED)\n",
        "",
        "tests/acceptance/test_dlq_and_parked.py -k of_two_operators",
        in_model="a command retried once",
    ),
    Guard(
        "dead letters compared with the workers",
        HANDLING,
        "       AND NOT EXISTS (SELECT FROM workers WHERE workers.worker_id = letter.worker_id)\n",
        "",
        f"{LETTERS_TEST} -k accepted_meanwhile",
        in_model="retry refused where a worker exists",
    ),
    Guard(
        "dead letters compared with the orders",
        HANDLING,
        "if topic.worker_of(letter) not in ordered]",
        "]",
        f"{LETTERS_TEST} -k worker_was_deleted",
        in_model="retry looks for the order in its topic",
    ),
    Guard(
        "a retried dead letter names the record that it was",
        HANDLING,
        "names.append((RETRY_ORIGIN, encode_place(letter.first)))",
        "pass",
        f"{LETTERS_TEST} -k make_one_worker",
        in_model="a retried command has its first record's worker",
    ),
    Guard(
        "a retried dead letter has the worker id of the record that it was",
        "orchestrator/contract/messages.py",
        "    place = retry_origin(headers) if headers else None\n",
        "    place = retry_origin([])\n",
        f"{LETTERS_TEST} -k make_one_worker",
    ),
    Guard(
        "one order for a record and its retried dead letter",
        "orchestrator/consumer/batch_writer.py",
        "                messages = first_about_each(messages, accepted)\n",
        "                messages = [one for one in messages if one.aggregate_id in accepted]\n",
        f"{LETTERS_TEST} -k and_one_order",
    ),
    Guard(
        "a truncated dead letter is compared with its record",
        "orchestrator/operations/dead_letters/originals.py",
        " or origin_id_of_record(record) != letter.origin_id",
        "",
        "tests/integration/test_large_records.py -k another",
    ),
    Guard(
        "a dead letter that was retried names the first record",
        LETTERS,
        "return retry_origin(self.headers) or (self.origin and self.origin.place)",
        "return self.origin and self.origin.place",
        "tests/acceptance/test_dlq_and_parked.py -k none_of_ours",
    ),
]


def main(wanted: str = "") -> int:
    """Try every guard whose name holds `wanted`; return the exit code."""
    tried = [guard for guard in GUARDS if wanted in guard.name]
    with servers() as environ, ThreadPoolExecutor(AT_ONCE) as threads:
        found = list(threads.map(lambda guard: is_missed(guard, environ), tried))
    missed = [guard.name for guard, red in zip(tried, found, strict=True) if not red]
    print(f"{len(tried) - len(missed)} of {len(tried)} guards are missed when they are gone")
    return 1 if missed or not tried else 0


AT_ONCE = 2


@contextmanager
def servers() -> Iterator[dict[str, str]]:
    """Run the servers of all tests; yield the environment that leads there."""
    with choose_backend().run() as running:
        addresses = (running.database_url, running.bootstrap_servers)
        yield os.environ | dict(zip(GIVEN, addresses, strict=True))


def is_missed(guard: Guard, environ: dict[str, str]) -> bool:
    """Take one guard out of a copy of the code and say whether its test fails."""
    with TemporaryDirectory(prefix="guards-") as name:
        copy = Path(name)
        for part in COPIED:
            source = ROOT / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / part)
        file = copy / guard.file
        text = file.read_text()
        assert guard.old in text, f"{guard.name}: {guard.file} has changed"
        file.write_text(text.replace(guard.old, guard.new))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", *guard.test.split()],
            cwd=copy,
            env=environ | {"PYTHONPATH": name},
            capture_output=True,
            text=True,
            check=False,
        )
    red = done.returncode == 1  # pytest: tests ran and some failed
    told = "" if red else f"\n{done.stdout[-2000:]}"
    print(f"{'red' if red else 'STILL GREEN':<12} {guard.name}{told}", flush=True)
    return red


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
