------------------------------ MODULE Deferred ------------------------------
(* How workers become `deployed`, although other sessions lock their rows. The names are those of
   outbox/deferred.py; README.md has a table. A message is one worker's, and is published in Relay.tla:
   here the transaction that acknowledges it begins. *)
EXTENDS Integers, FiniteSets

CONSTANTS
    Relays,
    Workers,
    Refused,    \* workers whose row Postgres refuses to update, whenever
    Crashes,    \* how often a relay is lost with what it remembers
    Locks,      \* how often another session locks a worker's row
    Without     \* the guards that are removed: none in the protocol as it is

Has(guard) == guard \notin Without

VARIABLES
    outbox,     \* workers whose message is in Kafka and not acknowledged
    status,     \* of each worker
    locked,     \* workers whose row another session has locked
    list,       \* the table outbox_deferred
    memory,     \* per relay what it wants to do, only where a guard is removed
    crashes, locks

vars == <<outbox, status, locked, list, memory, crashes, locks>>
bounds == <<crashes, locks>>

Init ==
    /\ outbox = Workers /\ status = [w \in Workers |-> "pending"]
    /\ locked = {} /\ list = {} /\ memory = [r \in Relays |-> {}]
    /\ crashes = Crashes /\ locks = Locks

(* on_published: which of these it could do, and what it makes of their rows. *)
Done(S) == S \ (locked \cup Refused)
Deployed(S) == [w \in Workers |->
    IF w \in S /\ (status[w] = "pending" \/ ~Has("status guard in acknowledge"))
    THEN "deployed" ELSE status[w]]

(* One transaction deletes outbox rows, calls on_published, and writes the others to the list. *)
Acknowledge(r, S) ==
    /\ S # {} /\ S \subseteq outbox /\ memory[r] = {}
    /\ Has("workers locked by others are skipped") \/ Done(S) = S
    /\ outbox' = outbox \ S /\ status' = Deployed(Done(S))
    /\ IF Has("locked workers put on the list")
       THEN list' = list \cup (S \ Done(S)) /\ UNCHANGED memory
       ELSE memory' = [memory EXCEPT ![r] = S \ Done(S)] /\ UNCHANGED list
    /\ UNCHANGED <<locked, bounds>>

(* Only where a guard is removed: the second transaction. *)
WriteList(r) ==
    /\ ~Has("locked workers put on the list") /\ memory[r] # {}
    /\ list' = list \cup memory[r] /\ memory' = [memory EXCEPT ![r] = {}]
    /\ UNCHANGED <<outbox, status, locked, bounds>>

(* retry: on_published for some of the list; what it has done leaves the list in the same transaction. *)
Retry(r, S) ==
    /\ S # {} /\ S \subseteq list /\ memory[r] = {}
    /\ Has("a refused worker keeps no other on the list") \/ S = list
    /\ S \cap Refused = {} \* Postgres takes back the whole transaction
    /\ IF Has("list shortened in the transaction")
       THEN list' = list \ Done(S) /\ status' = Deployed(Done(S)) /\ UNCHANGED memory
       ELSE list' = list \ Done(S) /\ memory' = [memory EXCEPT ![r] = Done(S)] /\ UNCHANGED status
    /\ UNCHANGED <<outbox, locked, bounds>>

FinishRetry(r) ==
    /\ ~Has("list shortened in the transaction") /\ memory[r] # {}
    /\ status' = Deployed(memory[r]) /\ memory' = [memory EXCEPT ![r] = {}]
    /\ UNCHANGED <<outbox, locked, list, bounds>>

(* Another session, such as the Runner's, which may start the worker. *)
Lock(w) ==
    /\ locks > 0 /\ locks' = locks - 1 /\ w \notin locked
    /\ locked' = locked \cup {w}
    /\ UNCHANGED <<outbox, status, list, memory, crashes>>

Unlock(w) ==
    /\ w \in locked /\ locked' = locked \ {w}
    /\ status' \in {status, [status EXCEPT ![w] = "running"]}
    /\ UNCHANGED <<outbox, list, memory, bounds>>

Crash(r) ==
    /\ crashes > 0 /\ crashes' = crashes - 1 /\ memory' = [memory EXCEPT ![r] = {}]
    /\ UNCHANGED <<outbox, status, locked, list, locks>>

Step(r) ==
    (\E S \in SUBSET Workers : Acknowledge(r, S)) \/ WriteList(r) \/ FinishRetry(r)

Next ==
    \/ \E r \in Relays : Step(r) \/ Crash(r) \/ \E S \in SUBSET Workers : Retry(r, S)
    \/ \E w \in Workers : Lock(w) \/ Unlock(w)

(* Each worker of the list is tried again and again. Locks may stay without end. *)
Fairness ==
    /\ \A r \in Relays : WF_vars(Step(r))
    /\ \A w \in Workers : SF_vars(\E r \in Relays, S \in SUBSET Workers : w \in S /\ Retry(r, S)
                                                                        /\ w \notin locked)
Spec == Init /\ [][Next]_vars
FairSpec == Spec /\ Fairness

(* ---- What must hold --------------------------------------------------------------------------- *)

(* A worker whose message is acknowledged is set, or will be. *)
NothingForgotten == \A w \in Workers : w \in outbox \/ status[w] # "pending" \/ w \in list

(* A worker that runs is never set back. *)
NoStepBack == [][\A w \in Workers : status[w] = "running" => status'[w] = "running"]_vars

(* No row of a worker holds up the outbox. *)
OutboxEmpties == <>(outbox = {})

(* A worker whose row is free, and not refused, is set. *)
EveryWorkerSet == \A w \in Workers \ Refused : <>[](w \notin locked) => <>(status[w] # "pending")
=============================================================================
