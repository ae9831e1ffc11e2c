-- Aggregates whose message is in Kafka and whose `on_published` could not be done at once: another
-- transaction locks what it writes, or Postgres refuses it. The transaction that deletes the outbox rows
-- writes them here, so that no lane waits for a table of the service; a relay calls `on_published` again.
--
-- No unique aggregate_id: an insert would wait for the transaction that is deleting the same one.
CREATE TABLE outbox_deferred (
    id              BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    aggregate_id    UUID NOT NULL,
    reason          TEXT NOT NULL,                        -- locked by another session, or the error of Postgres
    attempts        INTEGER NOT NULL DEFAULT 1,           -- calls of on_published so far
    deferred_at     TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    last_attempt_at TIMESTAMPTZ NOT NULL DEFAULT NOW()
) WITH (
    autovacuum_vacuum_scale_factor = 0,                   -- as for outbox: count rows, a share means nothing
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX outbox_deferred_next ON outbox_deferred (last_attempt_at);   -- the least recently tried first
