-- Deletes of threads, which the caller has locked, what is not needed any more: checkpoints that are not kept, their
-- writes, and values that no checkpoint has. p_runs null: the newest checkpoint of each namespace is kept, and of its
-- ancestors those that a channel is rebuilt from which stores only what was added. Otherwise only the checkpoints of these
-- runs are not kept.
-- Rows are looked up one by one by their keys (limit 1): the planner takes the average thread for a long one, and would
-- read all rows of it for each ancestor.
create or replace function exai.sweep_threads_v1(p_threads uuid[], p_runs text[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  with recursive heads as (
    select distinct on (c.thread, c.namespace)
           c.thread, c.namespace, c.checkpoint_id, c.parent_id, c.versions, c.delta_channels
      from exai.checkpoints c
     where c.thread = any(p_threads) and p_runs is null
     order by c.thread, c.namespace, c.checkpoint_id desc),
  kept(thread, namespace, checkpoint_id, parent_id, missing) as (
    select h.thread, h.namespace, h.checkpoint_id, h.parent_id,
           array(select m.channel from unnest(h.delta_channels) m(channel)
                  where (select true from exai.checkpoint_blobs b
                          where b.thread = h.thread and b.namespace = h.namespace and b.channel = m.channel
                            and b.version = h.versions ->> m.channel and b.value_type <> 'empty'
                          limit 1) is null)
      from heads h
    union all
    select c.thread, c.namespace, c.checkpoint_id, c.parent_id,
           array(select m.channel from unnest(k.missing) m(channel)
                  where (select true from exai.checkpoint_blobs b
                          where b.thread = c.thread and b.namespace = c.namespace and b.channel = m.channel
                            and b.version = c.versions ->> m.channel and b.value_type <> 'empty'
                          limit 1) is null)
      from kept k
     cross join lateral (
       select p.thread, p.namespace, p.checkpoint_id, p.parent_id, p.versions
         from exai.checkpoints p
        where p.thread = k.thread and p.namespace = k.namespace and p.checkpoint_id = k.parent_id
        limit 1) c
     where cardinality(k.missing) > 0),
  gone as (
    delete from exai.checkpoints c
     where c.thread = any(p_threads)
       and case when p_runs is null
                then not exists (select from kept k where k.thread = c.thread and k.namespace = c.namespace
                                                      and k.checkpoint_id = c.checkpoint_id)
                else c.run_id = any(p_runs) end
    returning c.thread, c.namespace, c.checkpoint_id)
  delete from exai.checkpoint_writes w
   using gone g
   where w.thread = g.thread and w.namespace = g.namespace and w.checkpoint_id = g.checkpoint_id;
  if p_runs is null then
    update exai.checkpoints c
       set parent_id = null
     where c.thread = any(p_threads) and c.parent_id is not null
       and not exists (select from exai.checkpoints p where p.thread = c.thread and p.namespace = c.namespace
                                                        and p.checkpoint_id = c.parent_id);
  end if;
  -- As a set, so that the server can hash it: comparing each value with each checkpoint would be quadratic.
  with used as materialized (
    select distinct c.thread, c.namespace, v.channel, v.version
      from exai.checkpoints c
     cross join lateral jsonb_each_text(c.versions) v(channel, version)
     where c.thread = any(p_threads))
  delete from exai.checkpoint_blobs b
   where b.thread = any(p_threads)
     and not exists (select from used u where u.thread = b.thread and u.namespace = b.namespace
                                           and u.channel = b.channel and u.version = b.version);
end
$$
