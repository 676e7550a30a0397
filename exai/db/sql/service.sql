-- name: ping
-- repeat: read
-- Proves that the server answers.
select 1::int as one;

-- name: revision
-- repeat: read
-- The schema's revision; fails when the database was never migrated.
select v.version_num::text as revision from exai.alembic_version v;
