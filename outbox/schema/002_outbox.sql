-- The outbox: messages that are decided in Postgres and not yet known to be in Kafka.
-- These tables are generic; only outbox/ reads and writes them.

-- One row a message. It is deleted when its batch is settled, so the table is as long as the backlog.
-- Every row is inserted once and deleted once: without eager vacuum the claim would wade through dead
-- rows at the head of the index.
CREATE TABLE outbox (
    lane       SMALLINT NOT NULL,                         -- crc32(key) mod lanes: one owner works a lane in sequence, so order per key holds
    id         BIGINT GENERATED ALWAYS AS IDENTITY,       -- order within the lane; ids may commit out of order and have gaps
    topic      TEXT NOT NULL,
    key        BYTEA,                                     -- null: no key, the lane was dealt in turn
    value      BYTEA,                                     -- null: a tombstone, kept as such
    headers    JSON,                                      -- [[name, base64 or null], ...]; json and not jsonb: jsonb refuses \u0000 in a name
    subject    UUID,                                      -- whom the row is about; handed back when it is settled
    created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),        -- start of the inserting transaction; the age of the backlog is read from it
    PRIMARY KEY (lane, id)                                -- the claim: one lane in id order
) WITH (
    autovacuum_vacuum_scale_factor = 0,                   -- a share of the table means nothing for a queue: count rows instead
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000,
    autovacuum_vacuum_cost_delay = 0                      -- vacuum at full speed: the table is small or in a hurry
);

-- One row a lane: who may write (epoch) and which batch is in hand (seq, inflight). It is written
-- before Kafka begins a batch and is the half of the evidence that recovery compares with the marker
-- in Kafka. fillfactor leaves room for its next version: it is updated once a batch.
CREATE TABLE outbox_lane (
    lane     SMALLINT PRIMARY KEY,
    epoch    BIGINT NOT NULL DEFAULT 0,                   -- raised by each new owner; every write says WHERE epoch = mine
    seq      BIGINT NOT NULL DEFAULT 0,                   -- number of the last batch that was begun; 0: none ever
    inflight BIGINT[] NOT NULL DEFAULT '{}',              -- ids of batch seq; empty once it is settled and nothing new was claimed
    CONSTRAINT lane_counts_from_zero CHECK (lane >= 0),   -- a lane is a partition of the progress topic
    CONSTRAINT only_grow CHECK (epoch >= 0 AND seq >= 0)
) WITH (fillfactor = 10);

-- `orchestrator migrate` says how many lanes (LANES); plain psql makes 4. The number is fixed from
-- then on: a key must not move to another lane while rows wait in the old one.
INSERT INTO outbox_lane (lane)
SELECT generate_series(0, coalesce(nullif(current_setting('outbox.lanes', true), ''), '4')::int - 1);

-- Rows that Kafka refused for themselves (too large, invalid), moved here so that their neighbours
-- can go out. They wait for a person; nothing deletes them by itself.
CREATE TABLE outbox_parked (
    lane       SMALLINT NOT NULL,
    id         BIGINT NOT NULL,                           -- as it was in outbox
    topic      TEXT NOT NULL,
    key        BYTEA,
    value      BYTEA,
    headers    JSON,
    subject    UUID,
    created_at TIMESTAMPTZ NOT NULL,
    reason     TEXT NOT NULL,                             -- Kafka's word for it; never the content
    parked_at  TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    PRIMARY KEY (lane, id)
);

-- One row: the name of this outbox. It is part of the transactional ids and of the progress group in
-- Kafka, so two installations on one Kafka never meet.
CREATE TABLE outbox_identity (
    identity UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    only_one BOOLEAN NOT NULL DEFAULT TRUE UNIQUE CHECK (only_one)
);
INSERT INTO outbox_identity DEFAULT VALUES;
