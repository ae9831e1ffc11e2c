------------------------------- MODULE Relay -------------------------------
(* How one lane of the outbox gets from Postgres to Kafka: outbox/lane.py and outbox/lanes.py
   (the steps), outbox/store.py (Postgres), outbox/publisher.py (Kafka), with the faults that may
   hit between any two steps. Names are the code's. README.md says what is left out.

   Two abstractions keep the model finite without losing a behaviour:
   - An epoch is only ever compared for equality with the newest one. So the lane row holds the
     relay whose epoch it is (`owner`), and Kafka the relay whose producer epoch is the newest
     (`producer`); requests of older producers are refused, so they need not be kept.
   - A transaction that holds the lane row's lock is one step from its reads to its COMMIT: nothing
     that it reads can change in between, except that rows are added, and then it read later. *)
EXTENDS Integers, Sequences, FiniteSets, TLC

CONSTANTS
    Relays,     \* the processes: whoever is not the owner is a zombie or a successor
    Rows,       \* ids of the messages
    Late,       \* those whose INSERT commits at some later time, in spite of their lower ids
    BatchSize,
    Crashes,    \* how often a relay dies (kill -9), at any step
    Faults,     \* how many other faults happen, at any step
    Kinds,      \* which: see "Faults" below
    Without,    \* the guards that are taken out: none in the protocol as it is
    Strict,     \* strict_fencing: a new producer for every batch
    ReadsFail,  \* relays that never get an answer to `read_marker`
    Nobody

Has(guard) == guard \notin Without
None == -1      \* no marker

VARIABLES
    \* Postgres, as committed
    outbox,     \* rows inserted and not settled
    unborn,     \* rows whose INSERT has not committed yet
    lane,       \* the lane row: seq, inflight
    owner,      \* the relay whose epoch the lane row holds
    rowLock,    \* who holds the lane row's lock
    advisory,   \* who holds the lane's advisory lock
    backup,     \* an older state of the tables, or Nobody
    \* Kafka
    topic,      \* what a read_committed reader sees: ids in order
    marker,     \* the lane's marker, committed
    txn,        \* the open transaction of the newest producer
    producer,   \* the relay that has the newest producer, Nobody if it is gone
    stale,      \* copies of EndTxn(commit) of the newest producer that are still under way
    staleMark,  \* the marker in a copy of TxnOffsetCommit of the newest producer, as above
    \* the relays' memory
    relay,
    \* how much may still go wrong
    crashes, faults,
    history     \* Postgres or Kafka forgot something it had acknowledged

vars == <<outbox, unborn, lane, owner, rowLock, advisory, backup,
          topic, marker, txn, producer, stale, staleMark, relay, crashes, faults, history>>
tables == <<outbox, unborn, lane>>
postgres == <<outbox, unborn, lane, owner, rowLock, advisory, backup>>
kafka == <<topic, marker, txn, producer, stale, staleMark>>
luck == <<crashes, faults, history>>

NoTxn == [open |-> FALSE, rows |-> {}, marker |-> None]

(* at: the next step; session: whether Postgres still keeps the session (the relay cannot know);
   seq, batch: the batch in hand; seen: the marker as read; disturbed: the producer lost a connection
   in silence. *)
Away == [at |-> "away", session |-> FALSE, seq |-> 0, batch |-> {}, seen |-> None,
         disturbed |-> FALSE]

Init ==
    /\ outbox = Rows \ Late /\ unborn = Late
    /\ lane = [seq |-> 0, inflight |-> {}]
    /\ owner = Nobody /\ rowLock = Nobody /\ advisory = Nobody /\ backup = Nobody
    /\ topic = <<>> /\ marker = None /\ txn = NoTxn /\ producer = Nobody
    /\ stale = 0 /\ staleMark = None
    /\ relay = [r \in Relays |-> Away]
    /\ crashes = Crashes /\ faults = Faults /\ history = FALSE

At(r, step) == relay[r].at = step
Go(r, step) == relay' = [relay EXCEPT ![r].at = step]
Freed(lock, r) == IF lock = r THEN Nobody ELSE lock
Rank(x, S) == Cardinality({y \in S : y < x})
First(n, S) == {x \in S : Rank(x, S) < n}
InOrder(S) == [i \in 1..Cardinality(S) |-> CHOOSE x \in S : Rank(x, S) = i - 1]
UpTo(S) == {x \in Rows : \E y \in S : x <= y}

