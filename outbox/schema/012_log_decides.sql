-- The log decides after a doubt: every message has an id, which its record carries as a header, and a lane
-- row says where in the topics the records of its batch can begin. A batch has a random token, in the lane
-- row and in its marker: two histories of one outbox (a copy of the database, a restore) never look alike.
-- Stop all processes of an earlier checkout first, in good order (SIGTERM).
ALTER TABLE outbox ADD COLUMN message_id UUID NOT NULL DEFAULT gen_random_uuid();        -- names the message for good: header message-id
ALTER TABLE outbox_parked ADD COLUMN message_id UUID NOT NULL DEFAULT gen_random_uuid(); -- as it was in outbox

ALTER TABLE outbox_lane ADD COLUMN token UUID;            -- random, of the last batch that was begun; null: none yet
ALTER TABLE outbox_lane ADD COLUMN marker_token UUID;     -- of the marker that was in Kafka when that batch was begun
ALTER TABLE outbox_lane ADD COLUMN search_start JSON;     -- {topic: [topic id, [end offset of each partition]]} before the batch was first sent; null: nothing in flight
ALTER TABLE outbox_lane ADD COLUMN log_refusal TEXT;      -- why the log cannot tell what became of the batch; null: it can

-- The marker is a record of the marker topic now, no longer a group's offset. A lane with nothing in flight
-- begins again with its first marker. One with rows in flight is refused as marker_missing: what became of
-- them, `orchestrator repair lane` finds in the topics.
UPDATE outbox_lane SET batch_number = 0 WHERE inflight = '{}';
