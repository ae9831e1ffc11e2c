-- A relay works all its lanes in one Kafka transaction. Its transactional id is that of its lowest lane;
-- so the lane row says under which id the batch in hand goes out, and whoever takes the lane over fences
-- that id before it looks for the lane's marker. Nothing that concerns the lane is sent under another one.
ALTER TABLE outbox_lane ADD COLUMN carrier SMALLINT;      -- the lane whose transactional id carries this one; null: its own
