BEGIN;
UPDATE consumed_offsets SET next_offset = next_offset + 1000
 WHERE topic = 'in' AND partition = 0;
WITH fresh AS MATERIALIZED (
    SELECT uuidv7() AS worker_id, gen_random_uuid() AS scenario,
           'rtsp://bench-secret@camera.example/' || number AS url
      FROM generate_series(1, 1000) AS number
), accepted AS (
    INSERT INTO workers (worker_id, scenario_uuid, camera_url)
    SELECT worker_id, scenario, url FROM fresh
)
INSERT INTO outbox (lane, topic, key, value, aggregate_id)
SELECT 0, 'to_deploy', convert_to(scenario::text, 'UTF8'),
       convert_to(concat('{"worker_id":"', worker_id, '","scenario_uuid":"', scenario,
                         '","camera_url":"', url, '"}'), 'UTF8'),
       worker_id
  FROM fresh;
COMMIT;
