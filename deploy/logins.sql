-- The logins of deploy/compose.yaml, and the group roles that schema/roles.sql gives permissions to. As a
-- superuser, with the passwords in the environment; running it again sets these passwords.
\set ON_ERROR_STOP on
\getenv owner OWNER_PASSWORD
\getenv consumer CONSUMER_PASSWORD
\getenv relay RELAY_PASSWORD
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';

SELECT format('CREATE ROLE %I NOLOGIN', name)
  FROM unnest(ARRAY['orchestrator_owner', 'orchestrator_consumer', 'orchestrator_relay']) AS name
 WHERE name NOT IN (SELECT rolname FROM pg_roles) \gexec

SELECT format('CREATE ROLE %I LOGIN IN ROLE %I', 'vap_' || kind, 'orchestrator_' || kind)
  FROM unnest(ARRAY['owner', 'consumer', 'relay']) AS kind
 WHERE 'vap_' || kind NOT IN (SELECT rolname FROM pg_roles) \gexec

ALTER ROLE vap_owner PASSWORD :'owner';
ALTER ROLE vap_consumer PASSWORD :'consumer';
ALTER ROLE vap_relay PASSWORD :'relay';
ALTER ROLE vap_owner SET role = orchestrator_owner; -- what setup creates belongs to the group
GRANT CREATE ON SCHEMA public TO orchestrator_owner;
