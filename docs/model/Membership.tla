----------------------------- MODULE Membership -----------------------------
(* Which relay owns which lane, while Kafka answers some relays and others not. The names are those of
   outbox/membership.py; README.md has a table. Time is left out: what takes seconds may happen at once,
   or late. How a lane is recovered and published is in Relay.tla. *)
EXTENDS Integers, FiniteSets

CONSTANTS
    Relays,
    Lanes,
    Changes,    \* how often Kafka begins or ends to answer a relay, or a relay starts or ends
    Levels,     \* what a relay may get from Kafka: see `level`
    TrustReturns, \* FALSE: a relay whose work has failed is distrusted without end
    Without,    \* the guards that are removed: none in the protocol as it is
    NoRelay

Has(guard) == guard \notin Without

VARIABLES
    level,      \* per relay: "works": Kafka answers all; "probes": the probe is answered, but nothing can
                \* be published; "silent": nothing is answered; "gone": the process has ended
    kafkaLock,  \* the relays that hold the lock "Kafka answers me"
    owner,      \* per lane the relay that owns it
    distrusted, \* relays whose work has failed although the probe was answered
    changes

vars == <<level, kafkaLock, owner, distrusted, changes>>

Members == {r \in Relays : level[r] # "gone"}
Owned(r) == {l \in Lanes : owner[l] = r}
Works(r) == level[r] = "works"

Init ==
    /\ level \in [Relays -> Levels]
    /\ kafkaLock = {} /\ owner = [l \in Lanes |-> NoRelay] /\ distrusted = {} /\ changes = Changes

(* Those that share the lanes: the holders of the lock if there are any, else all. *)
Sharing == IF kafkaLock = {} \/ ~Has("lanes go to relays that Kafka answers") THEN Members ELSE kafkaLock
FairShare(r) ==
    LET before == Cardinality({other \in Sharing : other < r})
        lanes == Cardinality(Lanes) n == Cardinality(Sharing)
    IN IF r \notin Sharing THEN 0 ELSE (lanes \div n) + (IF before < lanes % n THEN 1 ELSE 0)

(* Kafka does not answer this relay, and another one it does. *)
IsSpare(r) ==
    r \notin kafkaLock /\ (kafkaLock # {} \/ ~Has("no lane moves while Kafka is away for all"))

(* A probe is committed. A relay whose work has failed does not believe it for some time. *)
Probe(r) ==
    /\ level[r] \in {"works", "probes"} /\ r \notin kafkaLock
    /\ r \notin distrusted \/ ~Has("probes distrusted after failed work")
    /\ kafkaLock' = kafkaLock \cup {r}
    /\ UNCHANGED <<level, owner, distrusted, changes>>

(* A batch is published, or a recovery has left no lane failing. *)
Publish(r) ==
    /\ Works(r) /\ Owned(r) # {} /\ (r \notin kafkaLock \/ r \in distrusted)
    /\ kafkaLock' = kafkaLock \cup {r} /\ distrusted' = distrusted \ {r}
    /\ UNCHANGED <<level, owner, changes>>

(* A probe, or a batch, was without an answer for too long. *)
FindSilence(r) ==
    /\ level[r] = "silent" /\ r \in kafkaLock
    /\ kafkaLock' = kafkaLock \ {r}
    /\ UNCHANGED <<level, owner, distrusted, changes>>

(* Probes are answered, and nothing could be published for too long. *)
FailAtWork(r) ==
    /\ level[r] = "probes" /\ Owned(r) # {} /\ r \in kafkaLock
    /\ kafkaLock' = kafkaLock \ {r} /\ distrusted' = distrusted \cup {r}
    /\ UNCHANGED <<level, owner, changes>>

(* Some time later; long enough for its lanes to be released and taken. *)
TrustAgain(r) ==
    /\ TrustReturns /\ r \in distrusted /\ ~(IsSpare(r) /\ \E l \in Lanes : owner[l] \in {r, NoRelay})
    /\ distrusted' = distrusted \ {r}
    /\ UNCHANGED <<level, kafkaLock, owner, changes>>

Take(r, l) ==
    /\ r \in Members /\ owner[l] = NoRelay /\ Cardinality(Owned(r)) < FairShare(r)
    /\ owner' = [owner EXCEPT ![l] = r]
    /\ UNCHANGED <<level, kafkaLock, distrusted, changes>>

(* A holder releases what is beyond its share; a relay without the lock only to a holder, but then all. *)
Release(r, l) ==
    /\ owner[l] = r
    /\ \/ r \in kafkaLock /\ Cardinality(Owned(r)) > FairShare(r)
       \/ IsSpare(r) /\ Has("lanes go to relays that Kafka answers")
    /\ owner' = [owner EXCEPT ![l] = NoRelay]
    /\ UNCHANGED <<level, kafkaLock, distrusted, changes>>

(* The network, a password, an ACL, the process. One that ends loses its locks. *)
Change(r) ==
    /\ changes > 0 /\ changes' = changes - 1
    /\ \E other \in (Levels \cup {"gone"}) \ {level[r]} :
        /\ level' = [level EXCEPT ![r] = other]
        /\ IF other # "gone" THEN UNCHANGED <<kafkaLock, owner, distrusted>>
           ELSE /\ kafkaLock' = kafkaLock \ {r} /\ distrusted' = distrusted \ {r}
                /\ owner' = [l \in Lanes |-> IF owner[l] = r THEN NoRelay ELSE owner[l]]

Move(r) == \E l \in Lanes : Take(r, l) \/ Release(r, l)
Notice(r) == Publish(r) \/ FindSilence(r) \/ FailAtWork(r)

Next == \E r \in Relays : Change(r) \/ Probe(r) \/ TrustAgain(r) \/ Notice(r) \/ Move(r)

(* What can be done again and again is done some time: each takes less time than the distrust lasts. *)
Fairness == \A r \in Relays :
    SF_vars(Probe(r)) /\ SF_vars(TrustAgain(r)) /\ SF_vars(Notice(r)) /\ SF_vars(Move(r))

Spec == Init /\ [][Next]_vars
FairSpec == Spec /\ Fairness

(* ---- What must hold --------------------------------------------------------------------------- *)

(* No two relays count each other out: as long as one holds the lock, only holders take lanes. *)
TakenByHolders == [][\A r \in Relays, l \in Lanes :
    (owner[l] = NoRelay /\ owner'[l] = r /\ kafkaLock # {}) => r \in kafkaLock]_vars

Delivering(l) == owner[l] # NoRelay /\ Works(owner[l])

(* If Kafka answers one relay, the rows of every lane are published. *)
LanesReachKafka == \A l \in Lanes : []<>((\E r \in Relays : Works(r)) => Delivering(l))

(* If no more relays change, the lanes move no more: also when Kafka is away for all. *)
LanesComeToRest == \A l \in Lanes : <>[][owner'[l] = owner[l]]_vars
=============================================================================
