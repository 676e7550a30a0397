-- Which life of the server, and of our tables in it, answers. It changes when transaction ids may be given out again,
-- when commits may be lost, and when rows were removed without a trace in other rows:
--   at restart, failover and restore on another server, by the time at which the first process started;
--   at recovery under the same first process, as after the kill of one backend, by the time at which statistics were
--   discarded, which every recovery does; somebody's pg_stat_reset_shared changes it too, which only makes caches cold;
--   at restore into the same server, truncation and rewrite, by the files of the tables.
-- Every role may read all of it, from memory. Before Postgres 15 statistics come from a file that every reader waits for,
-- so there only the reconciliation of caches reads them. Seconds, because the text of a time depends on session settings.
create or replace function exai.server_epoch_v1() returns text
language sql stable
as $$
select pg_catalog.concat_ws(' ',
  extract(epoch from pg_catalog.pg_postmaster_start_time()),
  case when pg_catalog.current_setting('server_version_num')::integer >= 150000
       then extract(epoch from pg_catalog.pg_stat_get_bgwriter_stat_reset_time()) end,
  pg_catalog.pg_relation_filenode('public.conversations'::regclass),
  pg_catalog.pg_relation_filenode('public.messages'::regclass))
$$
