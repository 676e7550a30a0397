-- Copies all checkpoints, values and writes of a thread into another one, which is made if it is missing. Returns the
-- other thread (nothing, if the first one has no checkpoint), and whether it has a checkpoint that the first one lacks;
-- then nothing is copied. Repeated, it copies what was added meanwhile.
create or replace function exai.copy_thread_v1(p_owner text, p_source text, p_target text)
returns table (head text, is_taken boolean)
language plpgsql rows 1
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
declare
  v_source exai.checkpoint_threads;
  v_target exai.checkpoint_threads;
begin
  -- In one order, so that two calls cannot wait for each other.
  perform from exai.checkpoint_threads t
    where t.owner = p_owner and t.thread_id = any(array[p_source, p_target]) order by t.id for update;
  select t.* into v_source
    from exai.checkpoint_threads t
   where t.owner = p_owner and t.thread_id = p_source and t.deleted_at is null
     and (t.expires_at is null or t.expires_at > clock_timestamp())
     and exists (select from exai.checkpoints c where c.thread = t.id);
  if not found or p_source = p_target then
    return;
  end if;
  select t.* into v_target
    from exai.checkpoint_threads t
   where t.owner = p_owner and t.thread_id = p_target and t.deleted_at is null
     and (t.expires_at is null or t.expires_at > clock_timestamp());
  if exists (select from exai.checkpoints c
              where c.thread = v_target.id
                and not exists (select from exai.checkpoints s where s.thread = v_source.id and s.namespace = c.namespace
                                                                 and s.checkpoint_id = c.checkpoint_id)) then
    return query select exai.thread_head_v1(v_target), true;
    return;
  end if;
  v_target := (select c.thread from exai.change_thread_v1(p_owner, p_target, v_source.ttl_s) c);
  insert into exai.checkpoints as c (
    thread, namespace, checkpoint_id, owner, parent_id, run_id, body_type, body, metadata_type, metadata, facts, versions,
    delta_channels, key_name, bound_to, created_at)
  select v_target.id, s.namespace, s.checkpoint_id, s.owner, s.parent_id, s.run_id, s.body_type, s.body, s.metadata_type,
         s.metadata, s.facts, s.versions, s.delta_channels, s.key_name, coalesce(s.bound_to, p_source), s.created_at
    from exai.checkpoints s
   where s.thread = v_source.id
  on conflict on constraint checkpoints_pkey do nothing;
  insert into exai.checkpoint_blobs as b (
    thread, namespace, channel, version, value_type, value, key_name, bound_to, created_at)
  select v_target.id, s.namespace, s.channel, s.version, s.value_type, s.value, s.key_name,
         coalesce(s.bound_to, p_source), s.created_at
    from exai.checkpoint_blobs s
   where s.thread = v_source.id
  on conflict on constraint checkpoint_blobs_pkey do nothing;
  insert into exai.checkpoint_writes as w (
    thread, namespace, checkpoint_id, task_id, place, task_path, channel, value_type, value, key_name, bound_to, created_at)
  select v_target.id, s.namespace, s.checkpoint_id, s.task_id, s.place, s.task_path, s.channel, s.value_type, s.value,
         s.key_name, coalesce(s.bound_to, p_source), s.created_at
    from exai.checkpoint_writes s
   where s.thread = v_source.id
  on conflict on constraint checkpoint_writes_pkey do nothing;
  update exai.checkpoint_threads t
     set copied_from = array(select distinct f.name from unnest(t.copied_from || v_source.copied_from || p_source) f(name)
                              where f.name <> p_target order by 1)
   where t.id = v_target.id
  returning t.* into v_target;
  return query select exai.thread_head_v1(v_target), false;
end
$$
