-- Least privilege: four group roles, and the permissions of each. This is no migration: its name has no
-- number, so `orchestrator migrate` skips it. Run it after `orchestrator setup`, and again after a release
-- with a migration, as a superuser:
--
--     psql -v ON_ERROR_STOP=1 -f schema/roles.sql postgresql://postgres@HOST/DATABASE
--
-- (or as the owner of the database and of all its tables, with CREATEROLE). It is one transaction, and
-- running it again changes nothing. Functions have their full names: a superuser must not run one that
-- another login planted. These roles have no login: the operator and the processes have logins
-- of their own, which are members of these roles. docs/security.md says how, and why.
BEGIN;
SET LOCAL lock_timeout = '10s';                           -- fail instead of blocking the processes
SET LOCAL client_min_messages = 'warning';                -- no notices about what exists already

-- Roles belong to the whole server: another of its databases may have created them.
DO $$
DECLARE
    all_roles CONSTANT TEXT := 'orchestrator_owner, orchestrator_consumer, orchestrator_relay, orchestrator_operator';
    all_but_owner CONSTANT TEXT := 'orchestrator_consumer, orchestrator_relay, orchestrator_operator';
    this_database CONSTANT TEXT := pg_catalog.quote_ident(current_database());
    this_schema CONSTANT TEXT := pg_catalog.quote_ident(current_schema());
    workers_schema CONSTANT TEXT := (
        SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'workers'::regclass::oid);
    missing TEXT;
    sequence TEXT;
BEGIN
    FOR missing IN
        SELECT name
          FROM pg_catalog.unnest(pg_catalog.string_to_array(all_roles, ', ')) AS name
         WHERE name NOT IN (SELECT rolname FROM pg_roles)
    LOOP
        EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', missing);
    END LOOP;

    -- Without superuser, ALTER TABLE ... OWNER TO needs membership in the new owner.
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        GRANT orchestrator_owner TO CURRENT_USER;
    END IF;

    EXECUTE pg_catalog.format('GRANT CONNECT ON DATABASE %s TO %s', this_database, all_roles);
    EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %s TO %s', this_schema, all_roles);
    IF workers_schema <> this_schema THEN                 -- the platform's, further on in the search_path
        EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %s TO %s', workers_schema, all_roles);
    END IF;
    EXECUTE pg_catalog.format('GRANT CREATE ON SCHEMA %s TO orchestrator_owner', this_schema);
    EXECUTE pg_catalog.format('REVOKE CREATE ON SCHEMA %s FROM PUBLIC', this_schema); -- as setup does
    EXECUTE pg_catalog.format('GRANT TEMPORARY ON DATABASE %s TO orchestrator_operator', this_database); -- audit

    -- The sequence of workers.id. An adopted table may have another one than SERIAL's, or none.
    FOR sequence IN
        SELECT refobjid::regclass
          FROM pg_attrdef
          JOIN pg_depend ON classid = 'pg_attrdef'::regclass::oid AND objid = pg_attrdef.oid
          JOIN pg_class ON pg_class.oid = refobjid AND relkind = 'S'
         WHERE adrelid = 'workers'::regclass::oid
         UNION
        SELECT pg_catalog.pg_get_serial_sequence('workers', 'id')::regclass
    LOOP
        CONTINUE WHEN sequence IS NULL;
        EXECUTE pg_catalog.format('REVOKE ALL ON SEQUENCE %s FROM %s', sequence, all_but_owner);
        EXECUTE pg_catalog.format('GRANT USAGE ON SEQUENCE %s TO orchestrator_consumer', sequence);
        EXECUTE pg_catalog.format('GRANT SELECT ON SEQUENCE %s TO orchestrator_relay, orchestrator_operator',
                                  sequence);              -- how many ids are left
    END LOOP;

    -- The sequences of the other tables: identity columns, so an INSERT needs no permission on them.
    FOR sequence IN
        SELECT pg_catalog.pg_get_serial_sequence(name, 'id')
          FROM pg_catalog.unnest(ARRAY['outbox', 'outbox_deferred', 'repairs']) AS name
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON SEQUENCE %s FROM %s', sequence, all_but_owner);
        EXECUTE pg_catalog.format('GRANT SELECT ON SEQUENCE %s TO orchestrator_operator', sequence); -- doctor
    END LOOP;
    EXECUTE pg_catalog.format('GRANT SELECT ON SEQUENCE %s TO orchestrator_consumer, orchestrator_operator',
                              pg_catalog.pg_get_serial_sequence('outbox', 'id')); -- was it set back?
