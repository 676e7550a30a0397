-- Identifies the state of the server and of EXAI's tables in it. Changes whenever transaction ids may be assigned
-- again, commits may be lost, or rows were removed without a trace in other rows:
--   restart, failover, restore to another server: by the start time of the postmaster;
--   recovery under the same postmaster, as after the kill of one backend: by the time of the last reset of
--     statistics, which every recovery discards; pg_stat_reset_shared changes it too, which only empties caches;
--   restore into the same server, truncation and rewrite: by the files of the tables.
-- Readable by every role, from memory. Before Postgres 15 statistics are read from a file that every reader waits
-- for, so there only the reconciliation of caches reads them. In seconds, because the text of a time depends on
-- session settings.
create or replace function exai.server_epoch_v1() returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
select pg_catalog.concat_ws(' ',
  extract(epoch from pg_catalog.pg_postmaster_start_time()),
  case when pg_catalog.current_setting('server_version_num')::integer >= 150000
       then extract(epoch from pg_catalog.pg_stat_get_bgwriter_stat_reset_time()) end,
  pg_catalog.pg_relation_filenode('public.conversations'::regclass),
  pg_catalog.pg_relation_filenode('public.messages'::regclass))
$$
