------------------------------ MODULE Consumer ------------------------------
(* How the records of one partition of the input become workers, deploy orders and dead letters, exactly
   once. The names are those of orchestrator/consumer/; README.md has a table of both, and says what is not
   modelled.

   Abstractions that keep the model finite without losing a behaviour:
   - Kafka's group promises nothing: any consumer may take the partition at any time. A frozen consumer is
     one that makes no step; a zombie is one that then makes it.
   - A record is named by a number, which stands for its place and its timestamp: so does a worker's id.
   - A transaction of the consumer is one step: it locks the position's row first and holds it until COMMIT,
     and the topic is compared after the poll, while it is locked.
   - How rows of the outbox reach Kafka, exactly once, is in Relay.tla: here it is one step. *)
EXTENDS Integers, Sequences, FiniteSets, TLC

CONSTANTS
    Consumers,
    Records,    \* 1..n: the records of the input, in the order in which they are written
    Written,    \* how many the API writes; the others are commands that an operator retries
    Markers,    \* records that no reader gets: ends of transactions, and what was aborted
    Doubtful,   \* records that are no valid command while the settings are narrow
    BatchSize,
    Faults,     \* how many faults happen, at any step
    Kinds,      \* which ones: see "Faults" below
    Epochs,     \* FALSE: the log does not tell the leader epochs of its records
    Without     \* the guards that are removed: none in the protocol as it is

Has(guard) == guard \notin Without

VARIABLES
    \* Postgres, as committed
    position,   \* the partition's row of consumed_offsets
    workers,    \* ids of the rows in `workers`
    outbox,     \* orders, dead letters and retried commands that wait to be published
    parked,     \* rows that Kafka rejected
    handled,    \* dead letters that an operator has retried or discarded
    backup,     \* an older state of the tables, or None
    \* Kafka
    topic,      \* the id of the input topic: counts how often it was created
    epoch,      \* the leader epoch of the partition
    log,        \* the partition
    published,  \* rows of the outbox that are in their topics
    ahead,      \* a restored database does not know all of them: the lanes are refused
    \* the consumers' memory, and their settings
    consumer,
    narrow,
    \* what only the properties need, and how many faults may still happen
    origin,     \* per record the record that it retries, 0: none
    made,       \* how many records have been written
    told,       \* commands whose worker was deleted, and that an operator told us to accept again
    twice,      \* rows that were published more than once
    found,      \* a consumer has found that the position is not in the log
    faults

vars == <<position, workers, outbox, parked, handled, backup, topic, epoch, log, published, ahead,
          consumer, narrow, origin, made, told, twice, found, faults>>
tables == <<position, workers, outbox, parked, handled>>
kafka == <<topic, epoch, log, published, ahead, origin, made, twice, twice>>
rest == <<told, found, faults>>

None == [at |-> "none"]
Idle == [at |-> "idle"]
Row(kind, of, number) == [kind |-> kind, of |-> of, number |-> number]  \* of a worker, or of a record
Unknown == -1   \* epoch of a position of which no record was consumed

