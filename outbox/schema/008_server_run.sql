-- A restored database, or a standby that lacked commits, may name an old carrier. A relay that had taken
-- the lane among what is gone could still send, and nobody would fence it. So the row says which run of
-- the server wrote it, in which file; where either is another one, the ids of all lanes are fenced.
ALTER TABLE outbox_lane ADD COLUMN incarnation TEXT;      -- the server's start and the table's file; null: not known
