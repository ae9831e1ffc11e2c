-- A relay works all its lanes in one Kafka transaction. Its transactional id is that of its lowest lane;
-- so the lane row says under which id the batch in hand goes out, and whoever takes the lane over fences
-- that id before it looks for the lane's marker. Nothing that concerns the lane is sent under another one.
ALTER TABLE outbox_lane ADD COLUMN carrier SMALLINT;      -- the lane whose transactional id carries this one
UPDATE outbox_lane SET carrier = lane;
ALTER TABLE outbox_lane ALTER COLUMN carrier SET NOT NULL;

-- Relays of the releases before do not know of it, and may still be running. They add 1 to the epoch of a
-- lane that they take; from here on an epoch is even. This takes all lanes from them, for good.
UPDATE outbox_lane SET epoch = 2 * epoch + 2;
ALTER TABLE outbox_lane ADD CONSTRAINT no_relay_from_before_carriers CHECK (epoch % 2 = 0);