(* ---- the end of a tenure ---------------------------------------------------------------------- *)

(* The session is closed, and with it go its locks and its open transaction. The producer is thrown
   away; an EndTxn that it had sent may still arrive. *)
Leave(r) ==
    /\ relay' = [relay EXCEPT ![r] = Away]
    /\ rowLock' = Freed(rowLock, r) /\ advisory' = Freed(advisory, r)
    /\ producer' = Freed(producer, r)
    /\ stale' \in IF At(r, "end") /\ producer = r THEN {stale, stale + 1} ELSE {stale}
    /\ UNCHANGED <<tables, owner, backup, topic, marker, txn, staleMark>>

Mine(r) == owner = r \/ ~Has("epoch compare-and-set")

(* A statement in a session that Postgres has ended. While Kafka is waited for, `tick` finds out. *)
NoticeDeadSession(r) ==
    /\ ~At(r, "away") /\ ~relay[r].session
    /\ Leave(r) /\ UNCHANGED luck

(* lock_lane, check_owner: no row with our epoch. *)
LoseOwnership(r) ==
    /\ relay[r].session /\ ~Mine(r)
    /\ \/ At(r, "check")
       \/ /\ At(r, "decide") /\ Has("ownership checked under the lock") /\ rowLock = Nobody
       \/ /\ At(r, "work") /\ Has("lane locked before the select") /\ outbox # {} /\ rowLock = Nobody
       \/ /\ At(r, "renewed") /\ Has("ownership checked after the renewal")
       \/ /\ At(r, "locked") /\ rowLock = Nobody
    /\ Leave(r) /\ UNCHANGED luck

(* ---- ownership: lanes.try_lock, store.take_lane ----------------------------------------------- *)

(* The UPDATE of the epoch waits for the lane row's lock. *)
Take(r) ==
    /\ At(r, "away") /\ rowLock = Nobody
    /\ advisory = Nobody
    /\ advisory' = IF Has("advisory lock") THEN r ELSE Nobody
    /\ owner' = r
    /\ relay' = [relay EXCEPT ![r] = [Away EXCEPT !.session = TRUE, !.at = "check"]]
    /\ UNCHANGED <<tables, rowLock, backup, kafka, luck>>

(* ---- recovery: Lane._recover ------------------------------------------------------------------ *)

CheckOwner(r) ==
    /\ At(r, "check")
    /\ ~Has("ownership checked before the fence") \/ (relay[r].session /\ Mine(r))
    /\ Go(r, IF Has("fence before the marker is read") THEN "fence" ELSE "read")
    /\ UNCHANGED <<postgres, kafka, luck>>

(* Publisher.start: InitProducerId refuses every older producer from now on and ends its open
   transaction. Without the guard the producer in doubt goes on, after it has aborted its own. *)
NewProducer(r) ==
    /\ txn' = NoTxn /\ producer' = r
    /\ UNCHANGED <<topic, marker>>
    /\ IF producer = r /\ ~Has("new producer after any doubt") THEN UNCHANGED <<stale, staleMark>>
       ELSE stale' = 0 /\ staleMark' = None

Fence(r) ==
    /\ At(r, "fence")
    /\ NewProducer(r)
    /\ relay' = [relay EXCEPT ![r].disturbed = FALSE,
                     ![r].at = IF Has("fence before the marker is read") THEN "read" ELSE "decide"]
    /\ UNCHANGED <<postgres, luck>>

MarkerPending == txn.open /\ txn.marker # None

(* Publisher.read_marker: the broker does not answer while a marker is in an open transaction. *)
ReadMarker(r) ==
    /\ At(r, "read") /\ r \notin ReadsFail /\ ~MarkerPending
    /\ relay' = [relay EXCEPT ![r].seen = marker,
                     ![r].at = IF Has("fence before the marker is read") THEN "decide" ELSE "fence"]
    /\ UNCHANGED <<postgres, kafka, luck>>

(* It times out. The recovery begins again. *)
ReadTimesOut(r) ==
    /\ At(r, "read") /\ (r \in ReadsFail \/ MarkerPending)
    /\ Go(r, "check")
    /\ UNCHANGED <<postgres, kafka, luck>>

