-- Deletes the contents of threads, which the caller has locked.
create or replace function exai.clear_threads_v1(p_threads uuid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from exai.checkpoint_writes w where w.thread = any(p_threads);
  delete from exai.checkpoint_blobs b where b.thread = any(p_threads);
  delete from exai.checkpoints c where c.thread = any(p_threads);
end
$$
