BEGIN;
SELECT seq, inflight FROM outbox_lane WHERE lane = 0 FOR UPDATE
\gset
WITH gone AS (
    DELETE FROM outbox WHERE lane = 0 AND id = ANY(:inflight::bigint[]) RETURNING subject
)
SELECT coalesce(array_agg(subject), '{}') AS subjects FROM gone
\gset
UPDATE workers SET status = 'deployed', updated_at = NOW()
 WHERE worker_id = ANY(:subjects::uuid[]) AND status = 'pending';
SELECT coalesce(array_agg(id), '{}') AS ids
  FROM (SELECT id, topic, key, value, headers
          FROM outbox
         WHERE lane = 0
         ORDER BY id
         LIMIT 1000
           FOR UPDATE SKIP LOCKED) AS claimed
\gset
UPDATE outbox_lane SET seq = seq + 1, inflight = :ids::bigint[] WHERE lane = 0;
COMMIT;
