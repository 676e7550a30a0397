-- Returns a page of an owner's conversations like the statement list_conversations, in another order, or of those whose
-- names begin with p_prefix (p_prefix_end is not before any of them). By conversations_recent_idx,
-- conversations_created_idx, or conversations_name_idx where few names begin so; the text of the query has only what is
-- asked for, so that the planner can choose. Only the owner's rows are read.
create or replace function exai.list_conversations_v1(
  p_owner text, p_limit integer, p_at timestamptz, p_id uuid, p_deleted boolean, p_tags text[], p_metadata jsonb,
  p_begin text, p_pattern text, p_since timestamptz, p_until timestamptz, p_prefix text, p_prefix_end text, p_by text,
  p_ascending boolean, p_bytes bigint)
returns table (header text, deleted_at timestamptz, newest_kind text)
language plpgsql stable rows 50
set search_path = pg_catalog, pg_temp
as $$
declare
  v_time constant text := case p_by when 'created' then 'c.created_at' else 'c.updated_at' end;
  v_order constant text := case when p_ascending then 'asc' else 'desc' end;
begin
  return query execute format($query$
    select case when l.preceding <= $1 then l.header end, l.deleted_at, l.newest_kind
      from (select f.header, f.deleted_at, f.newest_kind, f.at, f.id,
                   sum(octet_length(f.header)) over (order by f.at %2$s, f.id %2$s) - octet_length(f.header) as preceding
              from (select exai.header_v1(c)::text as header, %1$s as at, c.id, c.deleted_at,
                           case when c.reply_seq = c.next_seq - 1 then c.reply_kind end as newest_kind
                      from public.conversations c
                     where c.owner = $2 and (c.deleted_at is not null) = $3 and (%1$s, c.id) %3$s ($4, $5)%4$s
                     order by %1$s %2$s, c.id %2$s
                     limit $6) f) l
     order by l.at %2$s, l.id %2$s
  $query$, v_time, v_order, case when p_ascending then '>' else '<' end,
    concat(
      case when p_prefix is not null then
        ' and c.continuation_id collate "C" >= $7 and c.continuation_id collate "C" <= $8' end,
      case when p_tags is not null then ' and c.tags @> $9' end,
      case when p_metadata is not null then ' and c.metadata @> $10' end,
      case when p_begin is not null then ' and (starts_with(c.continuation_id, $11) or c.title ~ $12)' end,
      case when p_since is not null then ' and c.updated_at >= $13' end,
      case when p_until is not null then ' and c.updated_at < $14' end))
  using p_bytes, p_owner, p_deleted, p_at, p_id, p_limit, p_prefix, p_prefix_end, p_tags, p_metadata, p_begin,
        p_pattern, p_since, p_until;
end
$$