END
$$;

-- Revokes what an earlier release granted and this one does not. Other sessions do not see it before
-- COMMIT.
REVOKE ALL ON workers, outbox, outbox_lane, outbox_parked, outbox_deferred, outbox_identity, consumed_offsets,
              repairs, dead_letters_handled, orchestrator_migrations
  FROM orchestrator_consumer, orchestrator_relay, orchestrator_operator;

-- All roles: compare the schema with the code, which every process and command does first.
GRANT SELECT (version, checksum) ON orchestrator_migrations
   TO orchestrator_consumer, orchestrator_relay, orchestrator_operator;

-- The consumer accepts commands. It reads no camera URL, and of the outbox only ids.
GRANT INSERT (worker_id, scenario_uuid, camera_url) ON workers TO orchestrator_consumer;
GRANT SELECT (worker_id) ON workers TO orchestrator_consumer;                 -- ON CONFLICT, RETURNING
GRANT INSERT (lane, topic, key, value, headers, aggregate_id) ON outbox TO orchestrator_consumer;
GRANT SELECT (lane, id) ON outbox TO orchestrator_consumer;                   -- is its sequence ahead of them?
GRANT SELECT (lane) ON outbox_lane TO orchestrator_consumer;
GRANT SELECT (lanes) ON outbox_identity TO orchestrator_consumer;             -- how many lanes there are
GRANT SELECT ON consumed_offsets TO orchestrator_consumer;
GRANT INSERT (topic, partition, topic_id, next_offset) ON consumed_offsets TO orchestrator_consumer;
GRANT UPDATE (next_offset, leader_epoch, decided_end, decide_again, refusal, cut_at)
   ON consumed_offsets
   TO orchestrator_consumer;
GRANT SELECT (origin) ON dead_letters_handled TO orchestrator_consumer;       -- where records are decided again

-- The relay publishes the outbox. SELECT ... FOR UPDATE requires UPDATE on one column: created_at does the
-- least harm.
GRANT SELECT (worker_id, status), UPDATE (status, updated_at) ON workers TO orchestrator_relay;
GRANT SELECT, DELETE, UPDATE (created_at) ON outbox TO orchestrator_relay;
GRANT SELECT, UPDATE (epoch, batch_number, inflight, transactional_lane, token, marker_token, search_start,
                      log_refusal, server_run) ON outbox_lane
   TO orchestrator_relay;
GRANT INSERT (lane, id, topic, key, value, headers, aggregate_id, message_id, created_at, reason),
      SELECT (lane, id, reason, discarded_at)
   ON outbox_parked
   TO orchestrator_relay;
GRANT INSERT (aggregate_id, reason), SELECT, DELETE, UPDATE (reason, attempts, last_attempt_at)
   ON outbox_deferred TO orchestrator_relay;
GRANT SELECT (identity, lanes) ON outbox_identity TO orchestrator_relay;

-- The operator reads, and changes nothing. It sees camera URLs only in parked rows, which it must be able to
-- judge.
GRANT SELECT (id, worker_id, scenario_uuid, status, process_pid, created_at, updated_at) ON workers
   TO orchestrator_operator;
GRANT SELECT (lane, id, topic, key, aggregate_id, created_at) ON outbox TO orchestrator_operator;
GRANT SELECT ON outbox_lane, outbox_parked, outbox_deferred, outbox_identity, consumed_offsets, repairs,
                dead_letters_handled
   TO orchestrator_operator;

-- The owner runs migrations, and the commands that change something (repair, dlq, parked). `workers` keeps
-- its owner, the platform.
ALTER TABLE outbox OWNER TO orchestrator_owner;
ALTER TABLE outbox_lane OWNER TO orchestrator_owner;
ALTER TABLE outbox_parked OWNER TO orchestrator_owner;
ALTER TABLE outbox_deferred OWNER TO orchestrator_owner;
ALTER TABLE outbox_identity OWNER TO orchestrator_owner;
ALTER TABLE consumed_offsets OWNER TO orchestrator_owner;
ALTER TABLE repairs OWNER TO orchestrator_owner;
ALTER TABLE dead_letters_handled OWNER TO orchestrator_owner;
ALTER TABLE orchestrator_migrations OWNER TO orchestrator_owner;
GRANT UPDATE (status, updated_at) ON workers TO orchestrator_owner;
GRANT orchestrator_operator TO orchestrator_owner;

COMMIT;