Init ==
    /\ position = [topic |-> 1, next |-> 0, epoch |-> Unknown, decided_end |-> 0, again |-> FALSE,
                   refused |-> FALSE]
    /\ workers = {} /\ outbox = {} /\ parked = {} /\ handled = {} /\ backup = None
    /\ topic = 1 /\ epoch = 0 /\ log = <<>> /\ published = {} /\ ahead = FALSE
    /\ consumer = [c \in Consumers |-> Idle] /\ narrow = (Doubtful # {})
    /\ origin = [r \in Records |-> 0] /\ made = 0 /\ told = {} /\ twice = {} /\ found = FALSE
    /\ faults = Faults

Least(i, j) == IF i < j THEN i ELSE j
Most(i, j) == IF i > j THEN i ELSE j
First(numbers) == CHOOSE i \in numbers : \A j \in numbers : i <= j
Last(numbers) == CHOOSE i \in numbers : \A j \in numbers : i >= j
At(c, step) == consumer[c].at = step
Set(c, me) == consumer' = [consumer EXCEPT ![c] = me]
GoTo(c, step) == consumer' = [consumer EXCEPT ![c].at = step]

(* The command that a record is, however often it was retried. *)
RECURSIVE Root(_)
Root(r) == IF origin[r] = 0 THEN r ELSE Root(origin[r])
(* The id of its worker, for a consumer that takes the topic for the one with this id. *)
WorkerOf(id, r) ==
    <<id, IF Has("a retried command has its first record's worker") THEN Root(r) ELSE r>>

Rows(kind, of) == {row \in outbox \cup parked \cup published : row.kind = kind /\ row.of = of}
NewRow(kind, of, others) ==
    Row(kind, of, Cardinality(Rows(kind, of) \cup {row \in others : row.kind = kind /\ row.of = of}) + 1)

(* The deploy orders of a command. *)
OrdersOf(r) == {row \in outbox \cup parked \cup published : row.kind = "order" /\ Root(row.of[2]) = Root(r)}

(* ---- a position and the log ------------------------------------------------------------------- *)

(* OffsetForLeaderEpoch: where the records of an epoch, and of those before it, end. *)
EndOfEpoch(e) == Cardinality({i \in DOMAIN log : log[i].epoch <= e})
Known(p) == Epochs /\ p.epoch # Unknown
EndFor(p) == IF Known(p) THEN EndOfEpoch(p.epoch) ELSE Len(log)
IsCut(p) == EndFor(p) < p.next
(* What a new session notices of that. *)
IsCutAtAssignment(p) ==
    IF Has("position validated after the assignment") THEN IsCut(p) ELSE Len(log) < p.next
(* ---- a consumer ------------------------------------------------------------------------------- *)

(* A position that was set back without a command of ours moves over what was decided. *)
IsSetBack(p) == p.next < p.decided_end /\ ~p.again
WithoutDecided(p) ==
    IF IsSetBack(p) /\ Has("what was decided is skipped") THEN [p EXCEPT !.next = p.decided_end] ELSE p

(* The group assigns the partition; the position is read under its lock. Without one in the log of this
   topic, nothing is read. *)
Assign(c) ==
    /\ At(c, "idle") /\ position.topic = topic /\ ~position.refused
    /\ position' = WithoutDecided(position)
    /\ Set(c, [at |-> "assigned", p |-> position', epoch |-> 0, batch |-> <<>>, narrow |-> FALSE,
               end |-> 0, under |-> Unknown])
    /\ UNCHANGED <<workers, outbox, parked, handled, backup, kafka, narrow, rest>>

(* `seek` after the assignment; later, the client itself validates whenever the leader's epoch changes. *)
Validate(c) ==
    /\ consumer[c].at \in {"assigned", "fenced"}
    /\ IF IF At(c, "fenced") THEN IsCut(consumer[c].p) ELSE IsCutAtAssignment(consumer[c].p)
       THEN GoTo(c, "cut")
       ELSE Set(c, [consumer[c] EXCEPT !.at = "reading", !.epoch = epoch])
    /\ UNCHANGED <<tables, backup, kafka, narrow, rest>>

(* A fetch under an older epoch is rejected. *)
Fenced(c) ==
    /\ At(c, "reading") /\ consumer[c].epoch # epoch /\ GoTo(c, "fenced")
    /\ UNCHANGED <<tables, backup, kafka, narrow, rest>>

(* Records are fetched by the topic's name. The settings are those of the process, at this time. *)
Poll(c) ==
    /\ At(c, "reading") /\ consumer[c].epoch = epoch
    /\ LET next == consumer[c].p.next
           reached == {i \in next + 1..Len(log) : log[i].id \notin Markers}
           within == {i \in reached : i <= Most(next + BatchSize, First(reached))}
       IN /\ reached # {}
          /\ Set(c, [consumer[c] EXCEPT !.at = "polled", !.narrow = narrow,
                                        !.batch = SubSeq(log, next + 1, Last(within))])
    /\ UNCHANGED <<tables, backup, kafka, narrow, rest>>

(* The client has read to the end of the log: from the position on there were no records. *)
ReadEnd(c) ==
    /\ At(c, "reading") /\ consumer[c].epoch = epoch /\ consumer[c].p.next < Len(log)
    /\ \A i \in consumer[c].p.next + 1..Len(log) : log[i].id \in Markers
    /\ Set(c, [consumer[c] EXCEPT !.at = "ended", !.end = Len(log)])
    /\ UNCHANGED <<tables, backup, kafka, narrow, rest>>

(* Under which epoch that was: known if it is that of the position, or was the same before the reading.
   Otherwise the client reads from the position again. *)
AskEpoch(c) ==
    /\ At(c, "ended")
    /\ LET me == consumer[c]
           isKnown == epoch \in {me.p.epoch, me.under} \/ ~Has("end read again under a new epoch")
           asked == IF Has("epoch of an end asked for") THEN epoch ELSE me.p.epoch
       IN Set(c, IF isKnown \/ asked = me.p.epoch THEN [me EXCEPT !.at = "moving", !.epoch = asked]
                 ELSE [me EXCEPT !.at = "assigned", !.under = epoch])
    /\ UNCHANGED <<tables, backup, kafka, narrow, rest>>

(* The topic's id is compared from time to time. *)
NoticeRecreated(c) ==
    /\ At(c, "reading") /\ consumer[c].p.topic # topic /\ Set(c, Idle)
    /\ UNCHANGED <<tables, backup, kafka, narrow, rest>>

IsValid(c, r) == ~consumer[c].narrow \/ Root(r) \notin Doubtful
IsHandled(r) == \E letter \in handled : letter.of = r

(* One record: `state` is what the transaction has written so far. *)
DecideOne(c, i, state) ==
    LET r == consumer[c].batch[i].id
        w == WorkerOf(consumer[c].p.topic, r)
        again == consumer[c].p.again
        accepted ==
            [state EXCEPT !.workers = @ \cup {w}, !.rows = @ \cup {NewRow("order", w, state.rows)},
                          !.told = IF again /\ w \notin state.workers /\ OrdersOf(r) # {}
                                   THEN @ \cup {Root(r)} ELSE @]
    IN IF r \in Markers THEN state
       ELSE IF again /\ IsHandled(r) /\ Has("handled letters stay handled") THEN state
       ELSE IF IsValid(c, r)
       THEN IF w \in state.workers /\ Has("unique worker id") THEN state ELSE accepted
       ELSE IF w \in state.workers /\ Has("no dead letter where a worker exists") THEN state
            ELSE [state EXCEPT !.rows = @ \cup {NewRow("letter", r, state.rows)}]

RECURSIVE DecideUpTo(_, _)
DecideUpTo(c, i) ==
    IF i = 0 THEN [workers |-> workers, rows |-> {}, told |-> told]
    ELSE DecideOne(c, i, DecideUpTo(c, i - 1))

(* The compare-and-set finds the row as it is expected. *)
Expected(mine) ==
    /\ position.next = mine.next \/ ~Has("compare-and-set on the position")
    /\ position.epoch = mine.epoch \/ ~Has("epoch in the compare")
    /\ position.topic = mine.topic \/ ~Has("topic id in the compare")
    /\ ~position.refused \/ ~Has("refusal in the compare")
    /\ (position.decided_end = mine.decided_end /\ position.again = mine.again)
        \/ ~Has("decided_end in the compare")

(* One transaction: positions, rows, outbox; the topic is compared before COMMIT. *)
Commit(c) ==
    /\ At(c, "polled")
    /\ LET me == consumer[c]
           next == me.p.next + Len(me.batch)
           decided == DecideUpTo(c, Len(me.batch))
           moved == [position EXCEPT
               !.next = next, !.epoch = me.batch[Len(me.batch)].epoch,
               !.decided_end = Most(@, next), !.again = @ /\ next < position.decided_end]
           isOwned == Expected(me.p) /\ (topic = me.p.topic \/ ~Has("topic checked before COMMIT"))
       IN IF isOwned
          THEN /\ Set(c, [me EXCEPT !.at = "reading", !.p = moved, !.batch = <<>>, !.narrow = FALSE])
               /\ position' = moved /\ workers' = decided.workers /\ outbox' = outbox \cup decided.rows
               /\ told' = decided.told
               /\ UNCHANGED <<parked, handled>>
          ELSE Set(c, Idle) /\ UNCHANGED <<tables, told>>
    /\ UNCHANGED <<backup, kafka, narrow, found, faults>>

(* The same without records. *)
MoveToEnd(c) ==
    /\ At(c, "moving")
    /\ LET me == consumer[c]
           moved == [position EXCEPT
               !.next = me.end, !.epoch = me.epoch,
               !.decided_end = Most(@, me.end), !.again = @ /\ me.end < position.decided_end]
           isOwned == Expected(me.p) /\ (topic = me.p.topic \/ ~Has("topic checked before COMMIT"))
       IN IF isOwned
          THEN position' = moved /\ Set(c, [me EXCEPT !.at = "reading", !.p = moved, !.end = 0])
          ELSE UNCHANGED position /\ Set(c, Idle)
    /\ UNCHANGED <<workers, outbox, parked, handled, backup, kafka, narrow, rest>>

(* The position is not in the log: no consumer reads the partition until it is repaired. *)
Refuse(c) ==
    /\ At(c, "cut")
    /\ IF Expected(consumer[c].p)
       THEN /\ found' = TRUE
            /\ IF Has("durable refusal")
               THEN position' = [position EXCEPT !.refused = TRUE] /\ Set(c, Idle)
               ELSE UNCHANGED position /\ GoTo(c, "waits")
       ELSE UNCHANGED <<position, found>> /\ Set(c, Idle)
    /\ UNCHANGED <<workers, outbox, parked, handled, backup, kafka, narrow, told, faults>>

Step(c) ==
    \/ Assign(c) \/ Validate(c) \/ Fenced(c) \/ Poll(c) \/ NoticeRecreated(c) \/ Commit(c) \/ Refuse(c)
    \/ ReadEnd(c) \/ AskEpoch(c) \/ MoveToEnd(c)

(* ---- the relay, and the API ------------------------------------------------------------------- *)

Write ==
    /\ made < Cardinality(Records) /\ Cardinality({r \in 1..made : origin[r] = 0}) < Written
    /\ made' = made + 1 /\ log' = Append(log, [id |-> made + 1, epoch |-> epoch])
    /\ UNCHANGED <<tables, backup, topic, epoch, published, ahead, origin, twice, consumer, narrow, rest>>

(* A retried command comes back as a record of the input, which names its origin. *)
Publish == \E row \in outbox :
    /\ ~ahead /\ outbox' = outbox \ {row} /\ published' = published \cup {row}
    /\ twice' = twice \cup ({row} \cap published)
    /\ IF row.kind = "command"
       THEN /\ made < Cardinality(Records) /\ made' = made + 1
            /\ log' = Append(log, [id |-> made + 1, epoch |-> epoch])
            /\ origin' = [origin EXCEPT ![made + 1] = row.of]
       ELSE UNCHANGED <<made, log, origin>>
    /\ UNCHANGED <<position, workers, parked, handled, backup, topic, epoch, ahead, consumer, narrow, rest>>

(* ---- the operator ----------------------------------------------------------------------------- *)

IsPublished(row) ==
    IF row.kind = "order" /\ ~Has("unique worker id") THEN row \in published
    ELSE \E other \in published : other.kind = row.kind /\ other.of = row.of
NotPublished(rows) == {row \in rows : ~IsPublished(row)}

HasCaughtUp == position.topic = topic /\ ~position.refused /\ position.next >= Len(log)

RepairLanes ==
    /\ ahead /\ (HasCaughtUp \/ ~Has("repair of a lane waits for the input"))
    /\ ahead' = FALSE /\ outbox' = NotPublished(outbox)
    /\ parked' = IF Has("repair of a lane looks parked rows up") THEN NotPublished(parked) ELSE parked
    /\ UNCHANGED <<position, workers, handled, backup, topic, epoch, log, published, origin, made, twice,
                   consumer, narrow, rest>>

RetryParked == \E row \in parked :
    /\ parked' = parked \ {row}
    /\ outbox' = IF Has("retry of a parked row looks it up") /\ IsPublished(row) THEN outbox
                 ELSE outbox \cup {row}
    /\ UNCHANGED <<position, workers, handled, backup, kafka, consumer, narrow, rest>>

IsOrdered(r) == \E row \in published : row.kind = "order" /\ row.of = WorkerOf(topic, r)
WasRetried(r) == \E i \in DOMAIN log : origin[log[i].id] = r

(* A restored database has not decided the letter's record yet: it will, when it has read it again. *)
IsUndecided(r) ==
    Has("letters wait for their record after a restore") /\
        \E i \in DOMAIN log : log[i].id = r /\ i > position.decided_end

RetryLetter == \E letter \in published :
    /\ letter.kind = "letter" /\ ~IsUndecided(letter.of)
    /\ ~IsHandled(letter.of) \/ ~Has("a command retried once")
    /\ WorkerOf(topic, letter.of) \notin workers \/ ~Has("retry refused where a worker exists")
    /\ handled' = handled \cup {letter}
    /\ outbox' = IF IsOrdered(letter.of) /\ Has("retry looks for the order in its topic") THEN outbox
                 ELSE outbox \cup {NewRow("command", letter.of, {})}
    /\ UNCHANGED <<position, workers, parked, backup, kafka, consumer, narrow, rest>>

DiscardLetter == \E letter \in published :
    /\ letter.kind = "letter" /\ ~IsHandled(letter.of) /\ ~IsUndecided(letter.of)
    /\ WorkerOf(topic, letter.of) \notin workers
    /\ handled' = handled \cup {letter}
    /\ UNCHANGED <<position, workers, outbox, parked, backup, kafka, consumer, narrow, rest>>

KeptEpoch == IF Has("repair keeps the epoch") THEN position.epoch ELSE Unknown

(* A cut log: continue at the end of the stored epoch. What was decided after it is gone. *)
RepairCut ==
    /\ position.topic = topic /\ (position.refused \/ IsCut(position))
    /\ LET end == EndFor(position) IN
       position' = [position EXCEPT
           !.next = Least(@, end),
           !.epoch = IF Has("repair of a cut log takes the leader's epoch") THEN epoch ELSE KeptEpoch,
           !.decided_end = IF Has("repair of a cut log sets decided_end back") THEN Least(@, end) ELSE @,
           !.refused = FALSE]
    /\ found' = FALSE
    /\ UNCHANGED <<workers, outbox, parked, handled, backup, kafka, consumer, narrow, told, faults>>

(* A recreated topic: nothing of it was consumed. *)
RepairRecreated ==
    /\ position.topic # topic
    /\ position' = [topic |-> topic, next |-> 0, epoch |-> Unknown, decided_end |-> 0, again |-> FALSE,
                    refused |-> FALSE]
    /\ found' = FALSE
    /\ UNCHANGED <<workers, outbox, parked, handled, backup, kafka, consumer, narrow, told, faults>>

Operate == RepairLanes \/ RetryParked \/ RetryLetter \/ DiscardLetter \/ RepairCut \/ RepairRecreated

(* ---- Faults ----------------------------------------------------------------------------------- *)

Fault(kind) == kind \in Kinds /\ faults > 0 /\ faults' = faults - 1

(* kill -9, a lost reply, a rebalance, at any step: what the consumer remembers is gone. *)
EndSession(c) ==
    /\ ("sessions end" \in Kinds /\ UNCHANGED faults) \/ Fault("a session ends")
    /\ ~At(c, "idle") /\ Set(c, Idle)
    /\ UNCHANGED <<tables, backup, kafka, narrow, told, found>>

(* The leader lost the end of its log, and leads again; or another one without it does. *)
CutLog == \E n \in 0..Len(log) - 1 :
    /\ Fault("log cut") /\ log' = SubSeq(log, 1, n) /\ epoch' = epoch + 1
    /\ UNCHANGED <<tables, backup, topic, published, ahead, origin, made, twice, consumer, narrow, told, found>>

(* A new leader, and nothing is lost. *)
ChangeLeader ==
    /\ Fault("leader changed") /\ epoch' = epoch + 1
    /\ UNCHANGED <<tables, backup, topic, log, published, ahead, origin, made, twice, consumer, narrow, told,
                   found>>

RecreateTopic ==
    /\ Fault("topic recreated") /\ topic' = topic + 1 /\ epoch' = 0 /\ log' = <<>>
    /\ UNCHANGED <<tables, backup, published, ahead, origin, made, twice, consumer, narrow, told, found>>

Backup ==
    /\ "Postgres restored" \in Kinds /\ faults > 0 /\ backup = None /\ ~ahead
    /\ backup' = [at |-> "backup", position |-> position, workers |-> workers, outbox |-> outbox,
                  parked |-> parked, handled |-> handled, published |-> published]
    /\ UNCHANGED <<tables, kafka, consumer, narrow, rest>>

(* All sessions end. The lanes are refused if anything was published since. *)
Restore ==
    /\ Fault("Postgres restored") /\ backup.at = "backup" /\ backup' = [at |-> "restored"]
    /\ position' = backup.position /\ workers' = backup.workers /\ outbox' = backup.outbox
    /\ parked' = backup.parked /\ handled' = backup.handled
    /\ ahead' = (ahead \/ published # backup.published) /\ found' = FALSE
    /\ consumer' = [c \in Consumers |-> Idle]
    /\ UNCHANGED <<topic, epoch, log, published, origin, made, twice, narrow, told>>

(* The platform deletes old workers: their orders were sent. *)
DeleteWorker == \E w \in workers :
    /\ Fault("worker deleted") /\ \A row \in outbox \cup parked : row.kind = "order" => row.of # w
    /\ workers' = workers \ {w}
    /\ UNCHANGED <<position, outbox, parked, handled, backup, kafka, consumer, narrow, told, found>>

ChangeSettings ==
    /\ Fault("settings changed") /\ narrow' = ~narrow
    /\ UNCHANGED <<tables, backup, kafka, consumer, told, found>>

ParkRow == \E row \in outbox :
    /\ Fault("row parked") /\ ~ahead /\ outbox' = outbox \ {row} /\ parked' = parked \cup {row}
    /\ UNCHANGED <<position, workers, handled, backup, kafka, consumer, narrow, told, found>>

(* Not a fault: `repair partition --from x --again`. *)
DecideAgain == \E x \in 0..position.next - 1 :
    /\ Fault("decided again")
    /\ position.topic = topic /\ ~position.refused /\ ~IsCut(position)
    /\ position' = [position EXCEPT !.next = x, !.again = TRUE,
                                    !.epoch = KeptEpoch]
    /\ UNCHANGED <<workers, outbox, parked, handled, backup, kafka, consumer, narrow, told, found>>

(* By SQL: without a command of ours. *)
SetBack == \E x \in 0..position.next - 1 :
    /\ Fault("position set back") /\ position.topic = topic /\ ~position.refused
    /\ position' = [position EXCEPT !.next = x]
    /\ UNCHANGED <<workers, outbox, parked, handled, backup, kafka, consumer, narrow, told, found>>

Environment ==
    \/ Write \/ Publish \/ Operate
    \/ CutLog \/ ChangeLeader \/ RecreateTopic \/ Backup \/ Restore \/ DeleteWorker \/ ChangeSettings
    \/ ParkRow \/ DecideAgain \/ SetBack
    \/ \E c \in Consumers : EndSession(c)

Next == Environment \/ \E c \in Consumers : Step(c)

(* Every consumer makes its next step; an operator does nothing unless told. *)
Fairness == \A c \in Consumers : WF_vars(Step(c))
Spec == Init /\ [][Next]_vars
FairSpec == Spec /\ Fairness

(* ---- What must hold --------------------------------------------------------------------------- *)

(* One command, one order: whatever happened in between, unless an operator asked for another one. *)
OneOrder == \A r \in 1..made : Root(r) \in told \/
    (Cardinality(OrdersOf(r) \cap published) <= 1 /\ OrdersOf(r) \cap twice = {})

(* Each record that a position leaves behind was decided, unless a consumer will notice and refuse it. *)
NothingSkipped ==
    LET p == WithoutDecided(position) IN
    (p.topic = topic /\ ~p.refused /\ ~IsCutAtAssignment(p)) =>
        \A i \in DOMAIN log : i <= p.next =>
            log[i].id \in Markers \/ OrdersOf(log[i].id) # {} \/ Rows("letter", log[i].id) # {}

(* A record is not decided twice: checked where no operator asks for it, and nothing is restored. *)
DecidedOnce == \A r \in 1..made :
    Cardinality(Rows("letter", r)) + (IF origin[r] = 0 THEN Cardinality(OrdersOf(r)) ELSE 0)
        <= (IF WasRetried(r) THEN 2 ELSE 1)

(* What was accepted stays accepted: it becomes no dead letter. *)
AcceptedStays == [][\A r \in 1..made : LET w == WorkerOf(topic, r) IN
    w \in workers /\ w \in workers' => Rows("letter", r)' \subseteq Rows("letter", r)]_<<workers, outbox>>

(* What an operator has discarded becomes no worker any more. *)
DiscardedStays == [][\A r \in 1..made :
    LET isDiscarded == IsHandled(r) /\ Rows("command", r) = {} /\ ~WasRetried(r) IN
    isDiscarded /\ isDiscarded' => OrdersOf(r)' \subseteq OrdersOf(r)]_vars

(* Only a position that is not in its log is refused. *)
NoFalseRefusal == position.refused => position.topic # topic \/ IsCut(position)

(* Only a log that was cut looks like one. *)
NoFalseCut == "log cut" \notin Kinds /\ position.topic = topic => ~IsCut(position)

(* What a consumer has found stays refused until it is repaired: also for its successor. *)
RefusedUntilRepaired == [][found /\ found' => position'.next = position.next]_vars

(* After the repair the position is in its log. *)
RepairEnds == [][position.refused /\ ~position'.refused => ~IsCut(WithoutDecided(position))']_vars

(* No partition stands still: it is read to its end, or refused by name. *)
NeverStuck == <>[](position.refused \/ position.topic # topic \/ position.next = Len(log))

Symmetry == Permutations(Consumers)
=============================================================================
