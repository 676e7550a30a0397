-- Returns a page of matches for search_v1: p_found finds them in the index and p_query ranks them. If terms may be
-- missing, matches with more of them come first, and `has` lists them.
--
-- The indexes have no order. If there are few matches, all of them are ranked, and only those on the page are looked
-- up; otherwise the newest are looked up, and individually only if filters exclude some of them.
--
-- Uses a generic plan, because planning takes as long as the search.
create or replace function exai.search_page_v1(
  p_owner text, p_query tsquery, p_found tsquery, p_long tsquery, p_terms tsquery[], p_groups integer[],
  p_excluded boolean[], p_missing integer, p_waiting_ids uuid[], p_waiting_seqs bigint[], p_waiting_ats timestamptz[],
  p_waiting_words tsvector[], p_waiting_which text[], p_ids uuid[], p_up_to bigint[], p_role text, p_since timestamptz,
  p_until timestamptz, p_tool text, p_model text, p_tags text[], p_metadata jsonb, p_rank numeric, p_after_id uuid,
  p_after_seq bigint, p_as_of timestamptz, p_ranked integer, p_limit integer)
returns table (
  continuation_id text, conversation_id uuid, title text, seq bigint, role text, kind text, created_at timestamptz,
  rank numeric, tool text, model text, as_of timestamptz, content text, has boolean[])
language plpgsql stable rows 20
set search_path = pg_catalog, pg_temp
set plan_cache_mode = 'force_generic_plan'
set jit = off
as $$
#variable_conflict use_column
declare
  -- Matches whose words would take too long to read are not ranked.
  c_large constant integer := 100000;
begin
  return query
  with newest as materialized (
    select m.conversation_id, m.seq, m.created_at, m.at, m.words, m.which
      from exai.find_matches_v1(
        p_found, p_long, p_terms, p_groups, p_excluded, p_missing, p_waiting_ids, p_waiting_seqs, p_waiting_ats,
        p_waiting_words, p_waiting_which, p_ids, p_up_to, p_since, p_until, p_as_of) m
     where m.seq > 0 or (p_role is null and p_tool is null and p_model is null)
     order by m.created_at desc, m.conversation_id desc, m.seq desc
     limit p_ranked + 1),
  counted as materialized (select count(*) <= p_ranked as are_few from newest),
  seen as materialized (
    select n.conversation_id, n.seq, n.created_at, n.at, n.words, n.which
      from (select w.* from newest w order by w.created_at desc, w.conversation_id desc, w.seq desc limit p_ranked) n
     cross join lateral exai.filter_match_v1(
       n.conversation_id, n.seq, p_owner, p_ids is not null, p_role, p_tool, p_model, p_tags, p_metadata) s
     where not (select c.are_few from counted c)),
  found as materialized (
    select n.conversation_id, n.seq, n.created_at, n.at, n.words, n.which, coalesce(p_ids[1], n.conversation_id) as shown_id
      from newest n
     where (select c.are_few from counted c)
     union all
    select s.conversation_id, s.seq, s.created_at, s.at, s.words, s.which, coalesce(p_ids[1], s.conversation_id)
      from seen s
     where (select count(*) from seen) = p_ranked
     union all
    (select m.conversation_id, m.seq, m.created_at, m.at, m.words, m.which, coalesce(p_ids[1], m.conversation_id)
       from (
         select m.conversation_id, m.seq, m.created_at, m.at, m.words, m.which
           from exai.find_matches_v1(
             p_found, p_long, p_terms, p_groups, p_excluded, p_missing, p_waiting_ids, p_waiting_seqs, p_waiting_ats,
             p_waiting_words, p_waiting_which, p_ids, p_up_to, p_since, p_until, p_as_of) m
          where m.seq > 0 or (p_role is null and p_tool is null and p_model is null)
          order by m.created_at desc, m.conversation_id desc, m.seq desc) m
      cross join lateral exai.filter_match_v1(
        m.conversation_id, m.seq, p_owner, p_ids is not null, p_role, p_tool, p_model, p_tags, p_metadata) s
      where not (select c.are_few from counted c) and (select count(*) from seen) < p_ranked
      order by m.created_at desc, m.conversation_id desc, m.seq desc
      limit p_ranked)),
  worded as (
    select f.conversation_id, f.seq, f.created_at, f.shown_id, f.which,
           coalesce(f.words, (
             select w.words from exai.message_words w
              where w.ctid = f.at and (p_missing > 0 or pg_column_size(w.words) <= c_large)
           )) as words
      from found f
     where f.seq > 0 or f.conversation_id not in (select m.shown_id from found m where m.seq > 0)),
  termed as (
    select w.conversation_id, w.seq, w.created_at, w.shown_id,
           round(coalesce(ts_rank(w.words, p_query, 1), 0)::numeric, 6) as rank,
           case when p_missing > 0 then coalesce(w.which, (
             select array_agg(t.i::integer) from unnest(p_terms) with ordinality t(term, i) where w.words @@ t.term
           )) end as which
      from worded w),
  -- The ranks of the segments of a long message are combined.
  joined as (
    select t.conversation_id, t.seq, t.created_at, t.shown_id, max(t.rank) as rank,
           case when p_missing > 0 then (
             select array_agg(i = any(string_to_array(string_agg(array_to_string(t.which, ','), ','), ',')::integer[]) order by i)
               from generate_subscripts(p_terms, 1) i) end as has
      from termed t
     group by t.conversation_id, t.seq, t.created_at, t.shown_id),
  ranked as materialized (
    select j.conversation_id, j.seq, j.created_at, j.shown_id, j.has,
           j.rank + coalesce((select count(*) from unnest(j.has) h where h), 0) as rank
      from joined j),
  page as (
    select r.conversation_id, r.seq, r.created_at, r.shown_id, r.rank, r.has
      from (
        select x.conversation_id, x.seq, x.created_at, x.shown_id, x.rank, x.has
          from ranked x
         where p_rank is null or (x.rank, x.conversation_id, x.seq) < (p_rank, p_after_id, p_after_seq)
         order by x.rank desc, x.conversation_id desc, x.seq desc) r
     cross join lateral exai.filter_match_v1(
       r.conversation_id, r.seq, p_owner, p_ids is not null, p_role, p_tool, p_model, p_tags, p_metadata) s
     order by r.rank desc, r.conversation_id desc, r.seq desc
     limit p_limit)
  select c.continuation_id, p.conversation_id, c.title, p.seq, m.role,
         case when p.seq = 0 then 'title' else m.kind end, p.created_at, p.rank, t.tool, t.model,
         coalesce(p_as_of, greatest(statement_timestamp(), (select max(f.created_at) from found f))),
         coalesce(m.content, c.title), p.has
    from page p
    join public.conversations c on c.id = p.shown_id
    left join lateral (
      select x.seq, x.role, x.kind, x.content, x.turn_id
        from public.messages x
       where x.conversation_id = p.conversation_id and x.seq >= p.seq and p.seq > 0
       order by x.seq
       limit 1) m on m.seq = p.seq
    left join public.turns t on t.id = m.turn_id
   where p.seq = 0 or m.seq is not null
   order by p.rank desc, p.conversation_id desc, p.seq desc;
end
$$
