------------------------------- MODULE Relay -------------------------------
(* How the relays bring the lanes of the outbox from Postgres to Kafka, and which faults may happen
   between any two steps. The names are those of the code in outbox/; README.md has a table of both,
   and says what is not modelled.

   Abstractions that keep the model finite without losing a behaviour:
   - An epoch is only ever compared for equality with the newest one. So a lane's row holds the
     relay whose epoch it is (`owner`), and Kafka the relay whose producer epoch is the newest
     (`producer`); Kafka rejects requests of older producers, so the model does not keep them.
   - A transaction that holds the rows of its lanes locked is one step, from the lock to its COMMIT:
     nothing that it reads can change in between, except that rows are added, as if it had read later.
   - Order matters only within a lane, so the topic is kept lane by lane, with all its partitions.
   - A batch's token is random; here it is the batch number with the history that it belongs to. *)
EXTENDS Integers, Sequences, FiniteSets, TLC

CONSTANTS
    Relays,     \* the processes; one that is not the owner is a zombie or a successor
    Lanes,      \* 1..n; also the transactional ids: a relay uses that of its lowest lane
    Rows,       \* ids of the messages
    Late,       \* rows whose INSERT commits after rows with higher ids
    Places,     \* the number of partitions of the output topic
    BatchSize,  \* rows of a lane in a batch
    Crashes,    \* how often a relay crashes (kill -9), at any step
    Faults,     \* how many other faults happen, at any step
    Kinds,      \* which ones: see "Faults" below
    Without,    \* the guards that are removed: none in the protocol as it is
    Strict,     \* strict_fencing: a new producer for every batch
    ReadsFail,  \* relays that never get an answer when they read evidence
    StartsFail, \* relays whose transaction coordinator never answers
    NoRelay,
    Twin        \* the relay of a copy of the database

Has(guard) == guard \notin Without
Numbers == IF Without = {} THEN 30 ELSE 9   \* then batch numbers begin again, for relays that never rest

VARIABLES
    \* Postgres, as committed
    outbox,     \* rows inserted and not acknowledged
    uncommitted, \* rows whose INSERT has not committed yet
    lane,       \* the lane rows
    owner,      \* per lane the relay whose epoch its row holds
    advisory,   \* per lane the relay that holds its advisory lock
    backup,     \* an older state of the tables, or NoRelay
    twin,       \* a copy of the tables that another relay works on
    \* Kafka
    topic,      \* per lane the ids that a read_committed reader sees, in order
    markers,    \* per lane its committed markers, in order
    deleted,    \* per lane how many records at the topic's start retention has deleted
    \* and per transactional id, for its newest producer:
    txn,        \* the open transaction
    producer,   \* the relay that has this producer, NoRelay if it is gone
    stale,      \* copies of EndTxn(commit) that have not arrived yet
    copies,     \* copies of WriteTxnMarkers that have not arrived yet
    \* the relays' memory
    relay,
    \* how many faults may still happen
    crashes, faults,
    history,    \* Postgres or Kafka lost something that it had committed, or there are two histories
    away        \* partitions of topics that cannot be written to; their rows wait in the outbox

vars == <<outbox, uncommitted, lane, owner, advisory, backup, twin,
          topic, markers, deleted, txn, producer, stale, copies, relay, crashes, faults, history, away>>
tables == <<outbox, uncommitted, lane>>
postgres == <<outbox, uncommitted, lane, owner, advisory, backup, twin>>
logs == <<topic, markers, deleted>>
kafka == <<topic, markers, deleted, txn, producer, stale, copies>>
faultState == <<crashes, faults, history, away>>

(* The names of batches. Two batches of one history never have the same number. *)
Token(number, origin) == [number |-> number, origin |-> origin]
FirstToken == Token(0, "original")  \* of a lane that had no batch yet
None == Token(-1, "none")           \* no marker
NoMarks == [l \in Lanes |-> None]
NoTxn == [ending |-> FALSE, rows |-> {}, marks |-> NoMarks]

(* at: the next step; session: whether Postgres still keeps the session (the relay cannot know);
   lanes: the lanes that it believes to own; refused: those that wait for an operator; backingOff:
   those that could not be published, and are left out until the next recovery;
   id: the transactional id of its producer, 0 if it has none; needsRenewal: the producer must be
   renewed before the next batch, because it lost a connection in silence or a lane was lost;
   fence: the ids that must still be fenced; fenced: per lane the ids that were fenced for it;
   rowsEnd, marksEnd: per lane how many records were there at the barrier; seen: the markers as read;
   found: the rows in flight that the search has found; unsearched: lanes whose search is held up;
   marks: the markers of the current batch; batch: its rows. Only without the guards that need them:
   noted: where the search begins; last: the lanes' last batches. *)
Zero == [l \in Lanes |-> 0]
Disconnected ==
    [at |-> "disconnected", session |-> FALSE, lanes |-> {}, refused |-> {}, backingOff |-> {},
     id |-> 0, needsRenewal |-> FALSE, fence |-> {}, fenced |-> [l \in Lanes |-> {}],
     noted |-> Zero, rowsEnd |-> Zero, marksEnd |-> Zero, seen |-> NoMarks, found |-> {},
     unsearched |-> {}, marks |-> NoMarks, batch |-> {}, last |-> [l \in Lanes |-> FirstToken]]

LaneOf(row) == 1 + ((row - 1) % Cardinality(Lanes))
PlaceOf(row) == 1 + (((row - 1) \div Cardinality(Lanes)) % Places)
Of(S, l) == {row \in S : LaneOf(row) = l}
OfLanes(S, L) == {row \in S : LaneOf(row) \in L}

NewLane(l) == [token |-> FirstToken, marker_token |-> FirstToken, inflight |-> {}, search_start |-> 0,
               transactional_lane |-> l, restored |-> FALSE]

Init ==
    /\ outbox = Rows \ Late /\ uncommitted = Late
    /\ lane = [l \in Lanes |-> NewLane(l)]
    /\ owner = [l \in Lanes |-> NoRelay] /\ advisory = [l \in Lanes |-> NoRelay] /\ backup = NoRelay
    /\ twin = [at |-> "none"]
    /\ topic = [l \in Lanes |-> <<>>] /\ markers = [l \in Lanes |-> <<>>] /\ deleted = Zero
    /\ txn = [i \in Lanes |-> NoTxn] /\ producer = [i \in Lanes |-> NoRelay]
    /\ stale = [i \in Lanes |-> 0] /\ copies = [i \in Lanes |-> {}]
    /\ relay = [r \in Relays |-> Disconnected]
    /\ crashes = Crashes /\ faults = Faults /\ history = FALSE /\ away = {}

At(r, step) == relay[r].at = step
Set(r, me) == relay' = [relay EXCEPT ![r] = me]
GoTo(r, step) == relay' = [relay EXCEPT ![r].at = step]
Released(locks, r) == [l \in Lanes |-> IF locks[l] = r THEN NoRelay ELSE locks[l]]
Rank(x, S) == Cardinality({y \in S : y < x})
First(n, S) == {x \in S : Rank(x, S) < n}
InOrder(S) == [i \in 1..Cardinality(S) |-> CHOOSE x \in S : Rank(x, S) = i - 1]
UpTo(S) == {x \in Rows : \E y \in S : x <= y}
Max(S) == CHOOSE x \in S : \A y \in S : x >= y
Min(S) == CHOOSE x \in S : \A y \in S : x <= y
Marked(marks) == {l \in Lanes : marks[l] # None}
LastOf(seq) == IF seq = <<>> THEN None ELSE seq[Len(seq)]
InSeq(seq) == {seq[i] : i \in DOMAIN seq}
Visible(l) == InSeq(topic[l])

(* ---- a transaction in Kafka ------------------------------------------------------------------- *)

(* Partitions: 1..Places of the output topic; -l is that of lane l on the marker topic. *)
Partitions == (1..Places) \cup {-l : l \in Lanes}
RowsAt(S, p) == {row \in S : PlaceOf(row) = p}
HasPart(id, p) == IF p < 0 THEN txn[id].marks[-p] # None ELSE RowsAt(txn[id].rows, p) # {}
Open(id) == \E p \in Partitions : HasPart(id, p)
WithoutParts(t, partitions) ==
    LET rows == {row \in t.rows : PlaceOf(row) \notin partitions}
        marks == [l \in Lanes |-> IF -l \in partitions THEN None ELSE t.marks[l]]
    IN IF rows = {} /\ marks = NoMarks THEN NoTxn ELSE [t EXCEPT !.rows = rows, !.marks = marks]

(* The coordinator executes EndTxn(commit): it is answered at once, and the partitions are told later.
   Repeated after the end, it is answered with success. *)
EndTxn(id) == txn' = IF Open(id) THEN [txn EXCEPT ![id].ending = TRUE] ELSE txn

(* WriteTxnMarkers(COMMIT) reaches partitions: what they have of the open transaction is visible. *)
CommitParts(id, partitions) ==
    LET rows == UNION {RowsAt(txn[id].rows, p) : p \in partitions} IN
    /\ txn' = [txn EXCEPT ![id] = WithoutParts(@, partitions)]
    /\ topic' = [l \in Lanes |-> topic[l] \o InOrder(Of(rows, l))]
    /\ markers' = [l \in Lanes |-> IF -l \in partitions /\ txn[id].marks[l] # None
                                   THEN Append(markers[l], txn[id].marks[l]) ELSE markers[l]]
    /\ UNCHANGED deleted

(* One partition after the other. No step can tell that from one step for all: reads and fences wait. *)
WriteTxnMarkers(id) ==
    /\ txn[id].ending
    /\ CommitParts(id, Partitions)
    /\ UNCHANGED <<postgres, producer, stale, copies, relay, faultState>>

(* After this every producer of the id is fenced. Its open transaction is aborted under a newer epoch, so
   that the partitions refuse all older copies. It waits for a transaction that has been ended. *)
FenceId(id) ==
    /\ ~txn[id].ending
    /\ txn' = [txn EXCEPT ![id] = NoTxn] /\ producer' = [producer EXCEPT ![id] = NoRelay]
    /\ stale' = [stale EXCEPT ![id] = 0] /\ copies' = [copies EXCEPT ![id] = {}]
    /\ UNCHANGED logs

(* The same by a new producer, InitProducerId. Without the guard the relay keeps the producer that is in
   doubt, after it has aborted its transaction. *)
NewProducer(r, id) ==
    /\ ~txn[id].ending
    /\ txn' = [txn EXCEPT ![id] = NoTxn] /\ producer' = [Released(producer, r) EXCEPT ![id] = r]
    /\ UNCHANGED logs
    /\ IF producer[id] = r /\ ~Has("new producer after any doubt") THEN UNCHANGED <<stale, copies>>
       ELSE stale' = [stale EXCEPT ![id] = 0] /\ copies' = [copies EXCEPT ![id] = {}]

(* ---- the end of a relay session --------------------------------------------------------------- *)

(* The session is closed, which releases its locks and rolls its open transaction back. The producer
   is discarded; an EndTxn that it had sent may still arrive. *)
Disconnect(r) ==
    /\ Set(r, Disconnected)
    /\ advisory' = Released(advisory, r)
    /\ producer' = Released(producer, r)
    /\ LET id == relay[r].id IN
       IF At(r, "end") /\ producer[id] = r
       THEN \E n \in {0, 1} : stale' = [stale EXCEPT ![id] = @ + n]
       ELSE UNCHANGED stale
    /\ UNCHANGED <<tables, owner, backup, twin, logs, txn, copies>>

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
    /\ UNCHANGED <<tables, backup, twin, logs, txn, stale, copies, faultState>>

(* Only where the guard is removed does a relay use what it remembers of its last batch. *)
Remembered(last) == IF Has("inflight committed first") THEN Disconnected.last ELSE last

(* ---- recovery --------------------------------------------------------------------------------- *)

(* Only where that guard is removed. *)
KeepsProducer(r) ==
    ~Has("new producer when the set changes") /\ Has("new producer after any doubt")
    /\ relay[r].id # 0 /\ ~relay[r].needsRenewal

BeforeRead == IF Has("fence before reading the evidence") THEN "fence" ELSE "read"
AfterFence == IF Has("fence before reading the evidence") THEN "read" ELSE "decide"
AfterRead == IF ~Has("fence before reading the evidence") THEN "fence"
             ELSE IF Has("publishing producer before the barrier") THEN "decide" ELSE "start"

(* The barrier: a record in the partitions that are read next, whose transaction is aborted. It shows where
   they end, with what is still open. Its producer has a transactional id of its own. *)
WithBarrier(me) ==
    LET pending(l) == Cardinality({i \in Lanes : txn[i].marks[l] # None})
        rowsEnd(l) == IF lane[l].inflight # {} THEN Len(topic[l]) ELSE 0
    IN IF ~Has("barrier before the read") THEN me
       ELSE [me EXCEPT
                !.rowsEnd = [l \in Lanes |-> IF l \in me.lanes THEN rowsEnd(l) ELSE 0],
                !.marksEnd = [l \in Lanes |-> IF l \in me.lanes THEN Len(markers[l]) + pending(l) ELSE 0]]

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
           at == IF ids = {} THEN "read" ELSE BeforeRead
           me == [relay[r] EXCEPT !.lanes = lanes, !.fence = ids, !.fenced = FencedFor(r, lanes),
                      !.at = at,
                      !.noted = IF Has("search start written with the claim") THEN Zero
                                ELSE [l \in Lanes |-> Len(topic[l])]]
       IN /\ Set(r, IF at = "read" THEN WithBarrier(me) ELSE me)
          /\ UnlockLost(r, lanes)
    /\ UNCHANGED <<tables, owner, backup, twin, kafka, faultState>>

(* The ids that are fenced by a producer that is closed at once. The relay's own id comes last. *)
Earlier(r) == IF KeepsProducer(r) THEN relay[r].fence ELSE relay[r].fence \ {Min(relay[r].lanes)}

(* Remembered at once: a relay that retries does not fence the id's next user again. *)
FenceEarlier(r) ==
    /\ At(r, "fence") /\ Earlier(r) # {}
    /\ LET id == Min(Earlier(r))
           others == relay[r].fence \ {id}
           me == [relay[r] EXCEPT
                !.fence = others,
                !.fenced = [l \in Lanes |-> IF l \in relay[r].lanes /\ Has("earlier ids fenced once")
                                            THEN @[l] \cup {id} ELSE @[l]],
                !.at = IF others # {} THEN "fence" ELSE AfterFence]
       IN /\ FenceId(id)
          /\ Set(r, IF me.at = "read" THEN WithBarrier(me) ELSE me)
    /\ UNCHANGED <<postgres, faultState>>

(* Fences the relay's own id by the producer that will publish; then the barrier. A producer
   that publishes after the barrier has fenced this one. *)
Fence(r) ==
    /\ At(r, "fence") /\ Earlier(r) = {} /\ r \notin StartsFail
    /\ LET id == Min(relay[r].lanes)
           me == [relay[r] EXCEPT !.id = id, !.needsRenewal = FALSE, !.fence = {}, !.at = AfterFence]
       IN /\ NewProducer(r, id)
          /\ Set(r, IF AfterFence = "read" THEN WithBarrier(me) ELSE me)
    /\ UNCHANGED <<postgres, faultState>>

(* Only where that guard is removed: the producer that publishes is made after the read. *)
Start(r) ==
    /\ At(r, "start")
    /\ NewProducer(r, relay[r].id)
    /\ GoTo(r, "decide")
    /\ UNCHANGED <<postgres, faultState>>

StartTimesOut(r) ==
    /\ At(r, "fence") /\ Earlier(r) = {} /\ r \in StartsFail
    /\ EnterDoubt(r)
    /\ UNCHANGED <<postgres, logs, txn, stale, copies, faultState>>

(* A read_committed reader stops at the first record of a transaction that is still open. *)
MarkerPending(l) == \E i \in Lanes : txn[i].marks[l] # None
SearchBlocked(r) == \E i \in Lanes : txn[i].rows # {}
ReadBlocked(r) == r \in ReadsFail \/ \E l \in relay[r].lanes : MarkerPending(l)

(* A broker may answer with any earlier state that reaches as far as the barrier: one that was frozen and
   replaced, or that does not show yet what it has acknowledged. *)
Shown(length, barrier, lag) == LET least == IF length < barrier THEN length ELSE barrier IN
    IF length - lag < least THEN least ELSE length - lag
Lags(lengths, barriers) == 0..Max({0} \cup {lengths[l] - barriers[l] : l \in Lanes})

(* The records between the search's start and the state that the broker showed. *)
Search(l, start, end) == {topic[l][i] : i \in {i \in DOMAIN topic[l] : i <= end /\ i > start
                                                                       /\ i > deleted[l]}}

(* The markers, and the search for the rows in flight. *)
ReadEvidence(r) ==
    /\ At(r, "read") /\ ~ReadBlocked(r)
    /\ LET me == relay[r]
           searched == {l \in me.lanes : lane[l].inflight # {} /\ ~SearchBlocked(r)}
           start(l) == IF Has("search start written with the claim") THEN lane[l].search_start
                       ELSE me.noted[l]
           marked == [l \in Lanes |-> Len(markers[l])]
           written == [l \in Lanes |-> Len(topic[l])]
       IN \E lag \in Lags(marked, me.marksEnd), rowsLag \in Lags(written, me.rowsEnd) : Set(r, [me EXCEPT
            !.seen = [l \in Lanes |->
                IF l \in me.lanes
                THEN LastOf(SubSeq(markers[l], 1, Shown(marked[l], me.marksEnd[l], lag))) ELSE None],
            !.found = UNION {lane[l].inflight
                             \cap Search(l, start(l), Shown(written[l], me.rowsEnd[l], rowsLag))
                             : l \in searched},
            !.unsearched = {l \in me.lanes : lane[l].inflight # {}} \ searched,
            !.marksEnd = Zero, !.noted = Zero,
            !.at = AfterRead])
    /\ UNCHANGED <<postgres, kafka, faultState>>

(* It times out. The recovery starts again. *)
ReadTimesOut(r) ==
    /\ At(r, "read") /\ ReadBlocked(r)
    /\ EnterDoubt(r)
    /\ UNCHANGED <<postgres, logs, txn, stale, copies, faultState>>

Same(x, y) == x = y \/ (~Has("tokens compared") /\ x.number = y.number)

(* Histories that do not belong together: the marker names no batch that this lane row knows of. *)
Disagree(row, seen) ==
    IF seen = None THEN row.token.number > 0
    ELSE ~Same(seen, row.token) /\ ~Same(seen, row.marker_token)

(* The rows in flight that are in Kafka. *)
There(r, l) ==
    IF Has("the log decides") THEN lane[l].inflight \cap relay[r].found
    ELSE IF Same(relay[r].seen[l], lane[l].token) THEN lane[l].inflight ELSE {}

(* What "not there" cannot be concluded from. *)
Unusable(l) == deleted[l] > lane[l].search_start /\ Has("log start compared with the search start")

NextToken(token) == Token(1 + (token.number % Numbers), IF history THEN "restored" ELSE "original")

FirstOfKafka == IF Strict THEN "renew" ELSE "produce"

(* Rows are left, all of a topic, for as long as their topic cannot be written to. *)
Sendable(rows) == {row \in rows : PlaceOf(row) \notin away \/
                      (~Has("all rows of a topic left") /\ row # Min(RowsAt(rows, PlaceOf(row))))}

(* decide, under the locks of the lanes' rows. It acknowledges what is there, begins what is not under the
   next number, and writes the transactional lane of each lane, all before anything of that lane is sent.
   What cannot be written to its topic now is left for a later claim.
   skipped: lanes that must be published again, and are left out. *)
DecideWithout(r, skipped) ==
    /\ At(r, "decide") /\ relay[r].session
    /\ LET me == relay[r]
           lanes == IF Has("ownership checked under the lock") THEN StillOwned(r) ELSE me.lanes
           missing(l) == lane[l].inflight \ There(r, l)
           refused == IF ~Has("refusal") THEN {}
                      ELSE {l \in lanes : Disagree(lane[l], me.seen[l])
                                          \/ (l \notin me.unsearched /\ missing(l) # {} /\ Unusable(l))}
           held == me.unsearched \ refused
           decided == lanes \ (refused \cup held)
           again == {l \in decided : missing(l) # {}}
           behind == {l \in decided \ again : ~Same(me.seen[l], lane[l].token)}
           sent == (again \cup behind) \ skipped
           token(l) == IF l \in again THEN NextToken(lane[l].token) ELSE lane[l].token
           after(l) == [token |-> token(l),
                        marker_token |-> IF l \in again THEN me.seen[l] ELSE lane[l].marker_token,
                        inflight |-> Sendable(missing(l)),
                        search_start |-> IF l \in again THEN me.rowsEnd[l] ELSE 0,
                        transactional_lane |-> lane[l].transactional_lane,
                        restored |-> lane[l].restored]
           ours(row) == IF ~Has("transactional lane committed first") THEN row
                        ELSE [row EXCEPT !.transactional_lane = me.id, !.restored = FALSE]
       IN /\ lanes # {} /\ skipped \subseteq again \cup behind /\ UnlockLost(r, lanes)
          /\ outbox' = outbox \ UNION {There(r, l) : l \in {l \in decided : Owns(r, l)}}
          /\ lane' = [l \in Lanes |-> IF l \notin lanes \/ ~Owns(r, l) THEN lane[l]
                                      ELSE ours(IF l \in decided THEN after(l) ELSE lane[l])]
          /\ Set(r, [me EXCEPT
                !.at = IF sent = {} THEN "work" ELSE FirstOfKafka,
                !.lanes = lanes, !.refused = refused, !.backingOff = skipped \cup held,
                !.fenced = Disconnected.fenced, !.rowsEnd = Zero, !.seen = NoMarks, !.found = {},
                !.unsearched = {},
                !.needsRenewal = @ \/ lanes # me.lanes,
                !.last = Remembered([l \in Lanes |-> IF l \in lanes THEN token(l) ELSE FirstToken]),
                !.marks = [l \in Lanes |-> IF l \in sent THEN token(l) ELSE None],
                !.batch = UNION {Sendable(missing(l)) \cap outbox : l \in sent}])
    /\ UNCHANGED <<uncommitted, owner, backup, twin, kafka>>

Decide(r) == DecideWithout(r, {}) /\ UNCHANGED faultState

(* ---- a batch ---------------------------------------------------------------------------------- *)

MustRenew(r) == relay[r].needsRenewal /\ Has("new producer after a silent disconnect")

(* The producer must be renewed, and all that it published is acknowledged: recover. *)
StartRenewal(r) ==
    /\ At(r, "work") /\ OfLanes(outbox, ActiveLanes(r)) = {} /\ MustRenew(r)
    /\ EnterDoubt(r)
    /\ UNCHANGED <<postgres, logs, txn, stale, copies, faultState>>

(* The back-off of a lane is over. *)
RetryBackedOff(r) ==
    /\ At(r, "work") /\ relay[r].backingOff # {}
    /\ EnterDoubt(r)
    /\ UNCHANGED <<postgres, logs, txn, stale, copies, faultState>>

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
            !.batch = UNION {First(BatchSize, Sendable((Of(outbox, l) \ lane[l].inflight) \ Skipped(r)))
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
TokenBefore(r, l) == IF Has("inflight committed first") THEN lane[l].token ELSE relay[r].last[l]
InflightBefore(r, l) == IF Has("inflight committed first") THEN lane[l].inflight
                        ELSE Of(relay[r].batch, l)

Acknowledged(r, l) == IF Has("acknowledge by id") THEN InflightBefore(r, l)
                      ELSE Of(UpTo(InflightBefore(r, l)) \cap outbox, l)

Claimed(r, l) ==
    IF MustRenew(r) THEN {}
    ELSE IF Has("lane locked before the select")
    THEN First(BatchSize, Sendable((Of(outbox, l) \ Acknowledged(r, l)) \ Skipped(r)))
    ELSE Of(relay[r].batch, l)

TokenAfter(r, l) == IF Claimed(r, l) = {} THEN TokenBefore(r, l) ELSE NextToken(TokenBefore(r, l))

(* Acknowledge, claim, write the lane rows; COMMIT. *)
Commit(r, active) ==
    /\ outbox' = outbox \ UNION {Acknowledged(r, l) : l \in active \cap StillOwned(r)}
    /\ lane' = [l \in Lanes |->
            IF l \notin active \cap StillOwned(r) THEN lane[l]
            ELSE IF ~Has("inflight committed first")
            THEN [lane[l] EXCEPT !.transactional_lane = relay[r].id, !.token = TokenBefore(r, l)]
            ELSE IF Claimed(r, l) = {}
            THEN [lane[l] EXCEPT !.transactional_lane = relay[r].id,
                                 !.inflight = {}, !.search_start = 0]
            ELSE [lane[l] EXCEPT !.transactional_lane = relay[r].id,
                                 !.token = TokenAfter(r, l), !.marker_token = TokenBefore(r, l),
                                 !.inflight = Claimed(r, l), !.search_start = Len(topic[l])]]
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
                    !.last = Remembered([l \in Lanes |-> IF l \in active \ lost THEN TokenAfter(r, l)
                                                          ELSE IF l \in lanes THEN @[l]
                                                          ELSE FirstToken]),
                    !.batch = UNION {Claimed(r, l) : l \in new},
                    !.marks = [l \in Lanes |-> IF l \in new THEN TokenAfter(r, l) ELSE None],
                    !.needsRenewal = @ \/ lost # {},
                    !.at = IF new = {} THEN "work" ELSE FirstOfKafka])
               /\ UNCHANGED producer

AcknowledgeAndClaim(r) ==
    /\ CanLock(r)
    /\ \E active \in LanesWithWork(r) : Commit(r, active) /\ ContinueWithBatch(r, active)
    /\ UNCHANGED <<owner, backup, twin, logs, txn, stale, copies, faultState>>

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
            !.last = Remembered([l \in Lanes |-> IF l \in lanes THEN @[l] ELSE FirstToken]),
            !.marks = [l \in Lanes |-> IF l \in lanes THEN @[l] ELSE None],
            !.needsRenewal = @ \/ lanes # relay[r].lanes,
            !.at = IF Marked(relay[r].marks) \cap lanes = {} THEN "work" ELSE "produce"])
       /\ UnlockLost(r, lanes)
    /\ UNCHANGED <<tables, owner, backup, twin, kafka, faultState>>

CanSend(r) == producer[relay[r].id] = r /\ ~txn[relay[r].id].ending

(* publish: begin_transaction, produce, flush. *)
Produce(r) ==
    /\ At(r, "produce") /\ CanSend(r)
    /\ LET rows == relay[r].batch IN
       IF Has("marker in the records' transaction")
       THEN txn' = [txn EXCEPT ![relay[r].id].rows = rows] /\ UNCHANGED topic
       ELSE topic' = [l \in Lanes |-> topic[l] \o InOrder(Of(rows, l))] /\ UNCHANGED txn
    /\ GoTo(r, "mark")
    /\ UNCHANGED <<postgres, markers, deleted, producer, stale, copies, faultState>>

(* publish: the markers of all lanes of the batch. If a stale EndTxn has ended the transaction, the
   coordinator opens another one. *)
Mark(r) ==
    /\ At(r, "mark") /\ CanSend(r)
    /\ txn' = [txn EXCEPT ![relay[r].id].marks = relay[r].marks]
    /\ GoTo(r, "end")
    /\ UNCHANGED <<postgres, logs, producer, stale, copies, faultState>>

Published(r) == [relay[r] EXCEPT !.at = "work", !.marks = NoMarks,
                                 !.batch = IF Has("inflight committed first") THEN {} ELSE @]

CommitTransaction(r) ==
    /\ At(r, "end") /\ CanSend(r)
    /\ EndTxn(relay[r].id)
    /\ Set(r, Published(r))
    /\ UNCHANGED <<postgres, logs, producer, stale, copies, faultState>>

(* A newer producer has fenced this one: InDoubt. *)
ProducerFenced(r) ==
    /\ relay[r].at \in {"produce", "mark", "end"} /\ producer[relay[r].id] # r
    /\ EnterDoubt(r)
    /\ UNCHANGED <<postgres, logs, txn, stale, copies, faultState>>

Step(r) ==
    \/ \E l \in Lanes : Take(r, l)
    \/ NoticeDeadSession(r) \/ LoseOwnership(r)
    \/ CheckOwners(r) \/ FenceEarlier(r) \/ Fence(r) \/ Start(r) \/ StartTimesOut(r)
    \/ ReadEvidence(r) \/ ReadTimesOut(r) \/ Decide(r)
    \/ StartRenewal(r) \/ RetryBackedOff(r) \/ Select(r) \/ AcknowledgeAndClaim(r)
    \/ RenewProducer(r) \/ CheckOwnersAgain(r)
    \/ Produce(r) \/ Mark(r) \/ CommitTransaction(r) \/ ProducerFenced(r)

(* A consumer's transaction whose row has a lower id than others commits late. *)
Insert == \E row \in uncommitted :
    /\ outbox' = outbox \cup {row} /\ uncommitted' = uncommitted \ {row}
    /\ UNCHANGED <<lane, owner, advisory, backup, twin, kafka, relay, faultState>>

(* ---- Faults ----------------------------------------------------------------------------------- *)

Fault(kind) ==
    /\ kind \in Kinds /\ faults > 0 /\ faults' = faults - 1
    /\ UNCHANGED <<crashes, history, away>>

(* Not a fault, but rare: a relay releases a lane between two batches. One transaction acknowledges the
   lane's last batch, and nothing of the lane is in flight: it is its own transactional lane again. *)
ReleaseLane(r, l) ==
    /\ Fault("lane released") /\ At(r, "work") /\ relay[r].session /\ ~relay[r].needsRenewal
    /\ l \in ActiveLanes(r) /\ Owns(r, l)
    /\ outbox' = outbox \ Acknowledged(r, l)
    /\ lane' = [lane EXCEPT ![l].inflight = {}, ![l].search_start = 0,
                    ![l].transactional_lane =
                        IF Has("transactional lane reset on release") THEN l ELSE @]
    /\ IF relay[r].lanes = {l} THEN Set(r, Disconnected) /\ producer' = Released(producer, r)
       ELSE ChangeLanes(r, relay[r].lanes \ {l})
    /\ advisory' = [advisory EXCEPT ![l] = IF @ = r THEN NoRelay ELSE @]
    /\ UNCHANGED <<uncommitted, owner, backup, twin, logs, txn, stale, copies>>

(* The same in doubt: nothing is written. *)
ReleaseLaneInDoubt(r, l) ==
    /\ Fault("lane released") /\ At(r, "check") /\ relay[r].session
    /\ l \in relay[r].lanes
    /\ Set(r, IF relay[r].lanes = {l} THEN Disconnected ELSE Recovering(r, relay[r].lanes \ {l}))
    /\ advisory' = [advisory EXCEPT ![l] = IF @ = r THEN NoRelay ELSE @]
    /\ producer' = Released(producer, r)
    /\ UNCHANGED <<tables, owner, backup, twin, logs, txn, stale, copies>>

(* Not a fault of the protocol: a topic of the lane's rows is missing, or must not be written to. *)
BackOff(r) == \E skipped \in SUBSET Lanes \ {{}} :
    Fault("lane backs off") /\ DecideWithout(r, skipped)

(* A topic is missing, may not be written to, or has no leader: its rows wait, and those of others go on. *)
LoseTopic ==
    /\ "topic cannot be written to" \in Kinds /\ faults > 0 /\ faults' = faults - 1
    /\ \E place \in (1..Places) \ away : away' = away \cup {place}
    /\ UNCHANGED <<postgres, kafka, relay, crashes, history>>

RegainTopic ==
    /\ \E place \in away : away' = away \ {place}
    /\ UNCHANGED <<postgres, kafka, relay, crashes, faults, history>>

(* kill -9. The kernel closes the sockets, so Postgres ends the session at once. *)
Crash(r) ==
    /\ ~At(r, "disconnected") /\ crashes > 0 /\ crashes' = crashes - 1
    /\ Disconnect(r) /\ UNCHANGED <<faults, history, away>>

(* Postgres ends the session of a relay that is frozen or cut off; that relay continues as a zombie. *)
EndSession(r) ==
    /\ Fault("session ends in silence") /\ relay[r].session
    /\ relay' = [relay EXCEPT ![r].session = FALSE]
    /\ advisory' = Released(advisory, r)
    /\ UNCHANGED <<tables, owner, backup, twin, kafka>>

(* All sessions end and nothing is lost, but a lane's row cannot tell this from a restore. *)
RestartPostgres ==
    /\ Fault("Postgres restarted")
    /\ lane' = [l \in Lanes |-> [lane[l] EXCEPT !.restored = TRUE]]
    /\ relay' = [r \in Relays |-> [relay[r] EXCEPT !.session = FALSE]]
    /\ advisory' = [l \in Lanes |-> NoRelay]
    /\ UNCHANGED <<outbox, uncommitted, owner, backup, twin, kafka>>

(* A lock is lost and the session is not: a pooler, pg_advisory_unlock_all, a bug. *)
LoseLock(r, l) ==
    /\ Fault("advisory lock lost") /\ advisory[l] = r
    /\ advisory' = [advisory EXCEPT ![l] = NoRelay]
    /\ UNCHANGED <<tables, owner, backup, twin, kafka, relay>>

(* A repair takes the lane from its owner and finishes. (It waits for the row's lock in between.) *)
RaiseEpoch(l) ==
    /\ Fault("epoch raised by a repair") /\ owner[l] # NoRelay
    /\ owner' = [owner EXCEPT ![l] = NoRelay]
    /\ UNCHANGED <<tables, advisory, backup, twin, kafka, relay>>

(* COMMIT was executed and its reply is lost. (Not executed: EndSession.) A COMMIT that still runs holds
   the lanes' rows, so it looks the same as one that is done. For the COMMITs of Decide and ReleaseLane
   the same is a Crash right after them. *)
LoseReplyOfCommit(r) ==
    /\ Fault("reply of COMMIT lost") /\ CanLock(r)
    /\ \E active \in LanesWithWork(r) : Commit(r, active)
    /\ Set(r, Disconnected)
    /\ advisory' = Released(advisory, r) /\ producer' = Released(producer, r)
    /\ UNCHANGED <<owner, backup, twin, logs, txn, stale, copies>>

(* COMMIT is answered with ROLLBACK. With the guard the process ends, as in Crash. *)
AnswerRollback(r) ==
    /\ Fault("COMMIT answers ROLLBACK") /\ CanLock(r)
    /\ IF Has("command tag of COMMIT") THEN Disconnect(r)
       ELSE /\ \E active \in LanesWithWork(r) : ContinueWithBatch(r, active)
            /\ UNCHANGED <<tables, owner, backup, twin, logs, txn, stale, copies>>

(* Any error or time-out of a Kafka call that had no effect: InDoubt. *)
KafkaError(r) ==
    /\ Fault("Kafka error")
    /\ relay[r].at \in {"fence", "start", "read", "renew", "produce", "mark", "end"}
    /\ EnterDoubt(r)
    /\ UNCHANGED <<postgres, logs, txn, stale, copies>>

LoseReplyOfEndTxn(r) ==
    /\ Fault("reply of EndTxn lost") /\ At(r, "end") /\ CanSend(r)
    /\ EndTxn(relay[r].id)
    /\ EnterDoubt(r)
    /\ UNCHANGED <<postgres, logs, stale, copies>>

(* The call times out before the request has arrived. *)
DelayEndTxn(r) ==
    /\ Fault("EndTxn delayed") /\ At(r, "end") /\ CanSend(r)
    /\ stale' = [stale EXCEPT ![relay[r].id] = @ + 1]
    /\ EnterDoubt(r)
    /\ UNCHANGED <<postgres, logs, txn, copies>>

(* The connection breaks, librdkafka repeats EndTxn on a new one and reports success; the first copy
   arrives later. *)
RepeatEndTxn(r) ==
    /\ Fault("EndTxn repeated in silence") /\ At(r, "end") /\ CanSend(r)
    /\ EndTxn(relay[r].id) /\ stale' = [stale EXCEPT ![relay[r].id] = @ + 1]
    /\ Set(r, [Published(r) EXCEPT !.needsRenewal = TRUE])
    /\ UNCHANGED <<postgres, logs, producer, copies>>

(* A copy arrives. Kafka cannot tell to which transaction of this producer it belongs. *)
DeliverStaleEndTxn == \E id \in Lanes :
    /\ stale[id] > 0 /\ Open(id) /\ stale' = [stale EXCEPT ![id] = @ - 1]
    /\ EndTxn(id)
    /\ UNCHANGED <<postgres, logs, producer, copies, relay, faultState>>

(* The coordinator repeats WriteTxnMarkers to a partition; the first copy arrives later. The producer does
   not hear of it. *)
RepeatWriteTxnMarkers == \E id \in Lanes, p \in Partitions :
    /\ Fault("WriteTxnMarkers repeated") /\ txn[id].ending /\ HasPart(id, p)
    /\ CommitParts(id, Partitions)
    /\ copies' = [copies EXCEPT ![id] = @ \cup {<<"commit", p>>}]
    /\ UNCHANGED <<postgres, producer, stale, relay>>

(* The same for an abort that its producer asked for. No producer that publishes does that. Without the
   guards it is that of the barrier, or of a batch in doubt. *)
RepeatAbort(r) == \E p \in Partitions :
    /\ ~Has("barriers under an id of their own") \/ ~Has("new producer after any doubt")
    /\ Fault("WriteTxnMarkers repeated") /\ At(r, "read") /\ relay[r].id # 0
    /\ producer[relay[r].id] = r
    /\ copies' = [copies EXCEPT ![relay[r].id] = @ \cup {<<"abort", p>>}]
    /\ UNCHANGED <<postgres, logs, txn, producer, stale, relay>>

(* It ends what the partition has of the transaction that is open now. *)
DeliverCopy == \E id \in Lanes : \E copy \in copies[id] :
    /\ HasPart(id, copy[2]) /\ copies' = [copies EXCEPT ![id] = @ \ {copy}]
    /\ IF copy[1] = "commit" THEN CommitParts(id, {copy[2]})
       ELSE txn' = [txn EXCEPT ![id] = WithoutParts(@, {copy[2]})] /\ UNCHANGED logs
    /\ UNCHANGED <<postgres, producer, stale, relay, faultState>>

(* transaction.timeout.ms: the coordinator aborts and fences the producer. *)
TimeOutTransaction == \E id \in Lanes :
    /\ Fault("transaction times out") /\ Open(id)
    /\ FenceId(id)
    /\ UNCHANGED <<postgres, relay>>

(* The same for a transaction that no producer will end. *)
TimeOutAbandoned == \E id \in Lanes :
    /\ Open(id) /\ producer[id] = NoRelay
    /\ FenceId(id)
    /\ UNCHANGED <<postgres, relay, faultState>>

Backup ==
    /\ "Postgres restored" \in Kinds /\ backup = NoRelay /\ ~history
    /\ backup' = [outbox |-> outbox, uncommitted |-> uncommitted, lane |-> lane]
    /\ UNCHANGED <<tables, owner, advisory, twin, kafka, relay, faultState>>

(* Every session ends. The consumer will read and insert again what the backup lacks. *)
Restore ==
    /\ backup # NoRelay /\ ~history /\ history' = TRUE
    /\ outbox' = backup.outbox /\ uncommitted' = backup.uncommitted
    /\ lane' = [l \in Lanes |-> [backup.lane[l] EXCEPT !.restored = TRUE]]
    /\ owner' = [l \in Lanes |-> NoRelay] /\ advisory' = [l \in Lanes |-> NoRelay] /\ backup' = NoRelay
    /\ relay' = [r \in Relays |-> [relay[r] EXCEPT !.session = FALSE]]
    /\ UNCHANGED <<twin, kafka, crashes, faults, away>>

(* The marker topic was deleted. *)
ForgetMarkers ==
    /\ "marker forgotten" \in Kinds /\ ~history /\ history' = TRUE
    /\ markers' = [l \in Lanes |-> <<>>]
    /\ UNCHANGED <<postgres, topic, deleted, txn, producer, stale, copies, relay,
                   crashes, faults, away>>

(* Retention deletes the records of the output topic, which its readers have seen. *)
DeleteRecords ==
    /\ "records deleted" \in Kinds /\ ~history /\ history' = TRUE
    /\ deleted' = [l \in Lanes |-> Len(topic[l])]
    /\ UNCHANGED <<postgres, topic, markers, txn, producer, stale, copies, relay,
                   crashes, faults, away>>

(* A copy of the database, under the same identity, begins to work beside the original. Its relay has
   messages of its own, and those that were in the outbox. *)
CopyDatabase ==
    /\ "database copied" \in Kinds /\ twin.at = "none" /\ ~history
    /\ twin' = [at |-> "copied", outbox |-> outbox, lane |-> lane]
    /\ UNCHANGED <<tables, owner, advisory, backup, kafka, relay, faultState>>

(* It recovers all lanes. To its lane rows this is a restore: it fences all ids. *)
StartTwin ==
    /\ twin.at = "copied" /\ \A i \in Lanes : ~txn[i].ending
    /\ LET row == twin.lane
           seen(l) == LastOf(markers[l])
           agreed == {l \in Lanes : ~Disagree(row[l], seen(l))}
           batch(l) == Of(twin.outbox, l) \ (row[l].inflight \cap Visible(l))
       IN twin' = [at |-> "ready", marks |-> [l \in Lanes |->
                        IF l \in agreed THEN Token(row[l].token.number + 1, "twin") ELSE None],
                   batch |-> UNION {batch(l) : l \in agreed}]
    /\ txn' = [i \in Lanes |-> NoTxn] /\ stale' = [i \in Lanes |-> 0] /\ copies' = [i \in Lanes |-> {}]
    /\ producer' = [i \in Lanes |-> IF i = 1 THEN Twin ELSE NoRelay]
    /\ UNCHANGED <<tables, owner, advisory, backup, logs, relay, faultState>>

PublishTwin ==
    /\ twin.at = "ready" /\ producer[1] = Twin
    /\ topic' = [l \in Lanes |-> topic[l] \o InOrder(Of(twin.batch, l))]
    /\ markers' = [l \in Lanes |-> IF twin.marks[l] = None THEN markers[l]
                                   ELSE Append(markers[l], twin.marks[l])]
    /\ twin' = [at |-> "published"] /\ history' = TRUE
    /\ UNCHANGED <<tables, owner, advisory, backup, deleted, txn, producer, stale, copies, relay,
                   crashes, faults, away>>

Environment ==
    \/ Insert \/ DeliverStaleEndTxn \/ TimeOutTransaction \/ TimeOutAbandoned
    \/ (\E id \in Lanes : WriteTxnMarkers(id))
    \/ RepeatWriteTxnMarkers \/ DeliverCopy
    \/ RestartPostgres \/ Backup \/ Restore \/ ForgetMarkers \/ DeleteRecords
    \/ CopyDatabase \/ StartTwin \/ PublishTwin \/ LoseTopic \/ RegainTopic
    \/ (\E l \in Lanes : RaiseEpoch(l))
    \/ \E r \in Relays :
        \/ Crash(r) \/ EndSession(r) \/ LoseReplyOfCommit(r) \/ AnswerRollback(r)
        \/ KafkaError(r) \/ LoseReplyOfEndTxn(r) \/ DelayEndTxn(r) \/ RepeatEndTxn(r)
        \/ RepeatAbort(r) \/ BackOff(r)
        \/ \E l \in Lanes : LoseLock(r, l) \/ ReleaseLane(r, l) \/ ReleaseLaneInDoubt(r, l)

Next == Environment \/ \E r \in Relays : Step(r)

(* Every relay makes its next step, every INSERT commits; faults and late requests may happen or not. *)
Fairness ==
    /\ WF_vars(Insert) /\ WF_vars(TimeOutAbandoned) /\ WF_vars(RegainTopic)
    /\ \A id \in Lanes : WF_vars(WriteTxnMarkers(id))
    /\ \A r \in Relays : WF_vars(Step(r))

Spec == Init /\ [][Next]_vars
FairSpec == Spec /\ Fairness

(* ---- What must hold --------------------------------------------------------------------------- *)

NoDuplicate == \A l \in Lanes : Cardinality(Visible(l)) = Len(topic[l])

(* A row that is not in the outbox any more is in the topic, or in a transaction that ends in a commit. *)
NoLoss == \A l \in Lanes : Of(Rows \ (outbox \cup uncommitted), l) \subseteq
    Visible(l) \cup UNION {txn[i].rows : i \in {i \in Lanes : txn[i].ending}}

(* Rows of one partition that commit in the order of their ids may have one key; a late one has another. *)
OrderPerKey == \A l \in Lanes : \A i, j \in DOMAIN topic[l] :
    (i < j /\ {topic[l][i], topic[l][j]} \cap Late = {} /\ PlaceOf(topic[l][i]) = PlaceOf(topic[l][j]))
        => topic[l][i] <= topic[l][j]

NoFalseRefusal == history \/ \A r \in Relays : relay[r].refused = {}

EveryRowAcknowledged == <>[](outbox = {} /\ uncommitted = {})

(* From some time on no relay recovers any more: relays do not fence each other endlessly. *)
RecoveryEnds == <>[](\A r \in Relays : relay[r].at \in {"work", "disconnected"})

(* An owner whose calls are answered publishes its lanes, whatever the other relay does. *)
OwnerMakesProgress == \A r \in Relays \ (ReadsFail \cup StartsFail) : \A l \in Lanes :
    <>[](advisory[l] = r) => <>[](OfLanes(outbox, {l}) = {})

Symmetry == Permutations(Relays)
=============================================================================
