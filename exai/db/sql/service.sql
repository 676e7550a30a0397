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

-- name: standing
-- repeat: read
-- Whether the session that answers may write, and the tables on which its role lacks a right that EXAI needs.
select pg_catalog.current_setting('transaction_read_only')::bool as is_read_only,
       pg_catalog.pg_is_in_recovery()::bool as is_replica,
       array(select t.name
               from (values ('public.conversations'::text), ('public.messages'::text), ('public.turns'::text),
                            ('public.files'::text), ('public.conversation_files'::text)) t(name)
              where pg_catalog.to_regclass(t.name) is not null
                and not (pg_catalog.has_table_privilege(pg_catalog.to_regclass(t.name), 'select')
                         and pg_catalog.has_table_privilege(pg_catalog.to_regclass(t.name), 'insert')
                         and pg_catalog.has_table_privilege(pg_catalog.to_regclass(t.name), 'update')
                         and pg_catalog.has_table_privilege(pg_catalog.to_regclass(t.name), 'delete'))
              order by t.name)::text[] as lacking;
