-- Stores a checkpoint, and the values of channels whose version is new; a version that is stored already keeps its value.
-- p_checkpoint: the fields of its row but for the bytes. Returns the thread, whether it has begun anew, and how many
-- values were stored. Locks the thread.
create or replace function exai.put_checkpoint_v1(
  p_owner text, p_thread_id text, p_ttl_s double precision, p_checkpoint jsonb, p_body bytea, p_metadata bytea,
  p_channels text[], p_versions text[], p_types text[], p_values bytea[])
returns table (head text, is_new boolean, stored bigint)
language plpgsql rows 1
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
declare
  v_changed record;
  v_thread exai.checkpoint_threads;
  v_namespace constant text := p_checkpoint ->> 'namespace';
  v_key_name constant text := p_checkpoint ->> 'key_name';
  v_stored bigint;
begin
  select c.thread, c.is_new into v_changed from exai.change_thread_v1(p_owner, p_thread_id, p_ttl_s) c;
  v_thread := v_changed.thread;
  insert into exai.checkpoint_blobs as b (thread, namespace, channel, version, value_type, value, key_name)
  select v_thread.id, v_namespace, g.channel, g.version, g.type, g.value, v_key_name
    from unnest(p_channels, p_versions, p_types, p_values) g(channel, version, type, value)
  on conflict on constraint checkpoint_blobs_pkey do nothing;
  get diagnostics v_stored = row_count;
  insert into exai.checkpoints as c (
    thread, namespace, checkpoint_id, owner, parent_id, run_id, body_type, body, metadata_type, metadata, facts, versions,
    delta_channels, key_name)
  values (
    v_thread.id, v_namespace, p_checkpoint ->> 'checkpoint_id', p_owner, p_checkpoint ->> 'parent_id',
    p_checkpoint ->> 'run_id', p_checkpoint ->> 'body_type', p_body, p_checkpoint ->> 'metadata_type', p_metadata,
    p_checkpoint -> 'facts', p_checkpoint -> 'versions',
    array(select jsonb_array_elements_text(p_checkpoint -> 'delta_channels')), v_key_name)
  on conflict on constraint checkpoints_pkey do update
     set parent_id = excluded.parent_id, run_id = excluded.run_id, body_type = excluded.body_type, body = excluded.body,
         metadata_type = excluded.metadata_type, metadata = excluded.metadata, facts = excluded.facts,
         versions = excluded.versions, delta_channels = excluded.delta_channels, key_name = excluded.key_name,
         bound_to = null;
  return query select exai.thread_head_v1(v_thread), v_changed.is_new, v_stored;
end
$$