Verdict(seen, seq) ==
    CASE seen = None /\ seq = 0 -> "new_lane"
      [] seen = None /\ seq > 0 -> "marker_missing"
      [] seen # None /\ seen = seq -> "published"
      [] seen # None /\ seen = seq - 1 -> "not_published"
      [] OTHER -> "marker_ahead or marker_behind"

FirstOfKafka == IF Strict THEN "renew" ELSE IF Has("marker last") THEN "produce" ELSE "mark"

(* Lane._decide: under the lane row's lock; writes nothing. *)
Decide(r) ==
    /\ At(r, "decide") /\ relay[r].session /\ rowLock = Nobody
    /\ Mine(r) \/ ~Has("ownership checked under the lock")
    /\ LET verdict == Verdict(relay[r].seen, lane.seq)
           me == [relay[r] EXCEPT !.seen = None, !.seq = lane.seq, !.batch = {}]
       IN relay' = [relay EXCEPT ![r] =
            CASE verdict = "published" -> [me EXCEPT !.at = "work"]
              [] verdict \in {"new_lane", "not_published"} ->
                    [me EXCEPT !.at = FirstOfKafka, !.batch = lane.inflight \cap outbox]
              [] OTHER -> [me EXCEPT !.at = IF Has("refusal") THEN "refused" ELSE "work"]]
    /\ UNCHANGED <<postgres, kafka, luck>>

(* ---- the way of a batch: Lane.run_once -------------------------------------------------------- *)

Renews(r) == relay[r].disturbed /\ Has("new producer after a silent disconnect")

(* Lane._cycle ends when the producer was disturbed (and what it published is settled). *)
Renew(r) ==
    /\ At(r, "work") /\ outbox = {} /\ Renews(r)
    /\ Go(r, "check")
    /\ UNCHANGED <<postgres, kafka, luck>>

(* What `claim` leaves to others: FOR UPDATE SKIP LOCKED passes over the rows of a transaction that
   read before it had the lane row's lock. *)
Skipped(r) == UNION {relay[o].batch : o \in {o \in Relays \ {r} :
                        /\ At(o, "locked") /\ relay[o].session
                        /\ ~Has("lane locked before the select")}}

(* Lane._settle_and_claim: BEGIN; lock_lane. Without the guard the rows are selected first, and the
   epoch is compared when the lane row is written. *)
LockLane(r) ==
    /\ At(r, "work") /\ outbox # {} /\ relay[r].session
    /\ IF Has("lane locked before the select")
       THEN /\ Mine(r) /\ rowLock = Nobody /\ rowLock' = r
            /\ Go(r, "locked")
       ELSE /\ relay' = [relay EXCEPT ![r].at = "locked",
                    ![r].batch = First(BatchSize, (outbox \ lane.inflight) \ Skipped(r))]
            /\ UNCHANGED rowLock
    /\ UNCHANGED <<tables, owner, advisory, backup, kafka, luck>>

HoldsLane(r) ==
    /\ relay[r].session
    /\ \/ rowLock = r
       \/ ~Has("lane locked before the select") /\ rowLock = Nobody /\ Mine(r)

(* The batch before, as Postgres knows it; as the process remembers it where it is not written. *)
Before(r) == IF Has("inflight committed first") THEN lane
             ELSE [seq |-> relay[r].seq, inflight |-> relay[r].batch]

Settled(r) == IF Has("settle by id") THEN Before(r).inflight ELSE UpTo(Before(r).inflight) \cap outbox

Claimed(r) ==
    IF Renews(r) THEN {}
    ELSE IF Has("lane locked before the select")
    THEN First(BatchSize, (outbox \ Settled(r)) \ Skipped(r))
    ELSE relay[r].batch

Following(r) == [seq |-> Before(r).seq + (IF Claimed(r) = {} THEN 0 ELSE 1), inflight |-> Claimed(r)]

(* settle, claim, begin_batch; COMMIT. *)
Commit(r) ==
    /\ outbox' = outbox \ Settled(r)
    /\ lane' = IF Has("inflight committed first") THEN Following(r)
               ELSE [seq |-> Before(r).seq, inflight |-> {}]
    /\ UNCHANGED unborn

GoOnWithBatch(r) ==
    relay' = [relay EXCEPT ![r].seq = Following(r).seq, ![r].batch = Claimed(r),
        ![r].at = IF Claimed(r) = {} THEN (IF Renews(r) THEN "check" ELSE "work")
                  ELSE FirstOfKafka]

