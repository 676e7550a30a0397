-- Makes a thread, or locks it, and returns it with its next revision and its next time of expiry. A deleted thread, and
-- one whose time has come, begins anew; is_new says so. p_ttl_s null: the time to live stays as it is.
create or replace function exai.change_thread_v1(
  p_owner text, p_thread_id text, p_ttl_s double precision, out thread exai.checkpoint_threads, out is_new boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
declare
  v_found exai.checkpoint_threads;
begin
  loop
    select t.* into v_found
      from exai.checkpoint_threads t
     where t.owner = p_owner and t.thread_id = p_thread_id
       for update;
    exit when found;
    -- Purged between the two statements, or made by another call.
    insert into exai.checkpoint_threads as t (owner, thread_id) values (p_owner, p_thread_id)
    on conflict on constraint checkpoint_threads_owner_thread_key do nothing
    returning t.* into v_found;
    exit when found;
  end loop;
  is_new := v_found.revision = 0 or v_found.deleted_at is not null
            or coalesce(v_found.expires_at <= clock_timestamp(), false);
  if is_new and v_found.revision > 0 then
    perform exai.clear_threads_v1(array[v_found.id]);
    v_found.copied_from := '{}';
    v_found.ttl_s := null;
  end if;
  update exai.checkpoint_threads t
     set revision = t.revision + 1, changed_xid = pg_current_xact_id(), deleted_at = null,
         updated_at = clock_timestamp(), copied_from = v_found.copied_from, ttl_s = coalesce(p_ttl_s, v_found.ttl_s),
         expires_at = clock_timestamp() + make_interval(secs => coalesce(p_ttl_s, v_found.ttl_s))
   where t.id = v_found.id
  returning t.* into thread;
end
$$
