-- Returns a page of matches for search_v1: p_found finds them in the index and p_query ranks them. If terms may be
-- missing, matches with more of them come first, and `has` lists them.
--
-- The indexes have no order. If there are few matches, all of them are ranked, and only those on the page are looked
-- up; otherwise the newest are looked up, and individually only if filters exclude some of them.
--
-- matches: every message (and title: seq 0) of the owner that matches, up to p_as_of: indexed ones through
-- message_words_words_idx (at: the ctid of the row, so that its words are not carried along), and those waiting to be
-- indexed that search_unindexed_v1 found. With p_ids, only messages of these conversations up to these numbers, and
-- the title of the first one. A message of several rows is found by p_long beside each term and evaluated as a whole,
-- so p_found excludes it; if p_long is null, p_found finds it once for each row. which: the terms it contains, if they
-- had to be determined.
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
  with matches as not materialized (
  select n.conversation_id, n.seq, n.created_at, n.at, n.words, n.which
    from (
      select w.conversation_id, w.seq, w.created_at, w.ctid as at, null::pg_catalog.tsvector as words,
             null::integer[] as which
        from exai.message_words w
       where w.words operator(pg_catalog.@@) p_found
         -- Outdated words. Most conversations have no waiting messages, which one hash lookup determines.
         and (w.conversation_id not in (select u.conversation_id from exai.unindexed_messages u)
              or not exists (
                select from exai.unindexed_messages u
                 where u.conversation_id = w.conversation_id and w.seq between u.first_seq and u.last_seq))
       union all
      select l.conversation_id, l.seq, l.created_at, (pg_catalog.array_agg(l.at order by l.i))[1], null,
             pg_catalog.array_agg(distinct l.i)
        from (
          select x.conversation_id, x.seq, x.created_at, x.at, t.i::integer as i
            from pg_catalog.unnest(p_terms) with ordinality t(term, i)
           -- `offset 0` prevents flattening, so that each term is looked up in the index.
           cross join lateral (
             select w.conversation_id, w.seq, w.created_at, w.ctid as at
               from exai.message_words w
              where w.words operator(pg_catalog.@@) (t.term operator(pg_catalog.&&) p_long) offset 0) x
           where p_long is not null
             and not exists (
               select from exai.unindexed_messages u
                where u.conversation_id = x.conversation_id and x.seq between u.first_seq and u.last_seq)) l
       group by l.conversation_id, l.seq, l.created_at
      having exai.has_terms_v1(pg_catalog.array_agg(distinct l.i), p_groups, p_excluded, p_missing)
       union all
      select u.id, u.seq, u.created_at, null, u.words, u.which
        from (
          select x.id, x.seq, x.created_at, x.words, pg_catalog.string_to_array(x.which, ',')::integer[] as which
            from rows from (
                   pg_catalog.unnest(p_waiting_ids), pg_catalog.unnest(p_waiting_seqs), pg_catalog.unnest(p_waiting_ats),
                   pg_catalog.unnest(p_waiting_words), pg_catalog.unnest(p_waiting_which))
                 x(id, seq, created_at, words, which)) u
       where exai.has_terms_v1(u.which, p_groups, p_excluded, p_missing)) n
   where (p_ids is null or (n.seq > 0 and n.seq <= p_up_to[pg_catalog.array_position(p_ids, n.conversation_id)])
          or (n.seq = 0 and n.conversation_id = p_ids[1]))
     and (p_since is null or n.created_at >= p_since)
     and (p_until is null or n.created_at < p_until)
     and (p_as_of is null or n.created_at <= p_as_of)),
  newest as materialized (
    select m.conversation_id, m.seq, m.created_at, m.at, m.words, m.which
      from matches m
     where m.seq > 0 or (p_role is null and p_tool is null and p_model is null)
     order by m.created_at desc, m.conversation_id desc, m.seq desc
     limit p_ranked + 1),
  counted as materialized (select count(*) <= p_ranked as are_few from newest),
  seen as materialized (
    select m.conversation_id, m.seq, m.created_at, m.at, m.words, m.which
      from (select w.* from newest w order by w.created_at desc, w.conversation_id desc, w.seq desc limit p_ranked) m
     cross join lateral ({{filter_match}}) s
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
           from matches m
          where m.seq > 0 or (p_role is null and p_tool is null and p_model is null)
          order by m.created_at desc, m.conversation_id desc, m.seq desc) m
      cross join lateral ({{filter_match}}) s
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
    select m.conversation_id, m.seq, m.created_at, m.shown_id, m.rank, m.has
      from (
        select x.conversation_id, x.seq, x.created_at, x.shown_id, x.rank, x.has
          from ranked x
         where p_rank is null or (x.rank, x.conversation_id, x.seq) < (p_rank, p_after_id, p_after_seq)
         order by x.rank desc, x.conversation_id desc, x.seq desc) m
     cross join lateral ({{filter_match}}) s
     order by m.rank desc, m.conversation_id desc, m.seq desc
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