SettleAndClaim(r) ==
    /\ At(r, "locked") /\ HoldsLane(r)
    /\ Commit(r) /\ GoOnWithBatch(r) /\ rowLock' = Nobody
    /\ UNCHANGED <<owner, advisory, backup, kafka, luck>>

(* Lane._renew_producer, with strict_fencing only: Publisher.start; check_owner. *)
RenewProducer(r) ==
    /\ At(r, "renew")
    /\ NewProducer(r)
    /\ relay' = [relay EXCEPT ![r].disturbed = FALSE, ![r].at = "renewed"]
    /\ UNCHANGED <<postgres, luck>>

CheckOwnerAgain(r) ==
    /\ At(r, "renewed")
    /\ ~Has("ownership checked after the renewal") \/ (relay[r].session /\ Mine(r))
    /\ Go(r, IF Has("marker last") THEN "produce" ELSE "mark")
    /\ UNCHANGED <<postgres, kafka, luck>>

(* Publisher.publish: begin_transaction, produce, flush. *)
Produce(r) ==
    /\ At(r, "produce") /\ producer = r
    /\ IF Has("marker in the records' transaction")
       THEN /\ txn' = IF relay[r].batch = {} THEN txn
                      ELSE [txn EXCEPT !.open = TRUE, !.rows = relay[r].batch]
            /\ UNCHANGED topic
       ELSE topic' = topic \o InOrder(relay[r].batch) /\ UNCHANGED txn
    /\ Go(r, IF Has("marker last") THEN "mark" ELSE "end")
    /\ UNCHANGED <<postgres, marker, producer, stale, staleMark, luck>>

(* Publisher._mark: send_offsets_to_transaction. If a stale EndTxn has ended the transaction, the
   coordinator opens another. *)
AddMarker(r) ==
    /\ At(r, "mark") /\ producer = r
    /\ txn' = [txn EXCEPT !.open = TRUE, !.marker = relay[r].seq]
    /\ UNCHANGED <<postgres, topic, marker, producer, stale>>

AfterMark == IF Has("marker last") THEN "end" ELSE "produce"

Mark(r) ==
    /\ AddMarker(r) /\ Go(r, AfterMark)
    /\ UNCHANGED <<staleMark, luck>>

(* The coordinator carries out EndTxn(commit). Repeated on what is ended, it answers: done. *)
EndTxn ==
    /\ topic' = topic \o InOrder(txn.rows)
    /\ marker' = IF txn.marker = None THEN marker ELSE txn.marker
    /\ txn' = NoTxn
    /\ UNCHANGED producer

Published(me) == [me EXCEPT !.at = "work",
                            !.batch = IF Has("inflight committed first") THEN {} ELSE me.batch]

CommitTransaction(r) ==
    /\ At(r, "end") /\ producer = r
    /\ EndTxn /\ UNCHANGED <<stale, staleMark>>
    /\ relay' = [relay EXCEPT ![r] = Published(relay[r])]
    /\ UNCHANGED <<postgres, luck>>

(* A newer producer has fenced this one: InDoubt. *)
Fenced(r) ==
    /\ relay[r].at \in {"produce", "mark", "end"} /\ producer # r
    /\ Go(r, "check")
    /\ UNCHANGED <<postgres, kafka, luck>>

Step(r) ==
    \/ Take(r) \/ NoticeDeadSession(r) \/ LoseOwnership(r)
    \/ CheckOwner(r) \/ Fence(r) \/ ReadMarker(r) \/ ReadTimesOut(r) \/ Decide(r)
    \/ Renew(r) \/ LockLane(r) \/ SettleAndClaim(r) \/ RenewProducer(r) \/ CheckOwnerAgain(r)
    \/ Produce(r) \/ Mark(r) \/ CommitTransaction(r) \/ Fenced(r)

