------------------------------- MODULE Relay -------------------------------
(* How the relays bring the lanes of the outbox from Postgres to Kafka, and which faults may happen
   between any two steps. The names are those of the code in outbox/; README.md has a table of both,
   and says what is not modelled.

   Three abstractions keep the model finite without losing a behaviour:
   - An epoch is only ever compared for equality with the newest one. So a lane's row holds the
     relay whose epoch it is (`owner`), and Kafka the relay whose producer epoch is the newest
     (`producer`); Kafka rejects requests of older producers, so the model does not keep them.
   - A transaction that holds the rows of its lanes locked is one step, from the lock to its COMMIT:
     nothing that it reads can change in between, except that rows are added, as if it had read later.
   - Order matters only within a lane, so the topic is kept lane by lane. *)
EXTENDS Integers, Sequences, FiniteSets, TLC

CONSTANTS
    Relays,     \* the processes; one that is not the owner is a zombie or a successor
    Lanes,      \* 1..n; also the transactional ids: a relay uses that of its lowest lane
    Rows,       \* ids of the messages
    Late,       \* rows whose INSERT commits after rows with higher ids
    BatchSize,  \* rows of a lane in a batch
    Crashes,    \* how often a relay crashes (kill -9), at any step
    Faults,     \* how many other faults happen, at any step
    Kinds,      \* which ones: see "Faults" below
    Without,    \* the guards that are removed: none in the protocol as it is
    Strict,     \* strict_fencing: a new producer for every batch
    ReadsFail,  \* relays that never get an answer to `read_markers`
    StartsFail, \* relays whose transaction coordinator never answers
    NoRelay

Has(guard) == guard \notin Without
None == -1      \* no marker

VARIABLES
    \* Postgres, as committed
    outbox,     \* rows inserted and not acknowledged
    uncommitted, \* rows whose INSERT has not committed yet
    lane,       \* the lane rows: batch_number, inflight, transactional_lane
    owner,      \* per lane the relay whose epoch its row holds
    advisory,   \* per lane the relay that holds its advisory lock
    backup,     \* an older state of the tables, or NoRelay
    \* Kafka
    topic,      \* per lane what a read_committed reader sees: ids in order
    marker,     \* per lane its marker, committed
    \* and per transactional id, for its newest producer:
    txn,        \* the open transaction
    producer,   \* the relay that has this producer, NoRelay if it is gone
    stale,      \* copies of EndTxn(commit) that have not arrived yet
    staleMarks, \* the markers in a copy of TxnOffsetCommit that has not arrived yet
    \* the relays' memory
    relay,
    \* how many faults may still happen
    crashes, faults,
    history     \* Postgres or Kafka lost something that it had committed

vars == <<outbox, uncommitted, lane, owner, advisory, backup,
          topic, marker, txn, producer, stale, staleMarks, relay, crashes, faults, history>>
tables == <<outbox, uncommitted, lane>>
postgres == <<outbox, uncommitted, lane, owner, advisory, backup>>
kafka == <<topic, marker, txn, producer, stale, staleMarks>>
faultState == <<crashes, faults, history>>

NoMarks == [l \in Lanes |-> None]
NoTxn == [open |-> FALSE, rows |-> {}, marks |-> NoMarks]

