-- Stores what a task has written. One that is stored already stays, or with p_replace takes the new value. Returns as
-- put_checkpoint_v1. Locks the thread.
create or replace function exai.put_writes_v1(
  p_owner text, p_thread_id text, p_ttl_s double precision, p_namespace text, p_checkpoint_id text, p_task_id text,
  p_task_path text, p_replace boolean, p_key_name text, p_places integer[], p_channels text[], p_types text[],
  p_values bytea[])
returns table (head text, is_new boolean, stored bigint)
language plpgsql rows 1
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
declare
  v_changed record;
  v_thread exai.checkpoint_threads;
  v_stored bigint;
begin
  select c.thread, c.is_new into v_changed from exai.change_thread_v1(p_owner, p_thread_id, p_ttl_s) c;
  v_thread := v_changed.thread;
  insert into exai.checkpoint_writes as w (
    thread, namespace, checkpoint_id, task_id, place, task_path, channel, value_type, value, key_name)
  select v_thread.id, p_namespace, p_checkpoint_id, p_task_id, g.place, p_task_path, g.channel, g.type, g.value, p_key_name
    from unnest(p_places, p_channels, p_types, p_values) g(place, channel, type, value)
  on conflict on constraint checkpoint_writes_pkey do update
     set task_path = excluded.task_path, channel = excluded.channel, value_type = excluded.value_type,
         value = excluded.value, key_name = excluded.key_name, bound_to = null
   where p_replace;
  get diagnostics v_stored = row_count;
  return query select exai.thread_head_v1(v_thread), v_changed.is_new, v_stored;
end
$$
