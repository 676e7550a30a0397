-- Returns how many rows of the tables that a search reads this session has read, as the server counts them. Only the
-- difference of two calls in one statement is meaningful, because the server resets its counts between transactions.
-- 0 if the server does not count (track_counts = off).
create or replace function exai.rows_read_v1()
returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  c_tables constant oid[] := array[
    'public.conversations'::regclass, 'public.messages'::regclass, 'public.turns'::regclass,
    'exai.message_words'::regclass, 'exai.unindexed_messages'::regclass];
begin
  -- Rows fetched through an index count for the index, those of a bitmap or of a scan from end to end for the table.
  return (
    select sum(pg_stat_get_xact_tuples_fetched(r.id)
               + case when r.is_table then pg_stat_get_xact_tuples_returned(r.id) else 0 end)
      from (select t.id, true as is_table from unnest(c_tables) t(id)
             union all
            select i.indexrelid, false from pg_index i where i.indrelid = any(c_tables)) r);
end
$$
