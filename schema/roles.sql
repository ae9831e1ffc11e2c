-- Least privilege: four group roles, and what each may do. No migration: its name has no number, so
-- `orchestrator migrate` passes it over. Run it after `orchestrator setup`, and again after a release
-- that brought a migration, as a superuser:
--
--     psql -v ON_ERROR_STOP=1 -f schema/roles.sql postgresql://postgres@HOST/DATABASE
--
-- (or as the owner of the database and of all its tables who may create roles). All of it is one
-- transaction, and running it again changes nothing. Nobody logs in as one of these roles: people and
-- processes have logins of their own, which are members. docs/security.md tells how, and why.
BEGIN;
SET LOCAL lock_timeout = '10s';                           -- rather fail than let all the others wait
SET LOCAL client_min_messages = 'warning';                -- no word about what is there already

-- Roles belong to the whole server: another database of it may have made them.
DO $$
DECLARE
    everybody CONSTANT TEXT := 'orchestrator_owner, orchestrator_consumer, orchestrator_relay, orchestrator_operator';
    all_but_owner CONSTANT TEXT := 'orchestrator_consumer, orchestrator_relay, orchestrator_operator';
    this_database CONSTANT TEXT := quote_ident(current_database());
    this_schema CONSTANT TEXT := quote_ident(current_schema());
    missing TEXT;
    numbers TEXT;
BEGIN
    FOR missing IN
        SELECT name
          FROM unnest(string_to_array(everybody, ', ')) AS name
         WHERE name NOT IN (SELECT rolname FROM pg_roles)
    LOOP
        EXECUTE format('CREATE ROLE %I NOLOGIN', missing);
    END LOOP;

    -- Who is no superuser gives tables away only to a role of which they are a member.
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        GRANT orchestrator_owner TO CURRENT_USER;
    END IF;

    EXECUTE format('GRANT CONNECT ON DATABASE %s TO %s', this_database, everybody);
    EXECUTE format('GRANT USAGE ON SCHEMA %s TO %s', this_schema, everybody);
    EXECUTE format('GRANT CREATE ON SCHEMA %s TO orchestrator_owner', this_schema);
    EXECUTE format('GRANT TEMPORARY ON DATABASE %s TO orchestrator_operator', this_database); -- audit

    -- Where workers.id comes from: of an adopted table perhaps no SERIAL, or no sequence at all.
    FOR numbers IN
        SELECT refobjid::regclass
          FROM pg_attrdef
          JOIN pg_depend ON classid = 'pg_attrdef'::regclass AND objid = pg_attrdef.oid
          JOIN pg_class ON pg_class.oid = refobjid AND relkind = 'S'
         WHERE adrelid = 'workers'::regclass
         UNION
        SELECT pg_get_serial_sequence('workers', 'id')::regclass
    LOOP
        CONTINUE WHEN numbers IS NULL;
        EXECUTE format('REVOKE ALL ON SEQUENCE %s FROM %s', numbers, all_but_owner);
        EXECUTE format('GRANT USAGE ON SEQUENCE %s TO orchestrator_consumer', numbers);
        EXECUTE format('GRANT SELECT ON SEQUENCE %s TO orchestrator_relay, orchestrator_operator',
                       numbers);                          -- how many ids are left
    END LOOP;

    -- Those of our own tables: they are identities, so who inserts needs no right.
    FOR numbers IN
        SELECT pg_get_serial_sequence(name, 'id')
          FROM unnest(ARRAY['outbox', 'repairs']) AS name
    LOOP
        EXECUTE format('REVOKE ALL ON SEQUENCE %s FROM %s', numbers, all_but_owner);
    END LOOP;
END
$$;

-- What an earlier release granted and this one does not. Until COMMIT nobody sees it missing.
REVOKE ALL ON workers, outbox, outbox_lane, outbox_parked, outbox_identity, consumed_offsets, repairs,
              dead_letters_handled, schema_migrations
  FROM orchestrator_consumer, orchestrator_relay, orchestrator_operator;

-- All of them: whether the schema is that of the code, which is the first thing that they ask.
GRANT SELECT (version, checksum) ON schema_migrations
   TO orchestrator_consumer, orchestrator_relay, orchestrator_operator;

-- The consumer: accepts commands. It never reads a camera URL, nor the outbox.
GRANT INSERT (worker_id, scenario_uuid, camera_url) ON workers TO orchestrator_consumer;
GRANT SELECT (worker_id) ON workers TO orchestrator_consumer;                 -- ON CONFLICT, RETURNING
GRANT INSERT (lane, topic, key, value, headers, aggregate_id) ON outbox TO orchestrator_consumer;
GRANT SELECT (lane) ON outbox_lane TO orchestrator_consumer;                  -- how many there are
GRANT SELECT ON consumed_offsets TO orchestrator_consumer;
GRANT INSERT (consumer_group, topic, partition, topic_id, next_offset) ON consumed_offsets
   TO orchestrator_consumer;
GRANT UPDATE (next_offset, leader_epoch) ON consumed_offsets TO orchestrator_consumer;

-- The relay: publishes the outbox. SELECT ... FOR UPDATE asks for UPDATE on some column: created_at is
-- the one that does the least harm.
GRANT SELECT (worker_id, status), UPDATE (status, updated_at) ON workers TO orchestrator_relay;
GRANT SELECT, DELETE, UPDATE (created_at) ON outbox TO orchestrator_relay;
GRANT SELECT, UPDATE (epoch, batch_number, inflight, transactional_lane, server_run) ON outbox_lane TO orchestrator_relay;
GRANT INSERT (lane, id, topic, key, value, headers, aggregate_id, created_at, reason) ON outbox_parked
   TO orchestrator_relay;
GRANT SELECT (identity) ON outbox_identity TO orchestrator_relay;

-- The operator: looks, and changes nothing. No camera URL, as far as the tables go: rows that were set
-- aside are shown whole, since somebody must judge them.
GRANT SELECT (id, worker_id, scenario_uuid, status, process_pid, created_at, updated_at) ON workers
   TO orchestrator_operator;
GRANT SELECT (lane, id, topic, aggregate_id, created_at) ON outbox TO orchestrator_operator;
GRANT SELECT ON outbox_lane, outbox_parked, outbox_identity, consumed_offsets, repairs,
                dead_letters_handled
   TO orchestrator_operator;

-- The owner: runs migrations, and all that changes something by hand (repair, dlq, parked). `workers`
-- stays whose it is, the platform's.
ALTER TABLE outbox OWNER TO orchestrator_owner;
ALTER TABLE outbox_lane OWNER TO orchestrator_owner;
ALTER TABLE outbox_parked OWNER TO orchestrator_owner;
ALTER TABLE outbox_identity OWNER TO orchestrator_owner;
ALTER TABLE consumed_offsets OWNER TO orchestrator_owner;
ALTER TABLE repairs OWNER TO orchestrator_owner;
ALTER TABLE dead_letters_handled OWNER TO orchestrator_owner;
ALTER TABLE schema_migrations OWNER TO orchestrator_owner;
GRANT UPDATE (status, updated_at) ON workers TO orchestrator_owner;
GRANT orchestrator_operator TO orchestrator_owner;

COMMIT;
