-- Which of the numbered files this database has had: `python -m outbox` writes it and reads it. A tool of
-- another kind that runs them keeps its own list, and this table may be missing.
CREATE TABLE IF NOT EXISTS outbox_migrations (
    version    INTEGER PRIMARY KEY,
    checksum   TEXT NOT NULL,                             -- SHA-256 of the file, in hex
    applied_at TIMESTAMPTZ NOT NULL DEFAULT NOW()
);
