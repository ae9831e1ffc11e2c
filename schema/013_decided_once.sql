-- A record of the input is decided once: it becomes a worker, or a dead letter. Positions no longer belong
-- to a consumer group: one of another name continues where the last one stopped.
-- Stop all processes of an earlier checkout first: their statements use the old key.
ALTER TABLE consumed_offsets ADD COLUMN decided_end BIGINT;                            -- the records before this offset were decided, or skipped by an operator: never read again
ALTER TABLE consumed_offsets ADD COLUMN decide_again BOOLEAN NOT NULL DEFAULT FALSE;   -- true: an operator has records decided again, from next_offset up to decided_end
ALTER TABLE consumed_offsets ADD COLUMN refusal TEXT;                                  -- why the partition is not read until an operator repairs it; null: it is
ALTER TABLE consumed_offsets ADD COLUMN cut_at BIGINT;                                 -- where the log was cut, when that was found; null: not cut, or unknown

-- Of several groups' positions the furthest one counts, unless one of them is in a topic that is gone: which
-- one that is, only the operator can tell.
DO $$
DECLARE
    several RECORD;
BEGIN
    SELECT topic, partition, string_agg(format('%s (topic id %s)', consumer_group, topic_id), ', ') AS groups
      INTO several
      FROM consumed_offsets
     GROUP BY topic, partition
    HAVING count(DISTINCT topic_id) > 1
     ORDER BY topic, partition
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'consumed_offsets: partition % of % has positions in topics of different ids, of the groups %: delete the rows of the topics that are gone',
              several.partition, several.topic, several.groups;
    END IF;
END
$$;
DELETE FROM consumed_offsets AS behind
 USING consumed_offsets AS ahead
 WHERE ahead.topic = behind.topic AND ahead.partition = behind.partition
   AND (ahead.next_offset, ahead.leader_epoch, ahead.consumer_group)
     > (behind.next_offset, behind.leader_epoch, behind.consumer_group);
ALTER TABLE consumed_offsets DROP COLUMN consumer_group;
ALTER TABLE consumed_offsets ADD PRIMARY KEY (topic, partition);
UPDATE consumed_offsets SET decided_end = next_offset;
ALTER TABLE consumed_offsets ALTER COLUMN decided_end SET DEFAULT 0;
ALTER TABLE consumed_offsets ALTER COLUMN decided_end SET NOT NULL;
