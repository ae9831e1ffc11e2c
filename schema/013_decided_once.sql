-- A record of the input is decided once: it becomes a worker, or a dead letter. Positions no longer belong
-- to a consumer group: one of another name continues where the last one stopped.
-- Stop all processes of an earlier checkout first: their statements use the old key.
ALTER TABLE consumed_offsets ADD COLUMN decided_end BIGINT;                            -- the records before this offset were decided: never read again
ALTER TABLE consumed_offsets ADD COLUMN decide_again BOOLEAN NOT NULL DEFAULT FALSE;   -- an operator has them decided again, up to decided_end
ALTER TABLE consumed_offsets ADD COLUMN refusal TEXT;                                  -- why the partition is not read until an operator repairs it; null: it is

-- Of several groups' positions the furthest one counts.
DELETE FROM consumed_offsets AS behind
 USING consumed_offsets AS ahead
 WHERE ahead.topic = behind.topic AND ahead.partition = behind.partition
   AND (ahead.next_offset, ahead.consumer_group) > (behind.next_offset, behind.consumer_group);
ALTER TABLE consumed_offsets DROP COLUMN consumer_group;
ALTER TABLE consumed_offsets ADD PRIMARY KEY (topic, partition);
UPDATE consumed_offsets SET decided_end = next_offset;
ALTER TABLE consumed_offsets ALTER COLUMN decided_end SET DEFAULT 0;
ALTER TABLE consumed_offsets ALTER COLUMN decided_end SET NOT NULL;
