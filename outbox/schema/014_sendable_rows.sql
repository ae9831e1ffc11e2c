-- How many lanes there are was counted in outbox_lane: a row that was deleted or hidden sent keys to other
-- lanes. Now the number is written down.
ALTER TABLE outbox_identity ADD COLUMN lanes SMALLINT;    -- their number, fixed by the first setup: 0 to lanes - 1
UPDATE outbox_identity SET lanes = (SELECT max(lane) + 1 FROM outbox_lane);
-- What could never be sent is refused where it is written. NOT VALID: rows that wait are not looked at, which
-- would take long; a relay parks those of them that it cannot send.
ALTER TABLE outbox
    ADD CONSTRAINT outbox_id_positive CHECK (id > 0) NOT VALID,
    ADD CONSTRAINT outbox_topic_name CHECK (
        topic ~ '^[A-Za-z0-9._-]+$' AND length(topic) <= 249 AND topic NOT IN ('.', '..')) NOT VALID,
    ADD CONSTRAINT outbox_headers_array CHECK (json_typeof(headers) IN ('array', 'null')) NOT VALID,
    ADD CONSTRAINT outbox_created_at_date CHECK (
        created_at >= TIMESTAMPTZ '2000-01-01 00:00:00+00'
        AND created_at < TIMESTAMPTZ '9999-01-01 00:00:00+00') NOT VALID;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM outbox_identity WHERE lanes IS NOT NULL) THEN
        RAISE EXCEPTION 'outbox_lane or outbox_identity is empty: restore its rows first';
    END IF;
    EXECUTE format('ALTER TABLE outbox ADD CONSTRAINT outbox_lane_exists'
                   ' CHECK (lane >= 0 AND lane < %s) NOT VALID', (SELECT lanes FROM outbox_identity));
END
$$;
ALTER TABLE outbox_identity ALTER COLUMN lanes SET NOT NULL;
