-- name: ping
-- repeat: read
-- Proves that the server answers.
select 1::int as one;

-- name: revision
-- repeat: read
-- The schema's revision; fails when the database was never migrated.
select v.version_num::text as revision from exai.alembic_version v;

-- name: server_limit
-- repeat: read
-- The statement timeout in force on the connection that answers: ours when direct, the role's behind a pooler.
select s.setting::int as statement_timeout_ms from pg_catalog.pg_settings s where s.name = 'statement_timeout';
