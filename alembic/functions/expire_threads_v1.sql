-- Deletes the contents of threads whose time has come (p_idle_s null), or which nothing has changed for p_idle_s seconds
-- and that have no time of their own: of one owner, or of all but some. At most p_limit of them; returns their number.
create or replace function exai.expire_threads_v1(
  p_owner text, p_idle_s double precision, p_but text[], p_limit integer) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_threads uuid[];
begin
  if p_idle_s is null then
    v_threads := array(
      select t.id from exai.checkpoint_threads t
       where t.expires_at <= now() and t.deleted_at is null
       order by t.id
       limit p_limit
         for update skip locked);
  else
    v_threads := array(
      select t.id from exai.checkpoint_threads t
       where t.updated_at < now() - make_interval(secs => p_idle_s) and t.expires_at is null and t.deleted_at is null
         and (p_owner is null or t.owner = p_owner) and t.owner <> all(p_but)
       order by t.updated_at
       limit p_limit
         for update skip locked);
  end if;
  perform exai.clear_threads_v1(v_threads);
  update exai.checkpoint_threads t
     set revision = t.revision + 1, changed_xid = pg_current_xact_id(), deleted_at = now(), updated_at = now()
   where t.id = any(v_threads);
  return cardinality(v_threads);
end
$$
