-- Dead letters that people dealt with (`orchestrator dlq`). The topic itself cannot be written to: this
-- table says which of its records are done. A row is written in the transaction that puts the command
-- into the outbox once more, so nobody sends one letter twice, however often or from wherever they try.
-- Each such transaction also leaves a line in `repairs`, which from here on tells of all that people
-- decided: lanes, partitions, dead letters and parked rows.
CREATE TABLE dead_letters_handled (
    topic_id      UUID NOT NULL,                          -- Kafka's id of the dead-letter topic: one made anew has another
    partition     INTEGER NOT NULL,
    record_offset BIGINT NOT NULL,
    action        TEXT NOT NULL,                          -- retry: its command was sent again; discard: it was not
    handled_at    TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    PRIMARY KEY (topic_id, partition, record_offset),
    CONSTRAINT known_action CHECK (action IN ('retry', 'discard'))
);

-- A parked row that a person gave up (`orchestrator parked discard`) stays, as the trace of why its
-- worker has no deploy order: the audit does not call it lost.
ALTER TABLE outbox_parked ADD COLUMN discarded_at TIMESTAMPTZ;
