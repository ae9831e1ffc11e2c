------------------------------- MODULE Relay -------------------------------
(* How the lanes of the outbox get from Postgres to Kafka: outbox/session.py, outbox/recovery.py and
   outbox/ownership.py (the steps), outbox/store.py (Postgres), outbox/publisher.py (Kafka), with the
   faults that may hit between any two steps. Names are the code's. README.md says what is left out.

   Three abstractions keep the model finite without losing a behaviour:
   - An epoch is only ever compared for equality with the newest one. So a lane's row holds the
     relay whose epoch it is (`owner`), and Kafka the relay whose producer epoch is the newest
     (`producer`); requests of older producers are refused, so they need not be kept.
   - A transaction that holds the rows of its lanes locked is one step, from the lock to its COMMIT:
     nothing that it reads can change in between, except that rows are added, and then it read later.
   - What is ordered is ordered within a lane: so the topic is kept lane by lane. *)
EXTENDS Integers, Sequences, FiniteSets, TLC

CONSTANTS
    Relays,     \* the processes: whoever is not the owner is a zombie or a successor
    Lanes,      \* 1..n: also the transactional ids, each the lead lane's of some relay
    Rows,       \* ids of the messages
    Late,       \* those whose INSERT commits at some later time, in spite of their lower ids
    BatchSize,  \* rows of a lane in a batch
    Crashes,    \* how often a relay dies (kill -9), at any step
    Faults,     \* how many other faults happen, at any step
    Kinds,      \* which: see "Faults" below
    Without,    \* the guards that are taken out: none in the protocol as it is
    Strict,     \* strict_fencing: a new producer for every batch
    ReadsFail,  \* relays that never get an answer to `read_markers`
    StartsFail, \* relays whose producer's coordinator never answers
    Nobody

Has(guard) == guard \notin Without
None == -1      \* no marker

VARIABLES
    \* Postgres, as committed
    outbox,     \* rows inserted and not acknowledged
    unborn,     \* rows whose INSERT has not committed yet
    lane,       \* the lane rows: batch_number, inflight, transactional_lane
    owner,      \* per lane the relay whose epoch its row holds
    advisory,   \* per lane who holds its advisory lock
    backup,     \* an older state of the tables, or Nobody
    \* Kafka
    topic,      \* per lane what a read_committed reader sees: ids in order
    marker,     \* per lane its marker, committed
    \* and per transactional id, of its newest producer:
    txn,        \* the open transaction
    producer,   \* the relay that has this producer, Nobody if it is gone
    stale,      \* copies of EndTxn(commit) that are still under way
    staleMarks, \* the markers in a copy of TxnOffsetCommit that is still under way
    \* the relays' memory
    relay,
    \* how much may still go wrong
    crashes, faults,
    history     \* Postgres or Kafka forgot something it had acknowledged

vars == <<outbox, unborn, lane, owner, advisory, backup,
          topic, marker, txn, producer, stale, staleMarks, relay, crashes, faults, history>>
tables == <<outbox, unborn, lane>>
postgres == <<outbox, unborn, lane, owner, advisory, backup>>
kafka == <<topic, marker, txn, producer, stale, staleMarks>>
luck == <<crashes, faults, history>>

NoMarks == [l \in Lanes |-> None]
NoTxn == [open |-> FALSE, rows |-> {}, marks |-> NoMarks]