(* at: the next step; session: whether Postgres still keeps the session (the relay cannot know);
   lanes: the lanes that it believes to own; refused: those that wait for an operator; backingOff:
   those that could not be published, and are left out until the next recovery;
   id: the transactional id of its producer, 0 if it has none; needsRenewal: the producer must be
   renewed before the next batch, because it lost a connection in silence or a lane was lost;
   fence: the ids that must still be fenced; fenced: per lane the ids that were fenced for it;
   seen: the markers as read; marks: the markers of the current batch; batch: its rows;
   batch_number: the lanes' last batches. *)
Disconnected ==
    [at |-> "disconnected", session |-> FALSE, lanes |-> {}, refused |-> {}, backingOff |-> {},
     id |-> 0, needsRenewal |-> FALSE, fence |-> {}, fenced |-> [l \in Lanes |-> {}],
     seen |-> NoMarks, marks |-> NoMarks, batch |-> {}, batch_number |-> [l \in Lanes |-> 0]]

LaneOf(row) == 1 + ((row - 1) % Cardinality(Lanes))
Of(S, l) == {row \in S : LaneOf(row) = l}
OfLanes(S, L) == {row \in S : LaneOf(row) \in L}

Init ==
    /\ outbox = Rows \ Late /\ uncommitted = Late
    /\ lane = [l \in Lanes |->
            [batch_number |-> 0, inflight |-> {}, transactional_lane |-> l, restored |-> FALSE]]
    /\ owner = [l \in Lanes |-> NoRelay] /\ advisory = [l \in Lanes |-> NoRelay] /\ backup = NoRelay
    /\ topic = [l \in Lanes |-> <<>>] /\ marker = NoMarks
    /\ txn = [i \in Lanes |-> NoTxn] /\ producer = [i \in Lanes |-> NoRelay]
    /\ stale = [i \in Lanes |-> 0] /\ staleMarks = [i \in Lanes |-> NoMarks]
    /\ relay = [r \in Relays |-> Disconnected]
    /\ crashes = Crashes /\ faults = Faults /\ history = FALSE

At(r, step) == relay[r].at = step
Set(r, me) == relay' = [relay EXCEPT ![r] = me]
GoTo(r, step) == relay' = [relay EXCEPT ![r].at = step]
Released(locks, r) == [l \in Lanes |-> IF locks[l] = r THEN NoRelay ELSE locks[l]]
Rank(x, S) == Cardinality({y \in S : y < x})
First(n, S) == {x \in S : Rank(x, S) < n}
InOrder(S) == [i \in 1..Cardinality(S) |-> CHOOSE x \in S : Rank(x, S) = i - 1]
UpTo(S) == {x \in Rows : \E y \in S : x <= y}
Min(S) == CHOOSE x \in S : \A y \in S : x <= y
Marked(marks) == {l \in Lanes : marks[l] # None}

(* ---- the end of a relay session --------------------------------------------------------------- *)

(* The session is closed, which releases its locks and rolls its open transaction back. The producer
   is discarded; an EndTxn that it had sent may still arrive. *)
Disconnect(r) ==
    /\ Set(r, Disconnected)
    /\ advisory' = Released(advisory, r)
    /\ producer' = Released(producer, r)
    /\ LET id == relay[r].id IN
       IF At(r, "end") /\ producer[id] = r
       THEN \E copies \in {0, 1} : stale' = [stale EXCEPT ![id] = @ + copies]
       ELSE UNCHANGED stale
    /\ UNCHANGED <<tables, owner, backup, topic, marker, txn, staleMarks>>

Owns(r, l) == owner[l] = r \/ ~Has("epoch compare-and-set")
StillOwned(r) == {l \in relay[r].lanes : Owns(r, l)}
ActiveLanes(r) ==
    relay[r].lanes \ (relay[r].refused \cup
                      IF Has("lanes that back off left out") THEN relay[r].backingOff ELSE {})

(* A statement in a session that Postgres has ended. A relay that waits for Kafka notices it, too. *)
NoticeDeadSession(r) ==
    /\ ~At(r, "disconnected") /\ ~relay[r].session
    /\ Disconnect(r) /\ UNCHANGED faultState

(* OwnershipLost: no lane row has this relay's epoch. A relay without lanes is in the same state as one
   that has just started. *)
LoseOwnership(r) ==
    /\ relay[r].session /\ StillOwned(r) = {}
    /\ \/ At(r, "check")
       \/ At(r, "decide") /\ Has("ownership checked under the lock")
       \/ At(r, "work") /\ Has("lane locked before the select") /\ OfLanes(outbox, ActiveLanes(r)) # {}
       \/ At(r, "renewed") /\ Has("ownership checked after the renewal")
       \/ At(r, "selected")
    /\ Disconnect(r) /\ UNCHANGED faultState

(* A lost lane is unlocked: the session continues with the others. *)
UnlockLost(r, lanes) ==
    LET lost == {l \in Lanes \ lanes : advisory[l] = r} IN
    advisory' = [l \in Lanes |-> IF l \in lost /\ Has("lock of a lost lane released")
                                 THEN NoRelay ELSE advisory[l]]

(* The ids that were fenced for these lanes; nothing is remembered of the other lanes. *)
FencedFor(r, lanes) == [l \in Lanes |-> IF l \in lanes THEN relay[r].fenced[l] ELSE {}]

(* What a relay remembers when it recovers. It does not use the producer any more. *)
Recovering(r, lanes) ==
    [Disconnected EXCEPT !.at = "check", !.session = relay[r].session, !.lanes = lanes,
                         !.fenced = FencedFor(r, lanes)]

(* InDoubt. Without the guard the relay keeps the producer that is in doubt. *)
EnterDoubt(r) ==
    IF Has("new producer after any doubt")
    THEN Set(r, Recovering(r, relay[r].lanes)) /\ producer' = Released(producer, r)
    ELSE Set(r, [Recovering(r, relay[r].lanes) EXCEPT !.id = relay[r].id]) /\ UNCHANGED producer

(* The set of lanes has changed, and nothing is in doubt. *)
ChangeLanes(r, lanes) ==
    IF Has("new producer when the set changes")
    THEN Set(r, Recovering(r, lanes)) /\ producer' = Released(producer, r)
    ELSE /\ Set(r, [Recovering(r, lanes) EXCEPT !.id = relay[r].id,
                                                !.needsRenewal = relay[r].needsRenewal])
         /\ UNCHANGED producer

(* ---- ownership -------------------------------------------------------------------------------- *)

(* The advisory lock; then the new epoch, whose UPDATE waits for the lock of the lane's row. *)
Take(r, l) ==
    /\ l \notin relay[r].lanes
    /\ At(r, "disconnected") \/ (relay[r].session /\ relay[r].at \in {"check", "work"})
    /\ advisory[l] = NoRelay
    /\ advisory' = IF Has("advisory lock") THEN [advisory EXCEPT ![l] = r] ELSE advisory
    /\ owner' = [owner EXCEPT ![l] = r]
    /\ IF At(r, "disconnected")
       THEN /\ Set(r, [Disconnected EXCEPT !.at = "check", !.session = TRUE, !.lanes = {l}])
            /\ UNCHANGED producer
       ELSE ChangeLanes(r, relay[r].lanes \cup {l})
    /\ UNCHANGED <<tables, backup, topic, marker, txn, stale, staleMarks, faultState>>

(* ---- recovery --------------------------------------------------------------------------------- *)

(* Only where that guard is removed. *)
KeepsProducer(r) ==
    ~Has("new producer when the set changes") /\ Has("new producer after any doubt")
    /\ relay[r].id # 0 /\ ~relay[r].needsRenewal

BeforeRead == IF Has("fence before the marker is read") THEN "fence" ELSE "read"
AfterFence == IF Has("fence before the marker is read") THEN "read" ELSE "decide"

(* Drop the lost lanes, and read the transactional lanes of the others. A restored row may name an old
   transactional lane. *)
CheckOwners(r) ==
    /\ At(r, "check")
    /\ ~Has("ownership checked before the fence") \/ (relay[r].session /\ StillOwned(r) # {})
    /\ LET lanes == IF Has("ownership checked before the fence") THEN StillOwned(r) ELSE relay[r].lanes
           needed == [l \in Lanes |->
                        IF l \notin lanes \/ ~Has("earlier ids fenced") THEN {}
                        ELSE IF lane[l].restored /\ Has("all ids fenced after a restore") THEN Lanes
                        ELSE {lane[l].transactional_lane}]
           earlier == UNION {needed[l] \ relay[r].fenced[l] : l \in lanes}
           ids == IF KeepsProducer(r) THEN earlier \ {relay[r].id} ELSE earlier \cup {Min(lanes)}
       IN /\ Set(r, [relay[r] EXCEPT !.lanes = lanes, !.fence = ids, !.fenced = FencedFor(r, lanes),
                      !.at = IF ids = {} THEN "read" ELSE BeforeRead])
          /\ UnlockLost(r, lanes)
    /\ UNCHANGED <<tables, owner, backup, kafka, faultState>>

(* InitProducerId fences every older producer of the id and ends its open transaction. Without the guard
   the relay keeps the producer that is in doubt, after it has aborted its transaction. *)
NewProducer(r, id) ==
    /\ txn' = [txn EXCEPT ![id] = NoTxn] /\ producer' = [Released(producer, r) EXCEPT ![id] = r]
    /\ UNCHANGED <<topic, marker>>
    /\ IF producer[id] = r /\ ~Has("new producer after any doubt") THEN UNCHANGED <<stale, staleMarks>>
       ELSE stale' = [stale EXCEPT ![id] = 0] /\ staleMarks' = [staleMarks EXCEPT ![id] = NoMarks]

(* After this every producer of the id is fenced. *)
FenceId(id) ==
    /\ txn' = [txn EXCEPT ![id] = NoTxn] /\ producer' = [producer EXCEPT ![id] = NoRelay]
    /\ stale' = [stale EXCEPT ![id] = 0] /\ staleMarks' = [staleMarks EXCEPT ![id] = NoMarks]
    /\ UNCHANGED <<topic, marker>>

(* The ids that are fenced by a producer that is closed at once. The relay's own id comes last. *)
Earlier(r) == IF KeepsProducer(r) THEN relay[r].fence ELSE relay[r].fence \ {Min(relay[r].lanes)}

(* Remembered at once: a relay that retries does not fence the id's next user again. *)
FenceEarlier(r) ==
    /\ At(r, "fence") /\ Earlier(r) # {}
    /\ LET id == Min(Earlier(r))
           others == relay[r].fence \ {id}
       IN /\ FenceId(id)
          /\ Set(r, [relay[r] EXCEPT
                !.fence = others,
                !.fenced = [l \in Lanes |-> IF l \in relay[r].lanes /\ Has("earlier ids fenced once")
                                            THEN @[l] \cup {id} ELSE @[l]],
                !.at = IF others # {} THEN "fence" ELSE AfterFence])
    /\ UNCHANGED <<postgres, faultState>>

Fence(r) ==
    /\ At(r, "fence") /\ Earlier(r) = {} /\ r \notin StartsFail
    /\ LET id == Min(relay[r].lanes) IN
       /\ NewProducer(r, id)
       /\ Set(r, [relay[r] EXCEPT
            !.id = id, !.needsRenewal = FALSE, !.fence = {}, !.at = AfterFence])
    /\ UNCHANGED <<postgres, faultState>>

StartTimesOut(r) ==
    /\ At(r, "fence") /\ Earlier(r) = {} /\ r \in StartsFail
    /\ EnterDoubt(r)
    /\ UNCHANGED <<postgres, topic, marker, txn, stale, staleMarks, faultState>>

HasMarkers(i) == txn[i].open /\ Marked(txn[i].marks) # {}
MarkerPending(l) == \E i \in Lanes : txn[i].open /\ txn[i].marks[l] # None
ReadBlocked(r) == r \in ReadsFail \/ \E l \in relay[r].lanes : MarkerPending(l)

(* read_markers: the broker does not answer while a marker is in an open transaction. *)
ReadMarkers(r) ==
    /\ At(r, "read") /\ ~ReadBlocked(r)
    /\ Set(r, [relay[r] EXCEPT
            !.seen = [l \in Lanes |-> IF l \in relay[r].lanes THEN marker[l] ELSE None],
            !.at = IF Has("fence before the marker is read") THEN "decide" ELSE "fence"])
    /\ UNCHANGED <<postgres, kafka, faultState>>

(* It times out. The recovery starts again. *)
ReadTimesOut(r) ==
    /\ At(r, "read") /\ ReadBlocked(r)
    /\ EnterDoubt(r)
    /\ UNCHANGED <<postgres, topic, marker, txn, stale, staleMarks, faultState>>

Outcome(seen, batch_number) ==
    CASE seen = None /\ batch_number = 0 -> "new_lane"
      [] seen = None /\ batch_number > 0 -> "marker_missing"
      [] seen # None /\ seen = batch_number -> "published"
      [] seen # None /\ seen = batch_number - 1 -> "not_published"
      [] OTHER -> "marker_ahead or marker_behind"

FirstOfKafka == IF Strict THEN "renew" ELSE IF Has("marker last") THEN "produce" ELSE "mark"

(* decide, under the locks of the lanes' rows. It writes the transactional lane of each lane before
   anything of that lane is sent. skipped: lanes that must be published again, and are left out. *)
DecideWithout(r, skipped) ==
    /\ At(r, "decide") /\ relay[r].session
    /\ LET me == relay[r]
           lanes == IF Has("ownership checked under the lock") THEN StillOwned(r) ELSE me.lanes
           outcome == [l \in lanes |-> Outcome(me.seen[l], lane[l].batch_number)]
           unsent == {l \in lanes : outcome[l] \in {"new_lane", "not_published"}}
           again == unsent \ skipped
           refused == IF ~Has("refusal") THEN {}
                      ELSE {l \in lanes : outcome[l] = "marker_ahead or marker_behind"
                                          \/ outcome[l] = "marker_missing"}
       IN /\ lanes # {} /\ skipped \subseteq unsent /\ UnlockLost(r, lanes)
          /\ Set(r, [me EXCEPT
                !.at = IF again = {} THEN "work" ELSE FirstOfKafka,
                !.lanes = lanes, !.refused = refused, !.backingOff = skipped,
                !.fenced = Disconnected.fenced, !.seen = NoMarks,
                !.needsRenewal = @ \/ lanes # me.lanes,
                !.batch_number = [l \in Lanes |-> IF l \in lanes THEN lane[l].batch_number ELSE 0],
                !.marks = [l \in Lanes |-> IF l \in again THEN lane[l].batch_number ELSE None],
                !.batch = UNION {lane[l].inflight \cap outbox : l \in again}])
          /\ lane' = IF ~Has("transactional lane committed first") THEN lane
                     ELSE [l \in Lanes |-> IF l \in lanes /\ Owns(r, l)
                                           THEN [lane[l] EXCEPT !.transactional_lane = me.id,
                                                                !.restored = FALSE]
                                           ELSE lane[l]]
    /\ UNCHANGED <<outbox, uncommitted, owner, backup, kafka>>

Decide(r) == DecideWithout(r, {}) /\ UNCHANGED faultState

(* ---- a batch ---------------------------------------------------------------------------------- *)

MustRenew(r) == relay[r].needsRenewal /\ Has("new producer after a silent disconnect")

(* The producer must be renewed, and all that it published is acknowledged: recover. *)
StartRenewal(r) ==
    /\ At(r, "work") /\ OfLanes(outbox, ActiveLanes(r)) = {} /\ MustRenew(r)
    /\ EnterDoubt(r)
    /\ UNCHANGED <<postgres, topic, marker, txn, stale, staleMarks, faultState>>

(* The back-off of a lane is over. *)
RetryBackedOff(r) ==
    /\ At(r, "work") /\ relay[r].backingOff # {}
    /\ EnterDoubt(r)
    /\ UNCHANGED <<postgres, topic, marker, txn, stale, staleMarks, faultState>>

(* Rows that `claim` skips: FOR UPDATE SKIP LOCKED passes over the rows of a transaction that read them
   before it had the lock of the lane's row. *)
Skipped(r) == UNION {relay[o].batch : o \in {o \in Relays \ {r} :
                        At(o, "selected") /\ relay[o].session}}

(* Without the guard the rows are selected first, and the epoch is compared when the lane's row is
   written. *)
Select(r) ==
    /\ At(r, "work") /\ relay[r].session /\ ~Has("lane locked before the select")
    /\ OfLanes(outbox, ActiveLanes(r)) # {}
    /\ Set(r, [relay[r] EXCEPT !.at = "selected",
            !.batch = UNION {First(BatchSize, (Of(outbox, l) \ lane[l].inflight) \ Skipped(r))
                             : l \in ActiveLanes(r)}])
    /\ UNCHANGED <<postgres, kafka, faultState>>

(* The lanes' rows can be locked. *)
CanLock(r) ==
    /\ relay[r].session /\ StillOwned(r) # {}
    /\ IF Has("lane locked before the select")
       THEN At(r, "work") /\ OfLanes(outbox, ActiveLanes(r)) # {}
       ELSE At(r, "selected")

(* Lanes with rows, except those whose lane row another transaction has locked. *)
LanesWithWork(r) == IF Has("lane locked before the select")
                    THEN SUBSET {l \in ActiveLanes(r) : Of(outbox, l) # {}} \ {{}}
                    ELSE {ActiveLanes(r)}

(* The batch before, from Postgres; from the relay's memory where the guard is removed. *)
BatchNumberBefore(r, l) == IF Has("inflight committed first") THEN lane[l].batch_number
                           ELSE relay[r].batch_number[l]
InflightBefore(r, l) == IF Has("inflight committed first") THEN lane[l].inflight
                        ELSE Of(relay[r].batch, l)

Acknowledged(r, l) == IF Has("acknowledge by id") THEN InflightBefore(r, l)
                      ELSE Of(UpTo(InflightBefore(r, l)) \cap outbox, l)

Claimed(r, l) ==
    IF MustRenew(r) THEN {}
    ELSE IF Has("lane locked before the select")
    THEN First(BatchSize, (Of(outbox, l) \ Acknowledged(r, l)) \ Skipped(r))
    ELSE Of(relay[r].batch, l)

BatchNumberAfter(r, l) == BatchNumberBefore(r, l) + (IF Claimed(r, l) = {} THEN 0 ELSE 1)

(* Acknowledge, claim, write the lane rows; COMMIT. *)
Commit(r, active) ==
    /\ outbox' = outbox \ UNION {Acknowledged(r, l) : l \in active \cap StillOwned(r)}
    /\ lane' = [l \in Lanes |->
            IF l \notin active \cap StillOwned(r) THEN lane[l]
            ELSE IF Has("inflight committed first")
            THEN [lane[l] EXCEPT !.transactional_lane = relay[r].id,
                                 !.batch_number = BatchNumberAfter(r, l), !.inflight = Claimed(r, l)]
            ELSE [lane[l] EXCEPT !.transactional_lane = relay[r].id,
                                 !.batch_number = BatchNumberBefore(r, l), !.inflight = {}]]
    /\ UNCHANGED uncommitted

(* A lost lane drops out, and the producer is renewed before the next batch. *)
ContinueWithBatch(r, active) ==
    LET lost == active \ StillOwned(r)
        lanes == relay[r].lanes \ lost
        new == {l \in active \ lost : Claimed(r, l) # {}}
    IN /\ UnlockLost(r, lanes)
       /\ IF new = {} /\ (MustRenew(r) \/ lost # {})
          THEN /\ Set(r, Recovering(r, lanes))
               /\ producer' = Released(producer, r)
          ELSE /\ Set(r, [relay[r] EXCEPT
                    !.lanes = lanes,
                    !.batch_number = [l \in Lanes |-> IF l \in active \ lost
                                                      THEN BatchNumberAfter(r, l)
                                                      ELSE IF l \in lanes THEN @[l] ELSE 0],
                    !.batch = UNION {Claimed(r, l) : l \in new},
                    !.marks = [l \in Lanes |-> IF l \in new THEN BatchNumberAfter(r, l) ELSE None],
                    !.needsRenewal = @ \/ lost # {},
                    !.at = IF new = {} THEN "work" ELSE FirstOfKafka])
               /\ UNCHANGED producer

AcknowledgeAndClaim(r) ==
    /\ CanLock(r)
    /\ \E active \in LanesWithWork(r) : Commit(r, active) /\ ContinueWithBatch(r, active)
    /\ UNCHANGED <<owner, backup, topic, marker, txn, stale, staleMarks, faultState>>

(* With strict_fencing only: a new producer for the batch, then the epochs again. *)
RenewProducer(r) ==
    /\ At(r, "renew")
    /\ NewProducer(r, relay[r].id)
    /\ Set(r, [relay[r] EXCEPT !.needsRenewal = FALSE, !.at = "renewed"])
    /\ UNCHANGED <<postgres, faultState>>

(* Lost lanes drop out of the batch; the others are sent. *)
CheckOwnersAgain(r) ==
    /\ At(r, "renewed")
    /\ LET lanes == IF Has("ownership checked after the renewal") THEN StillOwned(r)
                    ELSE relay[r].lanes
       IN
       /\ Has("ownership checked after the renewal") => relay[r].session /\ lanes # {}
       /\ Set(r, [relay[r] EXCEPT
            !.lanes = lanes, !.refused = @ \cap lanes, !.backingOff = @ \cap lanes,
            !.batch = OfLanes(@, lanes),
            !.batch_number = [l \in Lanes |-> IF l \in lanes THEN @[l] ELSE 0],
            !.marks = [l \in Lanes |-> IF l \in lanes THEN @[l] ELSE None],
            !.needsRenewal = @ \/ lanes # relay[r].lanes,
            !.at = IF Marked(relay[r].marks) \cap lanes = {} THEN "work"
                   ELSE IF Has("marker last") THEN "produce" ELSE "mark"])
       /\ UnlockLost(r, lanes)
    /\ UNCHANGED <<tables, owner, backup, kafka, faultState>>

CanSend(r) == producer[relay[r].id] = r

(* publish: begin_transaction, produce, flush. *)
Produce(r) ==
    /\ At(r, "produce") /\ CanSend(r)
    /\ LET rows == relay[r].batch IN
       IF Has("marker in the records' transaction")
       THEN /\ txn' = IF rows = {} THEN txn
                      ELSE [txn EXCEPT ![relay[r].id].open = TRUE, ![relay[r].id].rows = rows]
            /\ UNCHANGED topic
       ELSE topic' = [l \in Lanes |-> topic[l] \o InOrder(Of(rows, l))] /\ UNCHANGED txn
    /\ GoTo(r, IF Has("marker last") THEN "mark" ELSE "end")
    /\ UNCHANGED <<postgres, marker, producer, stale, staleMarks, faultState>>

With(marks, more) == [l \in Lanes |-> IF more[l] # None THEN more[l] ELSE marks[l]]

(* publish: send_offsets_to_transaction, with the markers of all lanes of the batch. If a stale EndTxn
   has ended the transaction, the coordinator opens another one. *)
AddMarkers(r) ==
    /\ At(r, "mark") /\ CanSend(r)
    /\ LET id == relay[r].id IN
       txn' = [txn EXCEPT ![id].open = TRUE, ![id].marks = With(@, relay[r].marks)]
    /\ UNCHANGED <<postgres, topic, marker, producer, stale>>

AfterMark == IF Has("marker last") THEN "end" ELSE "produce"

Mark(r) ==
    /\ AddMarkers(r) /\ GoTo(r, AfterMark)
    /\ UNCHANGED <<staleMarks, faultState>>

(* The coordinator executes EndTxn(commit). Repeated after the end, it is answered with success. *)
EndTxn(id) ==
    /\ topic' = [l \in Lanes |-> topic[l] \o InOrder(Of(txn[id].rows, l))]
    /\ marker' = With(marker, txn[id].marks)
    /\ txn' = [txn EXCEPT ![id] = NoTxn]

Published(r) == [relay[r] EXCEPT !.at = "work", !.marks = NoMarks,
                                 !.batch = IF Has("inflight committed first") THEN {} ELSE @]

CommitTransaction(r) ==
    /\ At(r, "end") /\ CanSend(r)
    /\ EndTxn(relay[r].id)
    /\ Set(r, Published(r))
    /\ UNCHANGED <<postgres, producer, stale, staleMarks, faultState>>

(* A newer producer has fenced this one: InDoubt. *)
ProducerFenced(r) ==
    /\ relay[r].at \in {"produce", "mark", "end"} /\ ~CanSend(r)
    /\ EnterDoubt(r)
    /\ UNCHANGED <<postgres, topic, marker, txn, stale, staleMarks, faultState>>

Step(r) ==
    \/ \E l \in Lanes : Take(r, l)
    \/ NoticeDeadSession(r) \/ LoseOwnership(r)
    \/ CheckOwners(r) \/ FenceEarlier(r) \/ Fence(r) \/ StartTimesOut(r)
    \/ ReadMarkers(r) \/ ReadTimesOut(r) \/ Decide(r)
    \/ StartRenewal(r) \/ RetryBackedOff(r) \/ Select(r) \/ AcknowledgeAndClaim(r)
    \/ RenewProducer(r) \/ CheckOwnersAgain(r)
    \/ Produce(r) \/ Mark(r) \/ CommitTransaction(r) \/ ProducerFenced(r)

(* A consumer's transaction whose row has a lower id than others commits late. *)
Insert == \E row \in uncommitted :
    /\ outbox' = outbox \cup {row} /\ uncommitted' = uncommitted \ {row}
    /\ UNCHANGED <<lane, owner, advisory, backup, kafka, relay, faultState>>

(* ---- Faults ----------------------------------------------------------------------------------- *)

Fault(kind) ==
    /\ kind \in Kinds /\ faults > 0 /\ faults' = faults - 1
    /\ UNCHANGED <<crashes, history>>

(* Not a fault, but rare: a relay releases a lane between two batches. One transaction acknowledges the
   lane's last batch, and nothing of the lane is in flight: it is its own transactional lane again. *)
ReleaseLane(r, l) ==
    /\ Fault("lane released") /\ At(r, "work") /\ relay[r].session /\ ~relay[r].needsRenewal
    /\ l \in ActiveLanes(r) /\ Owns(r, l)
    /\ outbox' = outbox \ Acknowledged(r, l)
    /\ lane' = [lane EXCEPT ![l].inflight = {},
                    ![l].transactional_lane =
                        IF Has("transactional lane reset on release") THEN l ELSE @]
    /\ IF relay[r].lanes = {l} THEN Set(r, Disconnected) /\ producer' = Released(producer, r)
       ELSE ChangeLanes(r, relay[r].lanes \ {l})
    /\ advisory' = [advisory EXCEPT ![l] = IF @ = r THEN NoRelay ELSE @]
    /\ UNCHANGED <<uncommitted, owner, backup, topic, marker, txn, stale, staleMarks>>

(* The same in doubt: nothing is written. *)
ReleaseLaneInDoubt(r, l) ==
    /\ Fault("lane released") /\ At(r, "check") /\ relay[r].session
    /\ l \in relay[r].lanes
    /\ Set(r, IF relay[r].lanes = {l} THEN Disconnected ELSE Recovering(r, relay[r].lanes \ {l}))
    /\ advisory' = [advisory EXCEPT ![l] = IF @ = r THEN NoRelay ELSE @]
    /\ producer' = Released(producer, r)
    /\ UNCHANGED <<tables, owner, backup, topic, marker, txn, stale, staleMarks>>

(* Not a fault of the protocol: a topic of the lane's rows is missing, or must not be written to. *)
BackOff(r) == \E skipped \in SUBSET Lanes \ {{}} :
    Fault("lane backs off") /\ DecideWithout(r, skipped)

(* kill -9. The kernel closes the sockets, so Postgres ends the session at once. *)
Crash(r) ==
    /\ ~At(r, "disconnected") /\ crashes > 0 /\ crashes' = crashes - 1
    /\ Disconnect(r) /\ UNCHANGED <<faults, history>>

(* Postgres ends the session of a relay that is frozen or cut off; that relay continues as a zombie. *)
EndSession(r) ==
    /\ Fault("session ends in silence") /\ relay[r].session
    /\ relay' = [relay EXCEPT ![r].session = FALSE]
    /\ advisory' = Released(advisory, r)
    /\ UNCHANGED <<tables, owner, backup, kafka>>

(* All sessions end and nothing is lost, but a lane's row cannot tell this from a restore. *)
RestartPostgres ==
    /\ Fault("Postgres restarted")
    /\ lane' = [l \in Lanes |-> [lane[l] EXCEPT !.restored = TRUE]]
    /\ relay' = [r \in Relays |-> [relay[r] EXCEPT !.session = FALSE]]
    /\ advisory' = [l \in Lanes |-> NoRelay]
    /\ UNCHANGED <<outbox, uncommitted, owner, backup, kafka>>

(* A lock is lost and the session is not: a pooler, pg_advisory_unlock_all, a bug. *)
LoseLock(r, l) ==
    /\ Fault("advisory lock lost") /\ advisory[l] = r
    /\ advisory' = [advisory EXCEPT ![l] = NoRelay]
    /\ UNCHANGED <<tables, owner, backup, kafka, relay>>

(* A repair takes the lane from its owner and finishes. (It waits for the row's lock in between.) *)
RaiseEpoch(l) ==
    /\ Fault("epoch raised by a repair") /\ owner[l] # NoRelay
    /\ owner' = [owner EXCEPT ![l] = NoRelay]
    /\ UNCHANGED <<tables, advisory, backup, kafka, relay>>

(* COMMIT was executed and its reply is lost. (Not executed: EndSession.) A COMMIT that still runs holds
   the lanes' rows, so it looks the same as one that is done. For the COMMITs of Decide and ReleaseLane
   the same is a Crash right after them. *)
LoseReplyOfCommit(r) ==
    /\ Fault("reply of COMMIT lost") /\ CanLock(r)
    /\ \E active \in LanesWithWork(r) : Commit(r, active)
    /\ Set(r, Disconnected)
    /\ advisory' = Released(advisory, r) /\ producer' = Released(producer, r)
    /\ UNCHANGED <<owner, backup, topic, marker, txn, stale, staleMarks>>

(* COMMIT is answered with ROLLBACK. With the guard the process ends, as in Crash. *)
AnswerRollback(r) ==
    /\ Fault("COMMIT answers ROLLBACK") /\ CanLock(r)
    /\ IF Has("command tag of COMMIT") THEN Disconnect(r)
       ELSE /\ \E active \in LanesWithWork(r) : ContinueWithBatch(r, active)
            /\ UNCHANGED <<tables, owner, backup, topic, marker, txn, stale, staleMarks>>

(* Any error or time-out of a Kafka call that had no effect: InDoubt. *)
KafkaError(r) ==
    /\ Fault("Kafka error") /\ relay[r].at \in {"fence", "read", "renew", "produce", "mark", "end"}
    /\ EnterDoubt(r)
    /\ UNCHANGED <<postgres, topic, marker, txn, stale, staleMarks>>

LoseReplyOfEndTxn(r) ==
    /\ Fault("reply of EndTxn lost") /\ At(r, "end") /\ CanSend(r)
    /\ EndTxn(relay[r].id)
    /\ EnterDoubt(r)
    /\ UNCHANGED <<postgres, stale, staleMarks>>

(* The call times out before the request has arrived. *)
DelayEndTxn(r) ==
    /\ Fault("EndTxn delayed") /\ At(r, "end") /\ CanSend(r)
    /\ stale' = [stale EXCEPT ![relay[r].id] = @ + 1]
    /\ EnterDoubt(r)
    /\ UNCHANGED <<postgres, topic, marker, txn, staleMarks>>

(* The connection breaks, librdkafka repeats EndTxn on a new one and reports success; the first copy
   arrives later. *)
RepeatEndTxn(r) ==
    /\ Fault("EndTxn repeated in silence") /\ At(r, "end") /\ CanSend(r)
    /\ EndTxn(relay[r].id) /\ stale' = [stale EXCEPT ![relay[r].id] = @ + 1]
    /\ Set(r, [Published(r) EXCEPT !.needsRenewal = TRUE])
    /\ UNCHANGED <<postgres, producer, staleMarks>>

(* The same with the request that contains the markers. *)
RepeatMark(r) ==
    /\ Fault("TxnOffsetCommit repeated in silence") /\ AddMarkers(r)
    /\ staleMarks' = [staleMarks EXCEPT ![relay[r].id] = relay[r].marks]
    /\ Set(r, [relay[r] EXCEPT !.at = AfterMark, !.needsRenewal = TRUE])

(* A copy arrives. Kafka cannot tell to which transaction of this producer it belongs. *)
DeliverStaleEndTxn == \E id \in Lanes :
    /\ stale[id] > 0 /\ stale' = [stale EXCEPT ![id] = @ - 1]
    /\ EndTxn(id)
    /\ UNCHANGED <<postgres, producer, staleMarks, relay, faultState>>

DeliverStaleMarks == \E id \in Lanes :
    /\ staleMarks[id] # NoMarks /\ staleMarks' = [staleMarks EXCEPT ![id] = NoMarks]
    /\ txn' = IF HasMarkers(id) THEN [txn EXCEPT ![id].marks = With(@, staleMarks[id])] ELSE txn
    /\ UNCHANGED <<postgres, topic, marker, producer, stale, relay, faultState>>

(* transaction.timeout.ms: the coordinator aborts and fences the producer. *)
TimeOutTransaction == \E id \in Lanes :
    /\ Fault("transaction times out") /\ txn[id].open
    /\ FenceId(id)
    /\ UNCHANGED <<postgres, relay>>

(* Not a fault, only rare: idle lanes commit their markers again. *)
RefreshMarkers(r) ==
    LET idle == {l \in ActiveLanes(r) : Of(outbox, l) = {}} IN
    /\ Fault("marker refreshed") /\ At(r, "work") /\ idle # {} /\ ~MustRenew(r)
    /\ Set(r, [relay[r] EXCEPT !.at = FirstOfKafka,
            !.marks = [l \in Lanes |-> IF l \in idle THEN relay[r].batch_number[l] ELSE None]])
    /\ UNCHANGED <<postgres, kafka>>

Backup ==
    /\ "Postgres restored" \in Kinds /\ backup = NoRelay /\ ~history
    /\ backup' = [outbox |-> outbox, uncommitted |-> uncommitted, lane |-> lane]
    /\ UNCHANGED <<tables, owner, advisory, kafka, relay, faultState>>

(* Every session ends. The consumer will read and insert again what the backup lacks. *)
Restore ==
    /\ backup # NoRelay /\ ~history /\ history' = TRUE
    /\ outbox' = backup.outbox /\ uncommitted' = backup.uncommitted
    /\ lane' = [l \in Lanes |-> [backup.lane[l] EXCEPT !.restored = TRUE]]
    /\ owner' = [l \in Lanes |-> NoRelay] /\ advisory' = [l \in Lanes |-> NoRelay] /\ backup' = NoRelay
    /\ relay' = [r \in Relays |-> [relay[r] EXCEPT !.session = FALSE]]
    /\ UNCHANGED <<kafka, crashes, faults>>

(* The offsets of the marker group expired, or were deleted. *)
ForgetMarkers ==
    /\ "marker forgotten" \in Kinds /\ ~history /\ history' = TRUE
    /\ marker' = NoMarks
    /\ UNCHANGED <<postgres, topic, txn, producer, stale, staleMarks, relay, crashes, faults>>

Environment ==
    \/ Insert \/ DeliverStaleEndTxn \/ DeliverStaleMarks \/ TimeOutTransaction
    \/ RestartPostgres \/ Backup \/ Restore \/ ForgetMarkers \/ (\E l \in Lanes : RaiseEpoch(l))
    \/ \E r \in Relays :
        \/ Crash(r) \/ EndSession(r) \/ LoseReplyOfCommit(r) \/ AnswerRollback(r)
        \/ KafkaError(r) \/ LoseReplyOfEndTxn(r) \/ DelayEndTxn(r) \/ RepeatEndTxn(r)
        \/ RepeatMark(r) \/ RefreshMarkers(r) \/ BackOff(r)
        \/ \E l \in Lanes : LoseLock(r, l) \/ ReleaseLane(r, l) \/ ReleaseLaneInDoubt(r, l)

Next == Environment \/ \E r \in Relays : Step(r)

(* Every relay makes its next step, every INSERT commits; faults and late requests may happen or not. *)
Fairness == WF_vars(Insert) /\ \A r \in Relays : WF_vars(Step(r))

Spec == Init /\ [][Next]_vars
FairSpec == Spec /\ Fairness

(* ---- What must hold --------------------------------------------------------------------------- *)

Visible(l) == {topic[l][i] : i \in DOMAIN topic[l]}

NoDuplicate == \A l \in Lanes : Cardinality(Visible(l)) = Len(topic[l])

(* A row that is not in the outbox any more is in the topic. *)
NoLoss == \A l \in Lanes : Of(Rows \ (outbox \cup uncommitted), l) \subseteq Visible(l)

(* Rows that commit in the order of their ids may have one key; a late one has another. *)
OrderPerKey == \A l \in Lanes : \A i, j \in DOMAIN topic[l] :
    (i < j /\ {topic[l][i], topic[l][j]} \cap Late = {}) => topic[l][i] <= topic[l][j]

NoFalseRefusal == history \/ \A r \in Relays : relay[r].refused = {}

EveryRowAcknowledged == <>[](outbox = {} /\ uncommitted = {})

(* From some time on no relay recovers any more: relays do not fence each other endlessly. *)
RecoveryEnds == <>[](\A r \in Relays : relay[r].at \in {"work", "disconnected"})

(* An owner whose calls are answered publishes its lanes, whatever the other relay does. *)
OwnerMakesProgress == \A r \in Relays \ (ReadsFail \cup StartsFail) : \A l \in Lanes :
    <>[](advisory[l] = r) => <>[](OfLanes(outbox, {l}) = {})

Symmetry == Permutations(Relays)
=============================================================================