(* The consumer's transaction with a row of a lower id than others commits at last. *)
Insert == \E row \in unborn :
    /\ outbox' = outbox \cup {row} /\ unborn' = unborn \ {row}
    /\ UNCHANGED <<lane, owner, rowLock, advisory, backup, kafka, relay, luck>>

(* ---- Faults ----------------------------------------------------------------------------------- *)

Fault(kind) ==
    /\ kind \in Kinds /\ faults > 0 /\ faults' = faults - 1
    /\ UNCHANGED <<crashes, history>>

(* kill -9. The kernel closes the sockets, so Postgres ends the session at once. *)
Crash(r) ==
    /\ ~At(r, "away") /\ crashes > 0 /\ crashes' = crashes - 1
    /\ Leave(r) /\ UNCHANGED <<faults, history>>

(* Postgres ends the session of a relay that is frozen or cut off; that one goes on as a zombie. *)
EndSession(r) ==
    /\ Fault("session ends in silence") /\ relay[r].session
    /\ relay' = [relay EXCEPT ![r].session = FALSE]
    /\ rowLock' = Freed(rowLock, r) /\ advisory' = Freed(advisory, r)
    /\ UNCHANGED <<tables, owner, backup, kafka>>

(* The lock is gone and the session is not: a pooler, pg_advisory_unlock_all, a bug of ours. *)
LoseLock(r) ==
    /\ Fault("advisory lock lost") /\ advisory = r
    /\ advisory' = Nobody
    /\ UNCHANGED <<tables, owner, rowLock, backup, kafka, relay>>

(* COMMIT was carried out and the relay does not learn it. (Not carried out: EndSession.) A COMMIT
   that still runs holds the lane row's lock, so nobody can tell it from one that is done. *)
LoseReplyOfCommit(r) ==
    /\ Fault("reply of COMMIT lost") /\ At(r, "locked") /\ HoldsLane(r)
    /\ Commit(r)
    /\ relay' = [relay EXCEPT ![r] = Away]
    /\ rowLock' = Nobody /\ advisory' = Freed(advisory, r) /\ producer' = Freed(producer, r)
    /\ UNCHANGED <<owner, backup, topic, marker, txn, stale, staleMark>>

(* COMMIT answers ROLLBACK. With the guard the process ends, as in Crash. *)
AnswerRollback(r) ==
    /\ Fault("COMMIT answers ROLLBACK") /\ At(r, "locked") /\ HoldsLane(r)
    /\ IF Has("command tag of COMMIT") THEN Leave(r)
       ELSE /\ GoOnWithBatch(r) /\ rowLock' = Nobody
            /\ UNCHANGED <<tables, owner, advisory, backup, kafka>>

(* Any error or time-out of a Kafka call that had no effect: InDoubt. *)
KafkaError(r) ==
    /\ Fault("Kafka error") /\ relay[r].at \in {"fence", "read", "renew", "produce", "mark", "end"}
    /\ Go(r, "check")
    /\ UNCHANGED <<postgres, kafka>>

LoseReplyOfEndTxn(r) ==
    /\ Fault("reply of EndTxn lost") /\ At(r, "end") /\ producer = r
    /\ EndTxn /\ UNCHANGED <<stale, staleMark>>
    /\ Go(r, "check")
    /\ UNCHANGED postgres

(* The call times out while the request is still under way. *)
DelayEndTxn(r) ==
    /\ Fault("EndTxn delayed") /\ At(r, "end") /\ producer = r
    /\ stale' = stale + 1 /\ UNCHANGED <<topic, marker, txn, producer, staleMark>>
    /\ Go(r, "check")
    /\ UNCHANGED postgres

(* The connection breaks, librdkafka repeats EndTxn on a new one and reports success; the first copy
   is still under way. *)
RepeatEndTxn(r) ==
    /\ Fault("EndTxn repeated in silence") /\ At(r, "end") /\ producer = r
    /\ EndTxn /\ stale' = stale + 1 /\ UNCHANGED staleMark
    /\ relay' = [relay EXCEPT ![r] = [Published(relay[r]) EXCEPT !.disturbed = TRUE]]
    /\ UNCHANGED postgres

(* The same with the request that carries the marker. *)
RepeatMark(r) ==
    /\ Fault("TxnOffsetCommit repeated in silence") /\ AddMarker(r)
    /\ staleMark' = relay[r].seq
    /\ relay' = [relay EXCEPT ![r].at = AfterMark, ![r].disturbed = TRUE]

(* A copy arrives. Kafka cannot tell which transaction of this producer it was meant for. *)
DeliverStaleEndTxn ==
    /\ stale > 0 /\ stale' = stale - 1
    /\ EndTxn
    /\ UNCHANGED <<postgres, staleMark, relay, luck>>

DeliverStaleMark ==
    /\ staleMark # None /\ staleMark' = None
    /\ txn' = IF MarkerPending THEN [txn EXCEPT !.marker = staleMark] ELSE txn
    /\ UNCHANGED <<postgres, topic, marker, producer, stale, relay, luck>>

(* transaction.timeout.ms: the coordinator aborts and fences the producer. *)
TimeOutTransaction ==
    /\ Fault("transaction times out") /\ txn.open
    /\ txn' = NoTxn /\ producer' = Nobody /\ stale' = 0 /\ staleMark' = None
    /\ UNCHANGED <<postgres, topic, marker, relay>>

(* Not a fault, only rare: an idle lane commits its marker again. Lane._idle *)
RefreshMarker(r) ==
    /\ Fault("marker refreshed") /\ At(r, "work") /\ outbox = {} /\ ~Renews(r)
    /\ Go(r, FirstOfKafka)
    /\ UNCHANGED <<postgres, kafka>>

Backup ==
    /\ "Postgres restored" \in Kinds /\ backup = Nobody /\ ~history
    /\ backup' = [outbox |-> outbox, unborn |-> unborn, lane |-> lane]
    /\ UNCHANGED <<tables, owner, rowLock, advisory, kafka, relay, luck>>

(* Every session ends. The consumer will read again and insert again what the backup does not have. *)
Restore ==
    /\ backup # Nobody /\ ~history /\ history' = TRUE
    /\ outbox' = backup.outbox /\ unborn' = backup.unborn /\ lane' = backup.lane
    /\ owner' = Nobody /\ rowLock' = Nobody /\ advisory' = Nobody /\ backup' = Nobody
    /\ relay' = [r \in Relays |-> [relay[r] EXCEPT !.session = FALSE]]
    /\ UNCHANGED <<kafka, crashes, faults>>

(* The group's offsets expired, or were deleted. *)
ForgetMarker ==
    /\ "marker forgotten" \in Kinds /\ ~history /\ history' = TRUE
    /\ marker' = None
    /\ UNCHANGED <<postgres, topic, txn, producer, stale, staleMark, relay, crashes, faults>>

Environment ==
    \/ Insert \/ DeliverStaleEndTxn \/ DeliverStaleMark \/ TimeOutTransaction
    \/ Backup \/ Restore \/ ForgetMarker
    \/ \E r \in Relays :
        \/ Crash(r) \/ EndSession(r) \/ LoseLock(r) \/ LoseReplyOfCommit(r) \/ AnswerRollback(r)
        \/ KafkaError(r) \/ LoseReplyOfEndTxn(r) \/ DelayEndTxn(r) \/ RepeatEndTxn(r)
        \/ RepeatMark(r) \/ RefreshMarker(r)

Next == Environment \/ \E r \in Relays : Step(r)

(* Every relay goes on, every INSERT commits; faults and late requests may happen or not. *)
Fairness == WF_vars(Insert) /\ \A r \in Relays : WF_vars(Step(r))

Spec == Init /\ [][Next]_vars
FairSpec == Spec /\ Fairness

(* ---- What must hold --------------------------------------------------------------------------- *)

Visible == {topic[i] : i \in DOMAIN topic}

NoDuplicate == Cardinality(Visible) = Len(topic)

(* A row that is no longer in the outbox is in the topic. *)
NoLoss == Rows \ (outbox \cup unborn) \subseteq Visible

(* Rows that commit in the order of their ids may have one key; a late one has another. *)
OrderPerKey == \A i, j \in DOMAIN topic :
    (i < j /\ {topic[i], topic[j]} \cap Late = {}) => topic[i] <= topic[j]

NoFalseRefusal == history \/ \A r \in Relays : ~At(r, "refused")

EveryRowSettled == <>[](outbox = {} /\ unborn = {})

(* In the end nobody recovers any more: the relays do not fence each other for ever. *)
Calm == <>[](\A r \in Relays : relay[r].at \in {"work", "away", "refused"})

(* An owner whose calls are answered gets its work done, whatever a relay does that is not the owner. *)
OwnerGetsOn == \A r \in Relays \ ReadsFail : <>[](advisory = r) => EveryRowSettled

Symmetry == Permutations(Relays)
=============================================================================
