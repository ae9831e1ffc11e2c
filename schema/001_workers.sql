-- The platform's own table: the API and the Runner use it too. It is created only where it is
-- missing; an existing one is adopted as it is, and nothing in it is renamed, narrowed or deleted.
--
-- status, in the order of a worker's life:
--   pending   the consumer accepted the command; its deploy order is in the outbox
--   deployed  the relay published the deploy order (set only over 'pending', never over a later state)
--   running   the Runner started the process (process_pid)
--   failed    the Runner gave up; kept for people to look at, never cleaned up by us
--   stopped   the process ended as it was asked to
--
-- No index on status: the one update pending -> deployed then changes no indexed column and stays a
-- heap-only (HOT) update, half the WAL. fillfactor 50 leaves room for that new row version on the page.
CREATE TABLE IF NOT EXISTS workers (
    id            SERIAL PRIMARY KEY,                     -- the platform's handle for people
    worker_id     UUID UNIQUE NOT NULL,                   -- derived from the input record, so a record read twice meets this constraint
    scenario_uuid UUID NOT NULL,                          -- one scenario may have many workers over time: not unique
    camera_url    TEXT NOT NULL,                          -- carries credentials: never logged
    status        VARCHAR(50) NOT NULL DEFAULT 'pending',
    process_pid   INTEGER,                                -- the Runner's, null until it runs
    created_at    TIMESTAMP DEFAULT NOW(),                -- without time zone, as the platform made it; our sessions run in UTC
    updated_at    TIMESTAMP DEFAULT NOW()
) WITH (fillfactor = 50);