(* at: the next step; session: whether Postgres still keeps the session (the relay cannot know);
   lanes: what it believes to own; refused: those of them that wait for a person; resting: those that
   could not be sent, and are left out until the next recovery;
   id: the transactional id of its producer, 0 if it has none; disturbed: it is to be renewed before
   the next batch, for it lost a connection in silence or a lane is gone;
   fence: the ids that are still to be fenced; fenced: of each lane, the ids that are;
   seen: the markers as read; marks: the markers of the batch in hand; batch: its rows;
   batch_number: the lanes' last batches. *)
Away == [at |-> "away", session |-> FALSE, lanes |-> {}, refused |-> {}, resting |-> {}, id |-> 0,
         disturbed |-> FALSE, fence |-> {}, fenced |-> [l \in Lanes |-> {}], seen |-> NoMarks, marks |-> NoMarks,
         batch |-> {}, batch_number |-> [l \in Lanes |-> 0]]

LaneOf(row) == 1 + ((row - 1) % Cardinality(Lanes))
Of(S, l) == {row \in S : LaneOf(row) = l}
OfLanes(S, L) == {row \in S : LaneOf(row) \in L}

Init ==
    /\ outbox = Rows \ Late /\ unborn = Late
    /\ lane = [l \in Lanes |-> [batch_number |-> 0, inflight |-> {}, transactional_lane |-> l, restored |-> FALSE]]
    /\ owner = [l \in Lanes |-> Nobody] /\ advisory = [l \in Lanes |-> Nobody] /\ backup = Nobody
    /\ topic = [l \in Lanes |-> <<>>] /\ marker = NoMarks
    /\ txn = [i \in Lanes |-> NoTxn] /\ producer = [i \in Lanes |-> Nobody]
    /\ stale = [i \in Lanes |-> 0] /\ staleMarks = [i \in Lanes |-> NoMarks]
    /\ relay = [r \in Relays |-> Away]
    /\ crashes = Crashes /\ faults = Faults /\ history = FALSE

At(r, step) == relay[r].at = step
Set(r, me) == relay' = [relay EXCEPT ![r] = me]
Go(r, step) == relay' = [relay EXCEPT ![r].at = step]
Freed(locks, r) == [l \in Lanes |-> IF locks[l] = r THEN Nobody ELSE locks[l]]
Rank(x, S) == Cardinality({y \in S : y < x})
First(n, S) == {x \in S : Rank(x, S) < n}
InOrder(S) == [i \in 1..Cardinality(S) |-> CHOOSE x \in S : Rank(x, S) = i - 1]
UpTo(S) == {x \in Rows : \E y \in S : x <= y}
Min(S) == CHOOSE x \in S : \A y \in S : x <= y
Marked(marks) == {l \in Lanes : marks[l] # None}

(* ---- the end of a tenure ---------------------------------------------------------------------- *)

(* The session is closed, and with it go its locks and its open transaction. The producer is thrown
   away; an EndTxn that it had sent may still arrive. *)
Leave(r) ==
    /\ Set(r, Away)
    /\ advisory' = Freed(advisory, r)
    /\ producer' = Freed(producer, r)
    /\ LET id == relay[r].id IN
       IF At(r, "end") /\ producer[id] = r
       THEN \E copies \in {0, 1} : stale' = [stale EXCEPT ![id] = @ + copies]
       ELSE UNCHANGED stale
    /\ UNCHANGED <<tables, owner, backup, topic, marker, txn, staleMarks>>

Mine(r, l) == owner[l] = r \/ ~Has("epoch compare-and-set")
Kept(r) == {l \in relay[r].lanes : Mine(r, l)}
Working(r) == relay[r].lanes \ (relay[r].refused \cup
                                 IF Has("resting lanes left out") THEN relay[r].resting ELSE {})

(* A statement in a session that Postgres has ended. While Kafka is waited for, `tick` finds out. *)
NoticeDeadSession(r) ==
    /\ ~At(r, "away") /\ ~relay[r].session
    /\ Leave(r) /\ UNCHANGED luck

(* lock_lanes, read_lanes: no row with our epoch. A relay without lanes is the same as one that has
   just come. *)
LoseOwnership(r) ==
    /\ relay[r].session /\ Kept(r) = {}
    /\ \/ At(r, "check")
       \/ At(r, "decide") /\ Has("ownership checked under the lock")
       \/ At(r, "work") /\ Has("lane locked before the select") /\ OfLanes(outbox, Working(r)) # {}
       \/ At(r, "renewed") /\ Has("ownership checked after the renewal")
       \/ At(r, "selected")
    /\ Leave(r) /\ UNCHANGED luck

(* A lane that is not the relay's any more is unlocked: the session goes on with the others. *)
Unlock(r, lanes) ==
    LET lost == {l \in Lanes \ lanes : advisory[l] = r} IN
    advisory' = [l \in Lanes |-> IF l \in lost /\ Has("lock of a lost lane released")
                                 THEN Nobody ELSE advisory[l]]

(* What is noted as fenced of these lanes; of the others nothing. *)
Noted(r, lanes) == [l \in Lanes |-> IF l \in lanes THEN relay[r].fenced[l] ELSE {}]

(* What a relay still knows when it recovers. The producer is not used any more. *)
Recovering(r, lanes) ==
    [Away EXCEPT !.at = "check", !.session = relay[r].session, !.lanes = lanes,
                 !.fenced = Noted(r, lanes)]

(* InDoubt. Without the guard the producer in doubt goes on. *)
Doubt(r) ==
    IF Has("new producer after any doubt")
    THEN Set(r, Recovering(r, relay[r].lanes)) /\ producer' = Freed(producer, r)
    ELSE Set(r, [Recovering(r, relay[r].lanes) EXCEPT !.id = relay[r].id]) /\ UNCHANGED producer

(* The set of lanes has changed, and nothing is in doubt. *)
OtherLanes(r, lanes) ==
    IF Has("new producer when the set changes")
    THEN Set(r, Recovering(r, lanes)) /\ producer' = Freed(producer, r)
    ELSE /\ Set(r, [Recovering(r, lanes) EXCEPT !.id = relay[r].id, !.disturbed = relay[r].disturbed])
         /\ UNCHANGED producer

(* ---- ownership: Ownership.adjust -------------------------------------------------------------- *)

(* lanes.try_lock; store.take_lane, whose UPDATE waits for the lock of the lane's row. *)
Take(r, l) ==
    /\ l \notin relay[r].lanes
    /\ At(r, "away") \/ (relay[r].session /\ relay[r].at \in {"check", "work"})
    /\ advisory[l] = Nobody
    /\ advisory' = IF Has("advisory lock") THEN [advisory EXCEPT ![l] = r] ELSE advisory
    /\ owner' = [owner EXCEPT ![l] = r]
    /\ IF At(r, "away")
       THEN Set(r, [Away EXCEPT !.at = "check", !.session = TRUE, !.lanes = {l}]) /\ UNCHANGED producer
       ELSE OtherLanes(r, relay[r].lanes \cup {l})
    /\ UNCHANGED <<tables, backup, topic, marker, txn, stale, staleMarks, luck>>

(* ---- recovery: Tenure._recover ---------------------------------------------------------------- *)

(* Only where that guard is taken out. *)
Keeps(r) == ~Has("new producer when the set changes") /\ Has("new producer after any doubt")
            /\ relay[r].id # 0 /\ ~relay[r].disturbed

BeforeRead == IF Has("fence before the marker is read") THEN "fence" ELSE "read"
AfterFence == IF Has("fence before the marker is read") THEN "read" ELSE "decide"

(* read_lanes: forget the lanes that are lost, and read the others' transactional_lanes. A row that was restored
   may name an old one. *)
CheckOwners(r) ==
    /\ At(r, "check")
    /\ ~Has("ownership checked before the fence") \/ (relay[r].session /\ Kept(r) # {})
    /\ LET lanes == IF Has("ownership checked before the fence") THEN Kept(r) ELSE relay[r].lanes
           needed == [l \in Lanes |->
                        IF l \notin lanes \/ ~Has("earlier ids fenced") THEN {}
                        ELSE IF lane[l].restored /\ Has("all ids fenced after a restore") THEN Lanes
                        ELSE {lane[l].transactional_lane}]
           earlier == UNION {needed[l] \ relay[r].fenced[l] : l \in lanes}
           ids == IF Keeps(r) THEN earlier \ {relay[r].id} ELSE earlier \cup {Min(lanes)}
       IN /\ Set(r, [relay[r] EXCEPT !.lanes = lanes, !.fence = ids, !.fenced = Noted(r, lanes),
                      !.at = IF ids = {} THEN "read" ELSE BeforeRead])
          /\ Unlock(r, lanes)
    /\ UNCHANGED <<tables, owner, backup, kafka, luck>>

(* Publisher.start: InitProducerId refuses every older producer of the id from now on and ends its
   open transaction. Without the guard the producer in doubt goes on, after it has aborted its own. *)
NewProducer(r, id) ==
    /\ txn' = [txn EXCEPT ![id] = NoTxn] /\ producer' = [Freed(producer, r) EXCEPT ![id] = r]
    /\ UNCHANGED <<topic, marker>>
    /\ IF producer[id] = r /\ ~Has("new producer after any doubt") THEN UNCHANGED <<stale, staleMarks>>
       ELSE stale' = [stale EXCEPT ![id] = 0] /\ staleMarks' = [staleMarks EXCEPT ![id] = NoMarks]

(* From now on no producer of the id is good any more. *)
Refuse(id) ==
    /\ txn' = [txn EXCEPT ![id] = NoTxn] /\ producer' = [producer EXCEPT ![id] = Nobody]
    /\ stale' = [stale EXCEPT ![id] = 0] /\ staleMarks' = [staleMarks EXCEPT ![id] = NoMarks]
    /\ UNCHANGED <<topic, marker>>

(* The ids that are fenced by a producer that is thrown away at once; last the relay's own. *)
Earlier(r) == IF Keeps(r) THEN relay[r].fence ELSE relay[r].fence \ {Min(relay[r].lanes)}

(* Publisher.fence. Noted at once: a relay that tries again does not disturb who works by now. *)
FenceEarlier(r) ==
    /\ At(r, "fence") /\ Earlier(r) # {}
    /\ LET id == Min(Earlier(r))
           rest == relay[r].fence \ {id}
       IN /\ Refuse(id)
          /\ Set(r, [relay[r] EXCEPT
                !.fence = rest,
                !.fenced = [l \in Lanes |-> IF l \in relay[r].lanes /\ Has("earlier ids fenced once")
                                            THEN @[l] \cup {id} ELSE @[l]],
                !.at = IF rest # {} THEN "fence" ELSE AfterFence])
    /\ UNCHANGED <<postgres, luck>>

Fence(r) ==
    /\ At(r, "fence") /\ Earlier(r) = {} /\ r \notin StartsFail
    /\ LET id == Min(relay[r].lanes) IN
       /\ NewProducer(r, id)
       /\ Set(r, [relay[r] EXCEPT
            !.id = id, !.disturbed = FALSE, !.fence = {}, !.at = AfterFence])
    /\ UNCHANGED <<postgres, luck>>

StartTimesOut(r) ==
    /\ At(r, "fence") /\ Earlier(r) = {} /\ r \in StartsFail
    /\ Doubt(r)
    /\ UNCHANGED <<postgres, topic, marker, txn, stale, staleMarks, luck>>

Pending(i) == txn[i].open /\ Marked(txn[i].marks) # {}
MarkerPending(l) == \E i \in Lanes : txn[i].open /\ txn[i].marks[l] # None
Held(r) == r \in ReadsFail \/ \E l \in relay[r].lanes : MarkerPending(l)

(* Publisher.read_markers: the broker does not answer while a marker is in an open transaction. *)
ReadMarkers(r) ==
    /\ At(r, "read") /\ ~Held(r)
    /\ Set(r, [relay[r] EXCEPT
            !.seen = [l \in Lanes |-> IF l \in relay[r].lanes THEN marker[l] ELSE None],
            !.at = IF Has("fence before the marker is read") THEN "decide" ELSE "fence"])
    /\ UNCHANGED <<postgres, kafka, luck>>

(* It times out. The recovery begins again. *)
ReadTimesOut(r) ==
    /\ At(r, "read") /\ Held(r)
    /\ Doubt(r)
    /\ UNCHANGED <<postgres, topic, marker, txn, stale, staleMarks, luck>>

Outcome(seen, batch_number) ==
    CASE seen = None /\ batch_number = 0 -> "new_lane"
      [] seen = None /\ batch_number > 0 -> "marker_missing"
      [] seen # None /\ seen = batch_number -> "published"
      [] seen # None /\ seen = batch_number - 1 -> "not_published"
      [] OTHER -> "marker_ahead or marker_behind"

FirstOfKafka == IF Strict THEN "renew" ELSE IF Has("marker last") THEN "produce" ELSE "mark"

(* recovery.decide: under the locks of the lanes' rows. It writes who carries the lanes from now on,
   before anything of them goes out. rest: lanes that are to be sent again, and are left out. *)
DecideBut(r, rest) ==
    /\ At(r, "decide") /\ relay[r].session
    /\ LET me == relay[r]
           lanes == IF Has("ownership checked under the lock") THEN Kept(r) ELSE me.lanes
           outcome == [l \in lanes |-> Outcome(me.seen[l], lane[l].batch_number)]
           unsent == {l \in lanes : outcome[l] \in {"new_lane", "not_published"}}
           again == unsent \ rest
           refused == IF ~Has("refusal") THEN {}
                      ELSE {l \in lanes : outcome[l] = "marker_ahead or marker_behind"
                                          \/ outcome[l] = "marker_missing"}
       IN /\ lanes # {} /\ rest \subseteq unsent /\ Unlock(r, lanes)
          /\ Set(r, [me EXCEPT
                !.at = IF again = {} THEN "work" ELSE FirstOfKafka,
                !.lanes = lanes, !.refused = refused, !.resting = rest,
                !.fenced = Away.fenced, !.seen = NoMarks,
                !.disturbed = @ \/ lanes # me.lanes,
                !.batch_number = [l \in Lanes |-> IF l \in lanes THEN lane[l].batch_number ELSE 0],
                !.marks = [l \in Lanes |-> IF l \in again THEN lane[l].batch_number ELSE None],
                !.batch = UNION {lane[l].inflight \cap outbox : l \in again}])
          /\ lane' = IF ~Has("transactional_lane committed first") THEN lane
                     ELSE [l \in Lanes |-> IF l \in lanes /\ Mine(r, l)
                                           THEN [lane[l] EXCEPT !.transactional_lane = me.id, !.restored = FALSE]
                                           ELSE lane[l]]
    /\ UNCHANGED <<outbox, unborn, owner, backup, kafka>>

Decide(r) == DecideBut(r, {}) /\ UNCHANGED luck

(* ---- the way of a batch: Tenure.run_once ------------------------------------------------------ *)

Renews(r) == relay[r].disturbed /\ Has("new producer after a silent disconnect")

(* The cycle ends when the producer was disturbed (and what it published is acknowledged). *)
Renew(r) ==
    /\ At(r, "work") /\ OfLanes(outbox, Working(r)) = {} /\ Renews(r)
    /\ Doubt(r)
    /\ UNCHANGED <<postgres, topic, marker, txn, stale, staleMarks, luck>>

(* A lane has rested. *)
EndRest(r) ==
    /\ At(r, "work") /\ relay[r].resting # {}
    /\ Doubt(r)
    /\ UNCHANGED <<postgres, topic, marker, txn, stale, staleMarks, luck>>

(* What `claim` leaves to others: FOR UPDATE SKIP LOCKED passes over the rows of a transaction that
   read before it had the lock of the lane's row. *)
Skipped(r) == UNION {relay[o].batch : o \in {o \in Relays \ {r} :
                        At(o, "selected") /\ relay[o].session}}

(* Without the guard the rows are selected first, and the epoch is compared when the lane's row is
   written. *)
Select(r) ==
    /\ At(r, "work") /\ relay[r].session /\ ~Has("lane locked before the select")
    /\ OfLanes(outbox, Working(r)) # {}
    /\ Set(r, [relay[r] EXCEPT !.at = "selected",
            !.batch = UNION {First(BatchSize, (Of(outbox, l) \ lane[l].inflight) \ Skipped(r))
                             : l \in Working(r)}])
    /\ UNCHANGED <<postgres, kafka, luck>>

(* lock_lanes succeeds. *)
Locks(r) ==
    /\ relay[r].session /\ Kept(r) # {}
    /\ IF Has("lane locked before the select")
       THEN At(r, "work") /\ OfLanes(outbox, Working(r)) # {}
       ELSE At(r, "selected")

(* Tenure._active: lanes with rows, but for those whose rows somebody else holds for a moment. *)
Active(r) == IF Has("lane locked before the select")
             THEN SUBSET {l \in Working(r) : Of(outbox, l) # {}} \ {{}}
             ELSE {Working(r)}

(* The batch before, as Postgres knows it; as the process remembers it where it is not written. *)
SeqBefore(r, l) == IF Has("inflight committed first") THEN lane[l].batch_number ELSE relay[r].batch_number[l]
InflightBefore(r, l) == IF Has("inflight committed first") THEN lane[l].inflight
                        ELSE Of(relay[r].batch, l)

Acknowledged(r, l) == IF Has("acknowledge by id") THEN InflightBefore(r, l)
                 ELSE Of(UpTo(InflightBefore(r, l)) \cap outbox, l)

Claimed(r, l) ==
    IF Renews(r) THEN {}
    ELSE IF Has("lane locked before the select")
    THEN First(BatchSize, (Of(outbox, l) \ Acknowledged(r, l)) \ Skipped(r))
    ELSE Of(relay[r].batch, l)

SeqAfter(r, l) == SeqBefore(r, l) + (IF Claimed(r, l) = {} THEN 0 ELSE 1)

(* acknowledge, claim, begin_batches; COMMIT. *)
Commit(r, active) ==
    /\ outbox' = outbox \ UNION {Acknowledged(r, l) : l \in active \cap Kept(r)}
    /\ lane' = [l \in Lanes |->
            IF l \notin active \cap Kept(r) THEN lane[l]
            ELSE IF Has("inflight committed first")
            THEN [lane[l] EXCEPT !.transactional_lane = relay[r].id,
                                 !.batch_number = SeqAfter(r, l), !.inflight = Claimed(r, l)]
            ELSE [lane[l] EXCEPT !.transactional_lane = relay[r].id,
                                 !.batch_number = SeqBefore(r, l), !.inflight = {}]]
    /\ UNCHANGED unborn

(* A lane that is lost drops out, and the producer is renewed before the next batch. *)
GoOnWithBatch(r, active) ==
    LET lost == active \ Kept(r)
        lanes == relay[r].lanes \ lost
        new == {l \in active \ lost : Claimed(r, l) # {}}
    IN /\ Unlock(r, lanes)
       /\ IF new = {} /\ (Renews(r) \/ lost # {})
          THEN /\ Set(r, Recovering(r, lanes))
               /\ producer' = Freed(producer, r)
          ELSE /\ Set(r, [relay[r] EXCEPT
                    !.lanes = lanes,
                    !.batch_number = [l \in Lanes |-> IF l \in active \ lost THEN SeqAfter(r, l)
                                             ELSE IF l \in lanes THEN @[l] ELSE 0],
                    !.batch = UNION {Claimed(r, l) : l \in new},
                    !.marks = [l \in Lanes |-> IF l \in new THEN SeqAfter(r, l) ELSE None],
                    !.disturbed = @ \/ lost # {},
                    !.at = IF new = {} THEN "work" ELSE FirstOfKafka])
               /\ UNCHANGED producer

AcknowledgeAndClaim(r) ==
    /\ Locks(r)
    /\ \E active \in Active(r) : Commit(r, active) /\ GoOnWithBatch(r, active)
    /\ UNCHANGED <<owner, backup, topic, marker, txn, stale, staleMarks, luck>>

(* Tenure._renew_producer, with strict_fencing only: Publisher.start; read_lanes. *)
RenewProducer(r) ==
    /\ At(r, "renew")
    /\ NewProducer(r, relay[r].id)
    /\ Set(r, [relay[r] EXCEPT !.disturbed = FALSE, !.at = "renewed"])
    /\ UNCHANGED <<postgres, luck>>

(* What is lost drops out of the batch; the rest is sent. *)
CheckOwnersAgain(r) ==
    /\ At(r, "renewed")
    /\ LET lanes == IF Has("ownership checked after the renewal") THEN Kept(r) ELSE relay[r].lanes IN
       /\ Has("ownership checked after the renewal") => relay[r].session /\ lanes # {}
       /\ Set(r, [relay[r] EXCEPT
            !.lanes = lanes, !.refused = @ \cap lanes, !.resting = @ \cap lanes,
            !.batch = OfLanes(@, lanes),
            !.batch_number = [l \in Lanes |-> IF l \in lanes THEN @[l] ELSE 0],
            !.marks = [l \in Lanes |-> IF l \in lanes THEN @[l] ELSE None],
            !.disturbed = @ \/ lanes # relay[r].lanes,
            !.at = IF Marked(relay[r].marks) \cap lanes = {} THEN "work"
                   ELSE IF Has("marker last") THEN "produce" ELSE "mark"])
       /\ Unlock(r, lanes)
    /\ UNCHANGED <<tables, owner, backup, kafka, luck>>

CanSend(r) == producer[relay[r].id] = r

(* Publisher.publish: begin_transaction, produce, flush. *)
Produce(r) ==
    /\ At(r, "produce") /\ CanSend(r)
    /\ LET rows == relay[r].batch IN
       IF Has("marker in the records' transaction")
       THEN /\ txn' = IF rows = {} THEN txn
                      ELSE [txn EXCEPT ![relay[r].id].open = TRUE, ![relay[r].id].rows = rows]
            /\ UNCHANGED topic
       ELSE topic' = [l \in Lanes |-> topic[l] \o InOrder(Of(rows, l))] /\ UNCHANGED txn
    /\ Go(r, IF Has("marker last") THEN "mark" ELSE "end")
    /\ UNCHANGED <<postgres, marker, producer, stale, staleMarks, luck>>

With(marks, more) == [l \in Lanes |-> IF more[l] # None THEN more[l] ELSE marks[l]]

(* Publisher._mark: send_offsets_to_transaction, with the markers of all lanes of the batch. If a
   stale EndTxn has ended the transaction, the coordinator opens another. *)
AddMarkers(r) ==
    /\ At(r, "mark") /\ CanSend(r)
    /\ LET id == relay[r].id IN
       txn' = [txn EXCEPT ![id].open = TRUE, ![id].marks = With(@, relay[r].marks)]
    /\ UNCHANGED <<postgres, topic, marker, producer, stale>>

AfterMark == IF Has("marker last") THEN "end" ELSE "produce"

Mark(r) ==
    /\ AddMarkers(r) /\ Go(r, AfterMark)
    /\ UNCHANGED <<staleMarks, luck>>

(* The coordinator carries out EndTxn(commit). Repeated on what is ended, it answers: done. *)
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
    /\ UNCHANGED <<postgres, producer, stale, staleMarks, luck>>

(* A newer producer has fenced this one: InDoubt. *)
Fenced(r) ==
    /\ relay[r].at \in {"produce", "mark", "end"} /\ ~CanSend(r)
    /\ Doubt(r)
    /\ UNCHANGED <<postgres, topic, marker, txn, stale, staleMarks, luck>>

Step(r) ==
    \/ \E l \in Lanes : Take(r, l)
    \/ NoticeDeadSession(r) \/ LoseOwnership(r)
    \/ CheckOwners(r) \/ FenceEarlier(r) \/ Fence(r) \/ StartTimesOut(r)
    \/ ReadMarkers(r) \/ ReadTimesOut(r) \/ Decide(r)
    \/ Renew(r) \/ EndRest(r) \/ Select(r) \/ AcknowledgeAndClaim(r) \/ RenewProducer(r) \/ CheckOwnersAgain(r)
    \/ Produce(r) \/ Mark(r) \/ CommitTransaction(r) \/ Fenced(r)

(* The consumer's transaction with a row of a lower id than others commits at last. *)
Insert == \E row \in unborn :
    /\ outbox' = outbox \cup {row} /\ unborn' = unborn \ {row}
    /\ UNCHANGED <<lane, owner, advisory, backup, kafka, relay, luck>>

(* ---- Faults ----------------------------------------------------------------------------------- *)

Fault(kind) ==
    /\ kind \in Kinds /\ faults > 0 /\ faults' = faults - 1
    /\ UNCHANGED <<crashes, history>>

(* Not a fault, but rare: a lane is given up between two batches. One transaction acknowledges it
   (Tenure._acknowledge), and nothing of it is in the air: it is its own transactional_lane again. *)
GiveUp(r, l) ==
    /\ Fault("lane given up") /\ At(r, "work") /\ relay[r].session /\ ~relay[r].disturbed
    /\ l \in Working(r) /\ Mine(r, l)
    /\ outbox' = outbox \ Acknowledged(r, l)
    /\ lane' = [lane EXCEPT ![l].inflight = {},
                    ![l].transactional_lane = IF Has("transactional_lane given back") THEN l ELSE @]
    /\ IF relay[r].lanes = {l} THEN Set(r, Away) /\ producer' = Freed(producer, r)
       ELSE OtherLanes(r, relay[r].lanes \ {l})
    /\ advisory' = [advisory EXCEPT ![l] = IF @ = r THEN Nobody ELSE @]
    /\ UNCHANGED <<unborn, owner, backup, topic, marker, txn, stale, staleMarks>>

(* The same in doubt: nothing is written. *)
LetGo(r, l) ==
    /\ Fault("lane given up") /\ At(r, "check") /\ relay[r].session
    /\ l \in relay[r].lanes
    /\ Set(r, IF relay[r].lanes = {l} THEN Away ELSE Recovering(r, relay[r].lanes \ {l}))
    /\ advisory' = [advisory EXCEPT ![l] = IF @ = r THEN Nobody ELSE @]
    /\ producer' = Freed(producer, r)
    /\ UNCHANGED <<tables, owner, backup, topic, marker, txn, stale, staleMarks>>

(* Not a fault of the protocol's: the topic of a lane's rows is missing, or they may not be sent to it. *)
Rest(r) == \E rest \in SUBSET Lanes \ {{}} : Fault("lane rests") /\ DecideBut(r, rest)

(* kill -9. The kernel closes the sockets, so Postgres ends the session at once. *)
Crash(r) ==
    /\ ~At(r, "away") /\ crashes > 0 /\ crashes' = crashes - 1
    /\ Leave(r) /\ UNCHANGED <<faults, history>>

(* Postgres ends the session of a relay that is frozen or cut off; that one goes on as a zombie. *)
EndSession(r) ==
    /\ Fault("session ends in silence") /\ relay[r].session
    /\ relay' = [relay EXCEPT ![r].session = FALSE]
    /\ advisory' = Freed(advisory, r)
    /\ UNCHANGED <<tables, owner, backup, kafka>>

(* All sessions end, and nothing is lost; but a row cannot tell this from a restore. *)
RestartPostgres ==
    /\ Fault("Postgres restarted")
    /\ lane' = [l \in Lanes |-> [lane[l] EXCEPT !.restored = TRUE]]
    /\ relay' = [r \in Relays |-> [relay[r] EXCEPT !.session = FALSE]]
    /\ advisory' = [l \in Lanes |-> Nobody]
    /\ UNCHANGED <<outbox, unborn, owner, backup, kafka>>

(* A lock is gone and the session is not: a pooler, pg_advisory_unlock_all, a bug of ours. *)
LoseLock(r, l) ==
    /\ Fault("advisory lock lost") /\ advisory[l] = r
    /\ advisory' = [advisory EXCEPT ![l] = Nobody]
    /\ UNCHANGED <<tables, owner, backup, kafka, relay>>

(* A repair takes the lane from its owner, and leaves. (It waits for the lock in between.) *)
RaiseEpoch(l) ==
    /\ Fault("epoch raised by a repair") /\ owner[l] # Nobody
    /\ owner' = [owner EXCEPT ![l] = Nobody]
    /\ UNCHANGED <<tables, advisory, backup, kafka, relay>>

(* COMMIT was carried out and the relay does not learn it. (Not carried out: EndSession.) A COMMIT
   that still runs holds the lanes' rows, so nobody can tell it from one that is done. Of
   the COMMITs of Decide and GiveUp the same is a Crash right after them. *)
LoseReplyOfCommit(r) ==
    /\ Fault("reply of COMMIT lost") /\ Locks(r)
    /\ \E active \in Active(r) : Commit(r, active)
    /\ Set(r, Away)
    /\ advisory' = Freed(advisory, r) /\ producer' = Freed(producer, r)
    /\ UNCHANGED <<owner, backup, topic, marker, txn, stale, staleMarks>>

(* COMMIT answers ROLLBACK. With the guard the process ends, as in Crash. *)
AnswerRollback(r) ==
    /\ Fault("COMMIT answers ROLLBACK") /\ Locks(r)
    /\ IF Has("command tag of COMMIT") THEN Leave(r)
       ELSE /\ \E active \in Active(r) : GoOnWithBatch(r, active)
            /\ UNCHANGED <<tables, owner, backup, topic, marker, txn, stale, staleMarks>>

(* Any error or time-out of a Kafka call that had no effect: InDoubt. *)
KafkaError(r) ==
    /\ Fault("Kafka error") /\ relay[r].at \in {"fence", "read", "renew", "produce", "mark", "end"}
    /\ Doubt(r)
    /\ UNCHANGED <<postgres, topic, marker, txn, stale, staleMarks>>

LoseReplyOfEndTxn(r) ==
    /\ Fault("reply of EndTxn lost") /\ At(r, "end") /\ CanSend(r)
    /\ EndTxn(relay[r].id)
    /\ Doubt(r)
    /\ UNCHANGED <<postgres, stale, staleMarks>>

(* The call times out while the request is still under way. *)
DelayEndTxn(r) ==
    /\ Fault("EndTxn delayed") /\ At(r, "end") /\ CanSend(r)
    /\ stale' = [stale EXCEPT ![relay[r].id] = @ + 1]
    /\ Doubt(r)
    /\ UNCHANGED <<postgres, topic, marker, txn, staleMarks>>

(* The connection breaks, librdkafka repeats EndTxn on a new one and reports success; the first copy
   is still under way. *)
RepeatEndTxn(r) ==
    /\ Fault("EndTxn repeated in silence") /\ At(r, "end") /\ CanSend(r)
    /\ EndTxn(relay[r].id) /\ stale' = [stale EXCEPT ![relay[r].id] = @ + 1]
    /\ Set(r, [Published(r) EXCEPT !.disturbed = TRUE])
    /\ UNCHANGED <<postgres, producer, staleMarks>>

(* The same with the request that carries the markers. *)
RepeatMark(r) ==
    /\ Fault("TxnOffsetCommit repeated in silence") /\ AddMarkers(r)
    /\ staleMarks' = [staleMarks EXCEPT ![relay[r].id] = relay[r].marks]
    /\ Set(r, [relay[r] EXCEPT !.at = AfterMark, !.disturbed = TRUE])

(* A copy arrives. Kafka cannot tell which transaction of this producer it was meant for. *)
DeliverStaleEndTxn == \E id \in Lanes :
    /\ stale[id] > 0 /\ stale' = [stale EXCEPT ![id] = @ - 1]
    /\ EndTxn(id)
    /\ UNCHANGED <<postgres, producer, staleMarks, relay, luck>>

DeliverStaleMarks == \E id \in Lanes :
    /\ staleMarks[id] # NoMarks /\ staleMarks' = [staleMarks EXCEPT ![id] = NoMarks]
    /\ txn' = IF Pending(id) THEN [txn EXCEPT ![id].marks = With(@, staleMarks[id])] ELSE txn
    /\ UNCHANGED <<postgres, topic, marker, producer, stale, relay, luck>>

(* transaction.timeout.ms: the coordinator aborts and fences the producer. *)
TimeOutTransaction == \E id \in Lanes :
    /\ Fault("transaction times out") /\ txn[id].open
    /\ Refuse(id)
    /\ UNCHANGED <<postgres, relay>>

(* Not a fault, only rare: idle lanes commit their markers again. Tenure._idle *)
RefreshMarkers(r) ==
    LET idle == {l \in Working(r) : Of(outbox, l) = {}} IN
    /\ Fault("marker refreshed") /\ At(r, "work") /\ idle # {} /\ ~Renews(r)
    /\ Set(r, [relay[r] EXCEPT !.at = FirstOfKafka,
            !.marks = [l \in Lanes |-> IF l \in idle THEN relay[r].batch_number[l] ELSE None]])
    /\ UNCHANGED <<postgres, kafka>>

Backup ==
    /\ "Postgres restored" \in Kinds /\ backup = Nobody /\ ~history
    /\ backup' = [outbox |-> outbox, unborn |-> unborn, lane |-> lane]
    /\ UNCHANGED <<tables, owner, advisory, kafka, relay, luck>>

(* Every session ends. The consumer will read again and insert again what the backup does not have. *)
Restore ==
    /\ backup # Nobody /\ ~history /\ history' = TRUE
    /\ outbox' = backup.outbox /\ unborn' = backup.unborn
    /\ lane' = [l \in Lanes |-> [backup.lane[l] EXCEPT !.restored = TRUE]]
    /\ owner' = [l \in Lanes |-> Nobody] /\ advisory' = [l \in Lanes |-> Nobody] /\ backup' = Nobody
    /\ relay' = [r \in Relays |-> [relay[r] EXCEPT !.session = FALSE]]
    /\ UNCHANGED <<kafka, crashes, faults>>

(* The group's offsets expired, or were deleted. *)
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
        \/ RepeatMark(r) \/ RefreshMarkers(r) \/ Rest(r)
        \/ \E l \in Lanes : LoseLock(r, l) \/ GiveUp(r, l) \/ LetGo(r, l)

Next == Environment \/ \E r \in Relays : Step(r)

(* Every relay goes on, every INSERT commits; faults and late requests may happen or not. *)
Fairness == WF_vars(Insert) /\ \A r \in Relays : WF_vars(Step(r))

Spec == Init /\ [][Next]_vars
FairSpec == Spec /\ Fairness

(* ---- What must hold --------------------------------------------------------------------------- *)

Visible(l) == {topic[l][i] : i \in DOMAIN topic[l]}

NoDuplicate == \A l \in Lanes : Cardinality(Visible(l)) = Len(topic[l])

(* A row that is no longer in the outbox is in the topic. *)
NoLoss == \A l \in Lanes : Of(Rows \ (outbox \cup unborn), l) \subseteq Visible(l)

(* Rows that commit in the order of their ids may have one key; a late one has another. *)
OrderPerKey == \A l \in Lanes : \A i, j \in DOMAIN topic[l] :
    (i < j /\ {topic[l][i], topic[l][j]} \cap Late = {}) => topic[l][i] <= topic[l][j]

NoFalseRefusal == history \/ \A r \in Relays : relay[r].refused = {}

EveryRowAcknowledged == <>[](outbox = {} /\ unborn = {})

(* In the end nobody recovers any more: the relays do not fence each other for ever. *)
Calm == <>[](\A r \in Relays : relay[r].at \in {"work", "away"})

(* An owner whose calls are answered gets its work done, whatever a relay does that is not the owner. *)
OwnerGetsOn == \A r \in Relays \ (ReadsFail \cup StartsFail) : \A l \in Lanes :
    <>[](advisory[l] = r) => <>[](OfLanes(outbox, {l}) = {})

Symmetry == Permutations(Relays)
=============================================================================
