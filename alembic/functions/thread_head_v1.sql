-- What callers and caches need to know of a thread, as JSON.
create or replace function exai.thread_head_v1(p_thread exai.checkpoint_threads) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
select jsonb_build_object(
  'id', (p_thread).id, 'thread_id', (p_thread).thread_id, 'revision', (p_thread).revision,
  'copied_from', (p_thread).copied_from, 'ttl_s', (p_thread).ttl_s,
  'expires_at', extract(epoch from (p_thread).expires_at), 'is_deleted', (p_thread).deleted_at is not null,
  'server_epoch', exai.server_epoch_v1())::text
$$
