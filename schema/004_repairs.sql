-- What people decided where the evidence did not: one row for each lane or partition that
-- `orchestrator repair` changed, written in the transaction that changed it. Nothing reads it but people.
CREATE TABLE repairs (
    id          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repaired_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    repaired_by TEXT NOT NULL DEFAULT SESSION_USER,       -- the login, whatever role it took
    command     TEXT NOT NULL,                            -- with its options
    subject     TEXT NOT NULL,                            -- 'lane 2', 'partition 0 of init_scenario'
    reason      TEXT NOT NULL,                            -- what was refused: marker_ahead, topic_recreated, ...
    before      JSONB NOT NULL,                           -- seq, inflight and marker, or topic id and offset
    after       JSONB NOT NULL,
    counts      JSONB NOT NULL                            -- rows found published, rows left, offsets gone, ...
);
