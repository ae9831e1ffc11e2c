BEGIN;
SELECT batch_number, inflight FROM outbox_lane WHERE lane = 0 FOR UPDATE
\gset
WITH gone AS (
    DELETE FROM outbox WHERE lane = 0 AND id = ANY(:inflight::bigint[]) RETURNING aggregate_id
)
SELECT coalesce(array_agg(aggregate_id), '{}') AS aggregate_ids FROM gone
\gset
UPDATE workers SET status = 'deployed', updated_at = NOW()
 WHERE worker_id = ANY(ARRAY(
           SELECT worker_id
             FROM workers
            WHERE worker_id = ANY(:aggregate_ids::uuid[]) AND status = 'pending'
              FOR NO KEY UPDATE SKIP LOCKED))
   AND status = 'pending';
SELECT coalesce(array_agg(id), '{}') AS ids
  FROM (SELECT id, topic, key, value, headers
          FROM outbox
         WHERE lane = 0
         ORDER BY id
         LIMIT 1000
           FOR UPDATE SKIP LOCKED) AS claimed
\gset
UPDATE outbox_lane SET batch_number = batch_number + 1, inflight = :ids::bigint[] WHERE lane = 0;
COMMIT;
