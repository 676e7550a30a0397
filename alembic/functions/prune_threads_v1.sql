-- Removes checkpoints of an owner's threads, and returns the threads that have changed: all checkpoints, all but those
-- that are needed for the newest (p_keep), or those of runs (p_runs; p_thread_ids is not used then). A thread without
-- checkpoints stays as a deleted one, unless it lost only runs. Locks the threads in the order of their ids.
create or replace function exai.prune_threads_v1(p_owner text, p_thread_ids text[], p_keep boolean, p_runs text[])
returns table (head text)
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
declare
  v_threads constant uuid[] := array(
    select t.id from exai.checkpoint_threads t
     where t.owner = p_owner and t.deleted_at is null
       and case when p_runs is null then t.thread_id = any(p_thread_ids)
                else t.id in (select c.thread from exai.checkpoints c where c.owner = p_owner and c.run_id = any(p_runs)) end
     order by t.id
       for update);
begin
  if p_keep or p_runs is not null then
    perform exai.sweep_threads_v1(v_threads, p_runs);
  else
    perform exai.clear_threads_v1(v_threads);
  end if;
  return query
    update exai.checkpoint_threads t
       set revision = t.revision + 1, changed_xid = pg_current_xact_id(), updated_at = clock_timestamp(),
           deleted_at = case when not p_keep and p_runs is null then clock_timestamp() end
     where t.id = any(v_threads)
    returning exai.thread_head_v1(t);
end
$$
