-- One word for one thing (docs/glossary.md): the names of columns and constraints follow the code.
-- Stop all processes of an earlier checkout first: their statements use the old names.
ALTER TABLE outbox RENAME COLUMN subject TO aggregate_id;                 -- whom the message is about; handed to on_published
ALTER TABLE outbox_parked RENAME COLUMN subject TO aggregate_id;
ALTER TABLE outbox_lane RENAME COLUMN seq TO batch_number;                -- of the last batch that was begun; 0: none yet
ALTER TABLE outbox_lane RENAME COLUMN carrier TO transactional_lane;      -- the lane whose transactional id the batch goes out under; null: its own
ALTER TABLE outbox_lane RENAME COLUMN incarnation TO server_run;          -- the run of the server, and the table's file, that wrote the row
ALTER TABLE outbox_lane RENAME CONSTRAINT lane_counts_from_zero TO lane_not_negative;
ALTER TABLE outbox_lane RENAME CONSTRAINT only_grow TO epoch_and_batch_number_not_negative;
ALTER TABLE outbox_identity RENAME COLUMN only_one TO single_row;
ALTER TABLE outbox_identity RENAME CONSTRAINT outbox_identity_only_one_key TO outbox_identity_single_row_key;
ALTER TABLE outbox_identity RENAME CONSTRAINT outbox_identity_only_one_check TO outbox_identity_single_row_check;

-- A parked row that an operator discarded stays, marked. Databases of earlier checkouts have the column.
ALTER TABLE outbox_parked ADD COLUMN IF NOT EXISTS discarded_at TIMESTAMPTZ;
